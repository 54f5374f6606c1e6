"""Quantile normalisation of continuous features (paper, section 4.1).

In go float32 values, NaN where missing; out come x~, x~ squared, sqrt(x~) and
is_missing, where x~(v) = P(X < v) over the training rows. A distribution is
kept as distinct knots, each with two levels, P(X < knot) and P(X <= knot):

    x~(v) = P(X < v)                         at a knot
          = linear from P(X <= a) to P(X < b)   strictly between knots a < b

so an atom (80 % zeros, say) keeps its level and what lies just above it starts
at the level above the atom. Outside the knots: 0 up to the smallest value
(hence for every value of a constant column up to the constant), just below 1
above the largest. A column without any value is 0 everywhere.
"""

from collections.abc import Iterable

import apache_beam as beam
import numpy as np
import tensorflow as tf

from schemas.hashing import mix

# Knots per requested quantile, c: the interpolation errs by 1/(c Q) at most,
# which leaves e = (1 - 1/c)/Q to the sampling error. By Dvoretzky, Kiefer and
# Wolfowitz P(error > e) <= 2 exp(-2 k e^2); at Q = 500 and k = 2^20 rows:
#   c = 4: .018    8: .0033    16: .0013    32: .00076    unbounded: .00045
# Sixteen is where more knots no longer help: they cost 16 Q x 12 bytes a
# feature in the graph (96 kB at Q = 500, 38 kB at the default of 200) and, by
# bisection, two comparisons a value more than c = 4.
_KNOTS_PER_QUANTILE = 16
# Groups of bundles that are merged in parallel.
FANOUT = 16
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
_LARGEST = np.finfo(np.float32).max


def max_knots(num_quantiles: int) -> int:
    """Width of a padded row of knots: ranks, minimum, maximum, one infinity."""
    return _KNOTS_PER_QUANTILE * num_quantiles + 4


