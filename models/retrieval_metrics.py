"""Exact retrieval metrics over dense score rows.

In: uncorrected scores of every video, [b, V] for a chunk of b users, and each
user's labels and seen videos. Out: the means under the names that stages,
benchmarks and reports share (paper, section 3.4: "holdout" evaluation).
The whole corpus is ranked, no sample of it; memory is that of one chunk.
"""

from collections.abc import Sequence

import numpy as np

NDCG_DEPTH = 10
# A label out of vocabulary can never be found.
_NEVER = np.iinfo(np.int64).max


class RetrievalMetrics:
    """Adds up the metrics of one case a user.

    Hit rate asks for the first label alone. Its rank counts every video
    scored at least as high, itself included, so a tie counts against us. With
    seen videos removed, the videos seen before leave the ranking, except the
    label itself: a video that is watched again can still be found.

    nDCG, precision, recall and average precision ask for all distinct labels
    of the case. Among equal scores the labels come last. A label out of
    vocabulary (id 0) is relevant and never found; each 0 counts as one video.
    Nothing is removed from these rankings.
    """

    def __init__(self, top_k: Sequence[int]) -> None:
        if not top_k or min(top_k) < 1:
            raise ValueError(
                f"`top_k` must be one or more numbers from 1, got {top_k}. "
                "Set evaluation.top_k."
            )
        self._top_k = tuple(sorted(set(top_k)))
        self._sums: dict[str, float] = {}
        self._cases = 0

    def update(
        self,
        scores: np.ndarray,
        labels: Sequence[np.ndarray],
        seen: Sequence[np.ndarray],
    ) -> None:
        """Adds a chunk of cases.

        Args:
          scores: float [b, V]; column j is the score of video id j + 1.
          labels: b arrays of ids in time order, 0 out of vocabulary.
          seen: b arrays of ids watched before the case; ids below 1 ignored.

        Raises:
          ValueError: lengths differ, a case has no label, an id is above V,
            or a score is NaN (no order could be told).
        """
        if not len(scores) == len(labels) == len(seen):
            raise ValueError(
                f"Expected one list of labels and of seen videos per row, got "
                f"{len(scores)} rows, {len(labels)} labels, {len(seen)} seen."
            )
        for row, relevant, watched in zip(scores, labels, seen, strict=True):
            self._add_case(row, np.asarray(relevant), np.asarray(watched))

    def result(self) -> dict[str, float]:
        """Means over all cases.

        Raises:
          ValueError: there was no case.
        """
        if not self._cases:
            raise ValueError(
                "No evaluation case was given: no user has a completed watch "
                "in the held-out interval. Widen split.test_days."
            )
        return {n: s / self._cases for n, s in self._sums.items()}

    @property
    def cases(self) -> int:
        return self._cases

    def _add_case(
        self, scores: np.ndarray, labels: np.ndarray, seen: np.ndarray
    ) -> None:
        _check_case(scores, labels, seen)
        seen = np.unique(seen[seen >= 1])
        first = int(labels[0])
        rank, unseen_rank = first_label_ranks(scores, first, seen)
        positions = label_positions(scores, np.unique(labels[labels >= 1]))
        # Each out-of-vocabulary label is one more that is never found.
        relevant = len(positions) + int((labels == 0).sum())
        for k in self._top_k:
            found = int(np.searchsorted(positions, k, side="right"))
            self._add(f"hit_rate_at_{k}", rank <= k)
            self._add(f"hit_rate_at_{k}_seen_removed", unseen_rank <= k)
            self._add(f"precision_at_{k}", found / k)
            self._add(f"recall_at_{k}", found / relevant)
        self._add(f"ndcg_at_{NDCG_DEPTH}", _ndcg(positions, relevant))
        # Precision at the i-th found label is i / its position.
        precisions = np.arange(1, len(positions) + 1) / positions
        self._add("mean_average_precision", precisions.sum() / relevant)
        self._cases += 1

    def _add(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(value)


def first_label_ranks(
    scores: np.ndarray, label: int, seen: np.ndarray
) -> tuple[int, int]:
    """Ranks a label among all videos, and among it and the unseen ones.

    Args:
      scores: float [V].
      label: id, 0 out of vocabulary.
      seen: distinct ids in 1..V.

    Returns:
      The number of videos scored at least as high, the label included; the
      same without seen videos; a number above any k for label 0.
    """
    if label == 0:
        return _NEVER, _NEVER
    own = scores[label - 1]
    rank = int((scores >= own).sum())
    removed = seen[seen != label]
    return rank, rank - int((scores[removed - 1] >= own).sum())


def label_positions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Places labels in the full ranking, behind others of equal score.

    Args:
      scores: float [V].
      labels: distinct ids in 1..V, [n].

    Returns:
      int64 [n], rising, positions from 1.
    """
    own = np.sort(scores[labels - 1])
    # reached[i] is how many videos score at least own[i] and less than
    # own[i + 1]; the sum from i on is how many score at least own[i].
    reached = np.bincount(
        np.searchsorted(own, scores, side="right"), minlength=len(own) + 1
    )[1:]
    # Best label first, here and below.
    at_least = reached[::-1].cumsum()
    labels_at_least = len(own) - np.searchsorted(own, own[::-1], side="left")
    others = at_least - labels_at_least
    return others + np.arange(1, len(own) + 1)


def _ndcg(positions: np.ndarray, relevant: int) -> float:
    """nDCG to `NDCG_DEPTH` with gain 1 and discount 1 / log2(1 + position)."""
    found = positions[positions <= NDCG_DEPTH]
    ideal = np.arange(1, min(relevant, NDCG_DEPTH) + 1)
    return float(
        (1 / np.log2(1 + found)).sum() / (1 / np.log2(1 + ideal)).sum()
    )


def _check_case(
    scores: np.ndarray, labels: np.ndarray, seen: np.ndarray
) -> None:
    if not len(labels) or labels.min() < 0:
        raise ValueError(
            f"A case needs one or more labels from 0, got {labels.tolist()}."
        )
    highest = max(labels.max(), seen.max(initial=0))
    if highest > len(scores):
        raise ValueError(
            f"Id {highest} has no score: the rows have {len(scores)} columns. "
            "Model and examples come from different vocabularies."
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are NaN; "
            "the model did not converge or an input is NaN."
        )
