"""Retrieval metrics from the ranks of what was watched next.

In: `LabelRanks`, exact or through an index. Out: means under the names that
stages, benchmarks and reports share (paper, section 3.4: "holdout"
evaluation). The whole corpus is ranked, no sample of it.
"""

from collections.abc import Sequence

import numpy as np

from models.retrieval_ranks import NEVER, LabelRanks

SEEN_REMOVED = "_seen_removed"


def checked_top_k(top_k: Sequence[int]) -> tuple[int, ...]:
    """The k in rising order.

    Raises:
      ValueError: there is none, or one below 1.
    """
    if not top_k or min(top_k) < 1:
        raise ValueError(
            f"`top_k` must be one or more numbers from 1, got {top_k}. "
            "Set evaluation.top_k."
        )
    return tuple(sorted(set(top_k)))


def metrics(
    ranks: LabelRanks, top_k: Sequence[int], *, whole_ranking: bool = True
) -> dict[str, float]:
    """Means over all cases, one case a user.

    Hit rate asks for the first label alone. Precision, recall, nDCG and
    average precision ask for all distinct labels of the case; one that is out
    of vocabulary is relevant and never found. At k, nDCG has gain 1 and
    discount 1 / log2(1 + position), over that of the ideal ranking; average
    precision is the sum of the precisions at the labels found among the first
    k, over min(k, number of labels). `mean_average_precision` has no k and
    the number of labels below.

    Args:
      ranks: of all cases.
      top_k: each k.
      whole_ranking: false for the first places of an index: then there is no
        `mean_average_precision`.

    Returns:
      `cases`; for each k `hit_rate_at_<k>`, `precision_at_<k>`,
      `recall_at_<k>`, `ndcg_at_<k>` and `map_at_<k>`, with seen videos kept
      and, with `_seen_removed` behind, removed; `mean_average_precision`.

    Raises:
      ValueError: there was no case.
    """
    if not ranks.cases:
        raise ValueError(
            "No evaluation case was given: no user has a completed watch "
            "in the held-out interval. Widen split.test_days."
        )
    values = {"cases": float(ranks.cases)}
    for suffix, rank, position in (
        ("", ranks.rank, ranks.position),
        (SEEN_REMOVED, ranks.unseen_rank, ranks.unseen_position),
    ):
        first = rank[ranks.first]
        ranking = _Rankings(ranks.case, position)
        for k in checked_top_k(top_k):
            values |= {
                f"hit_rate_at_{k}{suffix}": float((first <= k).mean()),
                f"precision_at_{k}{suffix}": ranking.precision(k),
                f"recall_at_{k}{suffix}": ranking.recall(k),
                f"ndcg_at_{k}{suffix}": ranking.ndcg(k),
                f"map_at_{k}{suffix}": ranking.average_precision(k),
            }
        if not suffix and whole_ranking:
            values["mean_average_precision"] = ranking.average_precision(None)
    return values


class _Rankings:
    """One ranking a case, as the positions of its labels."""

    def __init__(self, case: np.ndarray, position: np.ndarray) -> None:
        order = np.lexsort((position, case))
        self._case, self._position = case[order], position[order]
        # How many labels each case has, found or not.
        self._relevant = np.bincount(case)
        starts = np.cumsum(self._relevant) - self._relevant
        # Of each label: which one of its case it is, best first, from 1.
        self._nth = np.arange(case.size) - starts[self._case] + 1

    def precision(self, k: int) -> float:
        return float((self._sum(k, np.ones_like(self._position)) / k).mean())

    def recall(self, k: int) -> float:
        found = self._sum(k, np.ones_like(self._position))
        return float((found / self._relevant).mean())

    def ndcg(self, k: int) -> float:
        ideal = np.cumsum(1 / np.log2(2 + np.arange(k)))
        gains = self._sum(k, 1 / np.log2(1.0 + self._position))
        return float((gains / ideal[np.minimum(self._relevant, k) - 1]).mean())

    def average_precision(self, k: int | None) -> float:
        """Mean over the cases; None is the whole ranking."""
        # At the i-th label found, precision is i / its position.
        sums = self._sum(k or NEVER - 1, self._nth / self._position)
        return float((sums / np.minimum(self._relevant, k or NEVER)).mean())

    def _sum(self, k: int, values: np.ndarray) -> np.ndarray:
        """Sums per case over the labels among the first k places."""
        found = self._position <= k
        return np.bincount(
            self._case[found], values[found], minlength=self._relevant.size
        )
