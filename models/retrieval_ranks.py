"""Where the videos that were watched next stand in a ranking of all.

In: scores of every video, or the ids that an index returned, with each case's
labels and seen videos. Out: ranks, one row a label, from which every metric
and every slice of it follows. Memory is that of one chunk of scores.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

# Of a label that is not in the ranking: out of vocabulary, or not returned.
NEVER = np.iinfo(np.int64).max
Lists = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class LabelRanks:
    """The distinct labels of all cases, case after case, in time order.

    Two ways to count, both with ties against us. `rank` is a label's own: the
    videos scored at least as high, itself included; what hit rates ask for.
    `position` is its place among all labels of the case in one ranking, where
    of equal scores the labels come last; what precision, recall, nDCG and
    average precision ask for. The `unseen_` ones leave out the videos seen
    before, except the label itself, or for positions any label of the case: a
    video that is watched again can still be found.

    Attributes:
      case: int64 [n], from 0, rising.
      video: int64 [n], 0 out of vocabulary (each 0 is a label of its own).
      first: bool [n], the first watch of its case.
      rank, unseen_rank, position, unseen_position: int64 [n], from 1; `NEVER`
        where the label is not in the ranking.
    """

    case: np.ndarray
    video: np.ndarray
    first: np.ndarray
    rank: np.ndarray
    unseen_rank: np.ndarray
    position: np.ndarray
    unseen_position: np.ndarray

    @property
    def cases(self) -> int:
        """How many cases there are."""
        return int(self.first.sum())

    @classmethod
    def of_scores(
        cls, scores: np.ndarray, labels: Lists, seen: Lists
    ) -> "LabelRanks":
        """Ranks by scores of the whole corpus.

        Args:
          scores: float [b, V]; column j is the score of video id j + 1.
          labels: b arrays of ids in time order, 0 out of vocabulary.
          seen: b arrays of ids watched before the case; ids below 1 ignored.

        Raises:
          ValueError: lengths differ, a case has no label, an id is above V,
            or a score is NaN (no order could be told).
        """
        _check_lengths(scores, labels, seen)
        if np.isnan(scores).any():
            raise ValueError(
                f"{int(np.isnan(scores).sum())} of {scores.size} scores are "
                "NaN; the model did not converge or an input is NaN."
            )
        return cls._of_cases(
            _case_by_scores(row, _distinct(own, len(row)), _known(watched, row))
            for row, own, watched in zip(scores, labels, seen, strict=True)
        )

    @classmethod
    def of_ids(
        cls, ids: np.ndarray, labels: Lists, seen: Lists
    ) -> "LabelRanks":
        """Ranks by the answers of an index: exact for the places it returned.

        A rank with seen videos removed is right up to the number of places
        less the number of seen videos.

        Args:
          ids: int64 [b, K], best first, 0 where nothing was found.
          labels, seen: as of `of_scores`.

        Raises:
          ValueError: lengths differ or a case has no label.
        """
        _check_lengths(ids, labels, seen)
        return cls._of_cases(
            _case_by_ids(row, _distinct(own, None), watched)
            for row, own, watched in zip(ids, labels, seen, strict=True)
        )

    @classmethod
    def concatenated(cls, parts: Sequence["LabelRanks"]) -> "LabelRanks":
        """Ranks of all cases of all parts; the cases are numbered anew."""
        if not parts:
            nothing = np.empty(0, np.int64)
            return cls(nothing, nothing, np.empty(0, bool), *([nothing] * 4))
        columns = {
            field.name: np.concatenate([getattr(p, field.name) for p in parts])
            for field in dataclasses.fields(cls)
        }
        starts = np.cumsum([0, *(p.cases for p in parts)])[:-1]
        columns["case"] += np.repeat(starts, [p.case.size for p in parts])
        return cls(**columns)

    @classmethod
    def _of_cases(
        cls, cases: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> "LabelRanks":
        """Joins (videos [n], the four ranks [4, n]) of each case."""
        videos, ranks = zip(*cases, strict=True)
        sizes = [len(own) for own in videos]
        case = np.repeat(np.arange(len(sizes)), sizes)
        first = np.ones(case.size, bool)
        first[1:] = case[1:] != case[:-1]
        return cls(
            case, np.concatenate(videos), first, *np.concatenate(ranks, axis=1)
        )


def _case_by_scores(
    scores: np.ndarray, labels: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    known = labels[labels > 0]
    own = scores[known - 1]
    # One pass over the corpus per label, some 0.1 ms for a million videos:
    # faster than any sort up to a hundred labels.
    rank = _at_least(scores, own)
    seen_scores = scores[seen - 1]
    # The label itself never leaves.
    seen_above = _at_least(seen_scores, own) - np.isin(known, seen)
    # Behind the others of equal score, and behind the labels before it.
    place = np.argsort(np.argsort(-own, kind="stable"), kind="stable") + 1
    others = rank - _at_least(own, own)
    removed = _at_least(scores[np.setdiff1d(seen, known) - 1], own)
    found = np.stack(
        [rank, rank - seen_above, others + place, others - removed + place]
    )
    ranks = np.full((4, len(labels)), NEVER)
    ranks[:, labels > 0] = found
    return labels, ranks


def _case_by_ids(
    ids: np.ndarray, labels: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    known = np.flatnonzero(ids > 0)
    order = known[np.argsort(ids[known])]
    at = np.searchsorted(ids[order], labels)
    at = order[np.minimum(at, max(len(order) - 1, 0))] if len(order) else at
    found = (labels > 0) & (len(order) > 0)
    found[found] = ids[at[found]] == labels[found]
    at = at[found]
    watched = np.isin(ids, seen)
    # How many of the places before were seen; of positions, labels stay.
    before = np.concatenate([[0], np.cumsum(watched)])[at]
    removed = np.cumsum(watched & ~np.isin(ids, labels))[at]
    ranks = np.full((4, len(labels)), NEVER)
    ranks[:, found] = [at + 1, at + 1 - before, at + 1, at + 1 - removed]
    return labels, ranks


def _at_least(scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """How many scores reach each of `own`, int64 [n]."""
    return np.array([np.count_nonzero(scores >= s) for s in own], np.int64)


def _distinct(labels: np.ndarray, videos: int | None) -> np.ndarray:
    """Labels without repetitions, in time order; every 0 is kept."""
    labels = np.asarray(labels, np.int64)
    if not len(labels) or labels.min() < 0:
        raise ValueError(
            f"A case needs one or more labels from 0, got {labels.tolist()}."
        )
    if videos is not None:
        _check_ids(labels, videos)
    kept = labels == 0
    kept[np.unique(labels, return_index=True)[1]] = True
    return labels[kept]


def _known(seen: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The distinct ids of the vocabulary."""
    seen = np.asarray(seen, np.int64)
    _check_ids(seen, len(scores))
    return np.unique(seen[seen > 0])


def _check_ids(ids: np.ndarray, videos: int) -> None:
    if ids.max(initial=0) > videos:
        raise ValueError(
            f"Id {ids.max()} has no score: the rows have {videos} columns. "
            "Model and examples come from different vocabularies."
        )


def _check_lengths(rows: np.ndarray, labels: Lists, seen: Lists) -> None:
    if not len(rows) == len(labels) == len(seen):
        raise ValueError(
            f"Expected one list of labels and of seen videos per row, got "
            f"{len(rows)} rows, {len(labels)} labels, {len(seen)} seen."
        )
