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
        videos = scores.shape[1]
        case, video = _flat([_distinct(own) for own in labels])
        seen_case, seen_id = _flat(seen)
        _check_ids(video, videos)
        _check_ids(seen_id, videos)
        # A case and an id as one number.
        keys = case * (videos + 1) + video
        watched = np.sort((seen_case * (videos + 1) + seen_id)[seen_id > 0])
        watched = watched[np.diff(watched, prepend=-1) > 0]
        known = video > 0
        ranks = np.full((4, len(video)), NEVER)
        ranks[:, known] = _by_scores(scores, keys[known], watched)
        first = np.diff(case, prepend=-1) > 0
        return cls(case, video, first, *ranks)

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
            _case_by_ids(row, _distinct(own), watched)
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


def _by_scores(
    scores: np.ndarray, keys: np.ndarray, watched: np.ndarray
) -> np.ndarray:
    """The four ranks [4, n] of labels.

    Args:
      scores: [b, V].
      keys: of the n labels, case * (V + 1) + id, case after case.
      watched: of the distinct seen videos, rising.
    """
    width = scores.shape[1] + 1
    case, video = np.divmod(keys, width)
    own = scores[case, video - 1]
    # One pass over the corpus per label, some 0.1 ms for a million videos:
    # faster than any sort up to a hundred labels.
    rank = np.array(
        [
            np.count_nonzero(scores[row] >= score)
            for row, score in zip(case, own, strict=True)
        ],
        np.int64,
    )

    def above(seen: np.ndarray) -> np.ndarray:
        seen_case, seen_id = np.divmod(seen, width)
        return _reaching(case, own, seen_case, scores[seen_case, seen_id - 1])

    # Both are sorted, or nearly: far faster than sets.
    at = np.searchsorted(watched, keys)
    was_seen = np.append(watched, -1)[at] == keys
    no_label = np.ones(len(watched), bool)
    no_label[at[was_seen]] = False
    # The label itself never leaves.
    seen_above = above(watched) - was_seen
    removed = above(watched[no_label])
    place, as_high = _among_labels(case, own)
    position = rank - as_high + place
    return np.stack([rank, rank - seen_above, position, position - removed])


def _reaching(
    case: np.ndarray,
    own: np.ndarray,
    seen_case: np.ndarray,
    seen_scores: np.ndarray,
) -> np.ndarray:
    """How many seen videos of its case reach each label's score."""
    counts = np.bincount(case)
    nth = np.arange(len(case)) - (np.cumsum(counts) - counts)[case]
    reaching = np.zeros(len(case), np.int64)
    # First labels of all cases together, then the second ones of those that
    # have a second, and so on.
    for n in range(counts.max(initial=0)):
        chosen = nth == n
        bound = np.full(len(counts), np.inf, own.dtype)
        bound[case[chosen]] = own[chosen]
        asked = seen_case < len(counts)
        asked[asked] = counts[seen_case[asked]] > n
        seen_case, seen_scores = seen_case[asked], seen_scores[asked]
        high = seen_case[seen_scores >= bound[seen_case]]
        found = np.bincount(high, minlength=len(counts))
        reaching[chosen] = found[case[chosen]]
    return reaching


def _among_labels(
    case: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each label among its case's: its place, and how many score as high.

    Of equal scores the earlier label comes first.
    """
    order = np.lexsort((-own, case))
    case, own = case[order], own[order]
    starts = np.searchsorted(case, case)
    changed = np.ones(len(case), bool)
    changed[1:] = (case[1:] != case[:-1]) | (own[1:] != own[:-1])
    group = np.cumsum(changed)
    place, as_high = np.empty_like(starts), np.empty_like(starts)
    place[order] = np.arange(len(case)) - starts + 1
    as_high[order] = np.searchsorted(group, group, side="right") - starts
    return place, as_high


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


def _flat(rows: Lists) -> tuple[np.ndarray, np.ndarray]:
    """All rows' numbers in one, and of which row each is."""
    sizes = [len(row) for row in rows]
    case = np.repeat(np.arange(len(rows)), sizes)
    return case, np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)


def _distinct(labels: np.ndarray) -> np.ndarray:
    """Labels without repetitions, in time order; every 0 is kept."""
    labels = np.asarray(labels, np.int64)
    if not len(labels) or labels.min() < 0:
        raise ValueError(
            f"A case needs one or more labels from 0, got {labels.tolist()}."
        )
    if len(labels) == 1:
        return labels
    kept = labels == 0
    kept[np.unique(labels, return_index=True)[1]] = True
    return labels[kept]


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
