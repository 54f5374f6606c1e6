"""What a ranking model should beat: popularity, a linear model, trees.

All see of an impression what the ranking model sees of it, in one table (see
`models.ranking_table`). The learned ones predict clicks and watch time, clicked
or not.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from models.boosted_trees import BoostedTrees, Objective
from models.ranking_predictions import of_impressions
from models.ranking_table import Table
from schemas.events import LONGEST_WATCH_S

Outputs = dict[str, np.ndarray]
# Impressions of an average video that are added to each video's.
_PRIOR_IMPRESSIONS = 20.0


class Baseline(Protocol):
    """What is measured beside the model."""

    def outputs(self, table: Table) -> Outputs:
        """`score`, `clicked` and, if known, `expected_watch_time_s`, [n]."""


class Popularity:
    """Clicks per impression of the video, drawn to the mean of all.

    Args:
      batches: training examples.
      num_videos: V; videos out of vocabulary share a rate.
    """

    def __init__(
        self, batches: Iterable[Mapping[str, Any]], num_videos: int
    ) -> None:
        clicks, impressions = np.zeros((2, num_videos + 1))
        for batch in batches:
            names = ("video", "clicked")
            flat = dict(of_impressions(batch, {n: batch[n] for n in names}))
            known = np.isfinite(flat["clicked"])
            video = flat["video"][known]
            clicks += np.bincount(
                video, flat["clicked"][known], minlength=num_videos + 1
            )
            impressions += np.bincount(video, minlength=num_videos + 1)
        mean = clicks.sum() / max(impressions.sum(), 1.0)
        self._rate = (clicks + _PRIOR_IMPRESSIONS * mean) / (
            impressions + _PRIOR_IMPRESSIONS
        )

    def outputs(self, table: Table) -> Outputs:
        rate = self._rate[table.columns["video"]]
        return {"score": rate, "clicked": rate}


class LinearRanking:
    """Logistic regressions of the click and of watch time.

    Watch time as in the ranking model's objective `expected_watch_time`: each
    impression is a positive of weight T and a negative of weight 1, so that
    the odds are E[T]. By scikit-learn.
    """

    def __init__(self, table: Table) -> None:
        self._sizes = {n: int(table.columns[n].max()) for n in table.ids()}
        inputs = self._inputs(table)
        known = np.isfinite(table.labels["clicked"])
        self._click = _fitted(
            inputs[known], table.labels["clicked"][known] > 0.5
        )
        watched = np.nan_to_num(table.labels["watch_time_s"].astype(np.float64))
        self._unit_s = max(float(watched.mean()), 1e-6)
        told = np.isfinite(table.labels["watch_time_s"])
        positive = watched > 0.0
        self._seconds = _fitted(
            sparse.vstack([inputs[positive], inputs[told]], format="csr"),
            np.repeat([True, False], [positive.sum(), told.sum()]),
            np.append(watched[positive] / self._unit_s, np.ones(told.sum())),
        )

    def outputs(self, table: Table) -> Outputs:
        inputs = self._inputs(table)
        # Clipped where e^z leaves the valid watch times, as the model's are.
        log_s = self._seconds.decision_function(inputs) + np.log(self._unit_s)
        seconds = np.exp(np.minimum(log_s, np.log(LONGEST_WATCH_S)))
        clicked = self._click.predict_proba(inputs)[:, 1]
        return _by_seconds(clicked, seconds)

    def _inputs(self, table: Table) -> sparse.csr_matrix:
        """Of values x, x^2, sqrt(x) and whether missing; of ids ones."""
        blocks = []
        for name, column in table.columns.items():
            if name in self._sizes:
                largest = self._sizes[name]
                rows = np.flatnonzero((column > 0) & (column <= largest))
                shape = (len(column), largest + 1)
                ones = np.ones(len(rows), np.float32)
                one_hot = (ones, (rows, column[rows]))
                blocks.append(sparse.csr_matrix(one_hot, shape=shape))
                continue
            missing = np.isnan(column)
            x = np.where(missing, 0.0, column)
            dense = np.stack([x, x**2, np.sqrt(x), missing], axis=1)
            blocks.append(sparse.csr_matrix(dense.astype(np.float32)))
        return sparse.hstack(blocks, format="csr")


class LightGbm:
    """Gradient boosted trees: clicks, and watch time by the Tweedie loss.

    Raises:
      UsageError: LightGBM is not installed.
    """

    def __init__(self, table: Table, valid: Table, seed: int) -> None:
        self._click, self._seconds = (
            BoostedTrees(table, valid, objective, seed)
            for objective in (
                Objective("binary", "clicked"),
                Objective("tweedie", "watch_time_s"),
            )
        )

    def outputs(self, table: Table) -> Outputs:
        return _by_seconds(
            self._click.predict(table), self._seconds.predict(table)
        )


def _by_seconds(clicked: np.ndarray, seconds: np.ndarray) -> Outputs:
    return {
        "score": seconds,
        "clicked": clicked,
        "expected_watch_time_s": seconds,
    }


def _fitted(
    inputs: sparse.csr_matrix,
    label: np.ndarray,
    weight: np.ndarray | None = None,
) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=200).fit(inputs, label, weight)