def knots_from_sample(
    values: np.ndarray,
    num_quantiles: int,
    minimum: float | None = None,
    maximum: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses knots and reads off their levels.

    Args:
      values: float32 [n], a sample in any order; NaN is left out.
      num_quantiles: Q; between neighbouring knots lies at most 1/(16 Q) of
        the sample, unless it has so few distinct values that all are knots.
      minimum: the exact smallest value over all rows, a knot at level 0.
      maximum: the exact largest value over all rows, a knot with level 1
        above it.

    Returns:
      knots float32 [m], rising and distinct, m < `max_knots`; levels float32
      [m, 2]: P(X < knot) and P(X <= knot).
    """
    values = np.sort(values[~np.isnan(values)])
    distinct, counts = np.unique(values, return_counts=True)
    above = np.cumsum(counts, dtype=np.float64) / max(len(values), 1)
    below = np.concatenate([[0.0], above[:-1]])[: len(distinct)]
    intervals = _KNOTS_PER_QUANTILE * num_quantiles
    if len(distinct) > intervals + 1:
        ranks = np.arange(intervals + 1) * (len(values) - 1) // intervals
        kept = np.searchsorted(distinct, np.unique(values[ranks]))
        distinct, below, above = distinct[kept], below[kept], above[kept]
    # The extremes of all rows, where the sample missed them.
    if minimum is not None and (not len(distinct) or minimum < distinct[0]):
        distinct = np.concatenate([[minimum], distinct])
        below = np.concatenate([[0.0], below])
        above = np.concatenate([[0.0], above])
    if maximum is not None and maximum > distinct[-1]:
        distinct = np.concatenate([distinct, [maximum]])
        below = np.concatenate([below, [1.0]])
        above = np.concatenate([above, [1.0]])
    levels = np.stack([below, above], axis=1)
    # Where both zeros occur, the order decided which is here: -0.0 + 0 = 0.
    distinct = distinct + np.float32(0)
    return distinct.astype(np.float32), levels.astype(np.float32)


def normalize(
    values: tf.Tensor, knots: tf.Tensor, levels: tf.Tensor
) -> tf.Tensor:
    """Applies x~ and its powers, feature by feature.

    Args:
      values: float32 [n, F]; NaN is missing, infinities count as the largest
        finite numbers, subnormal numbers as 0.
      knots: float32 [F, M], rising, filled up with at least one +inf.
      levels: float32 [F, M, 2]; 1 where the knot is a filling.

    Returns:
      float32 [n, F, 4]: x~ in [0, 1), its square, its root, is_missing.
      Missing gives (0, 0, 0, 1).
    """
    missing = tf.math.is_nan(values)
    values = tf.clip_by_value(
        tf.where(missing, tf.zeros_like(values), values), -_LARGEST, _LARGEST
    )
    by_feature = tf.transpose(values)
    right = tf.searchsorted(knots, by_feature, side="right")
    left = tf.maximum(right - 1, 0)
    low, high = (tf.gather(knots, i, batch_dims=1) for i in (left, right))
    at_low = tf.gather(levels, left, batch_dims=1)
    at_high = tf.gather(levels, right, batch_dims=1)
    # Halved, so that the widest gap of float32 numbers is still finite.
    share = (by_feature / 2 - low / 2) / (high / 2 - low / 2)
    between = at_low[..., 1] + share * (at_high[..., 0] - at_low[..., 1])
    level = tf.where(by_feature == low, at_low[..., 0], between)
    level = tf.where(right == 0, tf.zeros_like(level), level)
    x = tf.transpose(tf.clip_by_value(level, 0.0, _BELOW_ONE))
    x = tf.where(missing, tf.zeros_like(x), x)
    flag = tf.cast(missing, tf.float32)
    return tf.stack([x, tf.square(x), tf.sqrt(x), flag], axis=-1)


class KnotsAnalyzer(beam.PTransform):
    """From batches of (row keys, rows) to the knots of every feature.

    Used as a `tft.experimental.ptransform_analyzer`. An element is int64 [n]
    keys and float32 [n, F] rows, or [n, C, F] with C candidates per key, of
    which those whose rows are all NaN are absent. The result, float32
    [F, max_knots, 3] of knot and its two levels, is the same for any order,
    bundling and fan-out of the rows: the sample are the `sample_size` rows of
    smallest hash.

    Args:
      num_features: F.
      num_quantiles: Q.
      sample_size: rows that decide, k.
      seed: of their choice.
      fanout: bundles are merged in so many groups first, then the groups: a
        single worker would have to take in a sample per bundle. None: at once.
    """

    def __init__(
        self,
        num_features: int,
        num_quantiles: int,
        sample_size: int,
        seed: int,
        fanout: int | None = FANOUT,
    ) -> None:
        super().__init__()
        combine = BottomKRows(num_features, sample_size, seed)
        self._sample = beam.CombineGlobally(combine).with_fanout(fanout)
        self._num_quantiles = num_quantiles

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return (
            batches
            | "Sample rows" >> self._sample
            | "Choose knots"
            >> beam.Map(_stacked_knots, num_quantiles=self._num_quantiles)
        )


Accumulator = tuple[np.ndarray, np.ndarray, np.ndarray]


class BottomKRows(beam.CombineFn):
    """Keeps the rows of smallest hash and every column's range.

    Rows whose hashes are equal (one row key) are told apart by their content,
    so that never more than `sample_size` are kept and the result does not
    depend on the order; rows equal in both are the same row. Accumulator: a
    list of (hashes uint64 [m], rows float32 [m, F], range float32 [2, F] of
    smallest and largest, NaN where none); one item of at most `sample_size`
    rows once compacted, which it is before it travels.
    """

    def __init__(self, num_features: int, sample_size: int, seed: int) -> None:
        self._num_features = num_features
        self._sample_size = sample_size
        self._seed = seed

    def create_accumulator(self) -> list[Accumulator]:
        return []

    def add_input(
        self,
        accumulator: list[Accumulator],
        batch: tuple[np.ndarray, np.ndarray],
    ) -> list[Accumulator]:
        hashes, rows = self._flatten(*batch)
        accumulator.append((hashes, rows, _ranges(rows)))
        if _num_rows(accumulator) > 2 * self._sample_size:
            return self.compact(accumulator)
        return accumulator

    def merge_accumulators(
        self, accumulators: Iterable[list[Accumulator]]
    ) -> list[Accumulator]:
        # One at a time: never more than two samples, however many bundles.
        merged: list[Accumulator] = []
        for accumulator in accumulators:
            merged += self.compact(accumulator)
            if _num_rows(merged) > self._sample_size:
                merged = self.compact(merged)
        return self.compact(merged)

    def compact(self, accumulator: list[Accumulator]) -> list[Accumulator]:
        excess = _num_rows(accumulator) - self._sample_size
        if len(accumulator) < 2 and excess <= 0:
            return accumulator
        hashes, rows, ranges = (
            np.concatenate(part) for part in zip(*accumulator, strict=True)
        )
        if excess > 0:
            kept = _smallest(hashes, rows, self._sample_size)
            hashes, rows = hashes[kept], rows[kept]
        return [(hashes, rows, _ranges(ranges))]

    def extract_output(
        self, accumulator: list[Accumulator]
    ) -> tuple[np.ndarray, np.ndarray]:
        compacted = self.compact(accumulator)
        if not compacted:
            empty = np.empty((0, self._num_features), np.float32)
            return empty, _ranges(empty)
        return compacted[0][1], compacted[0][2]

    def _flatten(
        self, keys: np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """One hash per row; absent candidates left out."""
        if rows.ndim == 2:
            return mix(self._seed, keys), rows
        slots = np.broadcast_to(np.arange(rows.shape[1]), rows.shape[:2])
        hashes = mix(
            self._seed, np.broadcast_to(keys[:, None], slots.shape), slots
        )
        present = ~np.isnan(rows).all(axis=2)
        return hashes[present], rows[present]


def _num_rows(accumulator: list[Accumulator]) -> int:
    return sum(len(hashes) for hashes, _, _ in accumulator)


def _smallest(hashes: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    """Indices of the `size` smallest of (hash, bits of the row)."""
    bound = np.partition(hashes, size - 1)[size - 1]
    below, tied = (np.flatnonzero(c) for c in (hashes < bound, hashes == bound))
    if len(below) + len(tied) > size:
        bits = np.ascontiguousarray(rows[tied]).view(np.uint32)
        tied = tied[np.lexsort(bits.T)][: size - len(below)]
    return np.concatenate([below, tied])


def _ranges(rows: np.ndarray) -> np.ndarray:
    """Smallest and largest per column [2, F], NaN where there is no value."""
    low = np.fmin.reduce(rows, axis=0, initial=np.nan)
    return np.stack([low, np.fmax.reduce(rows, axis=0, initial=np.nan)])


def _stacked_knots(
    sample: tuple[np.ndarray, np.ndarray], num_quantiles: int
) -> np.ndarray:
    """Knots and levels of all features in one array [F, max_knots, 3]."""
    rows, ranges = sample
    stacked = np.ones((rows.shape[1], max_knots(num_quantiles), 3), np.float32)
    stacked[..., 0] = np.inf
    for feature, (low, high) in enumerate(ranges.T):
        if np.isnan(low):
            continue
        knots, levels = knots_from_sample(
            rows[:, feature], num_quantiles, low, high
        )
        stacked[feature, : len(knots), 0] = knots
        stacked[feature, : len(knots), 1:] = levels
    return stacked
