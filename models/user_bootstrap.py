"""Intervals of metrics by resampling users.

A user's impressions are alike, so that an interval over impressions would be
too narrow: users are drawn with replacement, with all that they did (a
cluster bootstrap). A metric is a ratio of sums over impressions
(`ranking_metrics.Ratio`), and a resample's a ratio of the users' sums, each
as often as the user was drawn: no metric is computed twice.
"""

import numpy as np

from models.ranking_metrics import Ratio

# Beyond, users are joined at random to as many clusters. Clusters of
# independent users are as independent, and the work no longer grows.
MOST_CLUSTERS = 16_384
_TAIL = 0.025
# Users whose ratios differ by less than the root of this are all alike.
_ROUNDING = 1e-12


class UserBootstrap:
    """Resamples of a number of users, the same for all metrics.

    Args:
      users: how many; they are numbered in no order that means something.
      resamples: R.
      seed: of the draws.
    """

    def __init__(self, users: int, resamples: int, seed: int) -> None:
        self._clusters = min(users, MOST_CLUSTERS)
        # float64 [R, clusters]: how often each was drawn.
        self._drawn = (
            np.random.default_rng(seed)
            .multinomial(
                self._clusters,
                np.full(self._clusters, 1.0 / self._clusters),
                size=resamples,
            )
            .astype(np.float64)
        )

    def values(self, ratio: Ratio, user: np.ndarray) -> np.ndarray:
        """The metric of each resample, float64 [R], NaN where undefined.

        A sum over pairs of all impressions is no sum over users. With draws
        1 + d_u and pairs K_uv, sum (1 + d_u) (1 + d_v) K_uv is to first order
        in d the sum of all pairs and twice sum d_u K_u, where K_u are the
        pairs at a user: a pair's metric moves twice as far as the ratio of
        the users' sums. What is left out is of the order 1 / users.

        Args:
          ratio: over n impressions.
          user: int64 [n], from 0 and below the number of users.
        """
        values, _ = self._resampled(*self._sums(ratio, user))
        return 2.0 * values - ratio.value if ratio.of_pairs else values

    def interval(
        self, ratio: Ratio, user: np.ndarray
    ) -> tuple[float, float] | None:
        """The 95 % interval by the studentised bootstrap (Efron 1981).

        Watch times are skewed: where few long ones are drawn, the metric and
        its spread are small together. So each resample's distance from the
        metric is divided by the resample's own standard error.

        None where the metric or its error is undefined in some resample, or
        all users agree exactly, as where nothing was clicked: the data hang
        on so few users that no interval can be told.
        """
        numerator, denominator = self._sums(ratio, user)
        values, errors = self._resampled(numerator, denominator)
        squares = np.sum((numerator - ratio.value * denominator) ** 2)
        if squares <= _ROUNDING * np.sum(numerator**2):
            return None
        error = np.sqrt(squares) / np.abs(np.sum(denominator))
        with np.errstate(divide="ignore", invalid="ignore"):
            distances = (values - ratio.value) / errors
        if not np.isfinite(distances).all():
            return None
        # The k-th of R draws has k / (R + 1) below it: at 200 the default of
        # NumPy, k = 1 + 0.025 (R - 1), would leave 3.0 % on either side.
        low, high = np.quantile(
            distances, (_TAIL, 1.0 - _TAIL), method="weibull"
        )
        if ratio.of_pairs:
            error *= 2.0
        return float(ratio.value - high * error), float(
            ratio.value - low * error
        )

    def _sums(
        self, ratio: Ratio, user: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Numerator and denominator by cluster, float64 [clusters]."""
        cluster = user % self._clusters
        return (
            np.bincount(cluster, ratio.numerator, self._clusters),
            np.bincount(cluster, ratio.denominator, self._clusters),
        )

    def _resampled(
        self, numerator: np.ndarray, denominator: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ratios of sums [R], and the standard error of each.

        To first order, a cluster moves N / D by (n - (N / D) d) / D.
        """
        total = self._drawn @ denominator
        total[total == 0.0] = np.nan
        values = self._drawn @ numerator / total
        of_numerator = self._drawn @ numerator**2
        squares = (
            of_numerator
            - 2.0 * values * (self._drawn @ (numerator * denominator))
            + values**2 * (self._drawn @ denominator**2)
        )
        squares[squares <= _ROUNDING * of_numerator] = 0.0
        return values, np.sqrt(squares) / np.abs(total)
