"""Measures of a ranking: order within a group, order overall, calibration.

Flat NumPy arrays in, one entry an impression; out comes a `Ratio`: every
measure is a sum over impressions divided by another, so that it can be summed
again by user (`models.user_bootstrap`). All are exact and take O(n log n).
Impressions whose label or watch time is NaN (the log does not tell) count as
nothing; where nothing is left to measure the value is NaN.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A metric as a ratio of sums over impressions.

    Attributes:
      numerator, denominator: float64 [n].
      of_pairs: whether the sums are over pairs of any two impressions, each
        pair counted at both of its ends.
    """

    numerator: Floats
    denominator: Floats
    of_pairs: bool = False

    @property
    def value(self) -> float:
        """The metric; NaN where the denominator is 0."""
        total = float(np.sum(self.denominator))
        return float(np.sum(self.numerator)) / total if total else float("nan")


def weighted_per_user_loss(
    score: ArrayLike,
    clicked: ArrayLike,
    watch_time_s: ArrayLike,
    group: ArrayLike,
) -> tuple[Ratio, Ratio]:
    """Share of watch time that the order mispredicts (paper, section 4.3).

    Pairs are (i clicked, j not clicked) of one group (a request, or a user's
    day). A pair weighs watch_time_i, and is lost where score_j > score_i,
    half lost where the scores are equal: a constant score gets 0.5.

    Args:
      score: float [n], larger is shown first.
      clicked: 0 or 1 (or NaN) [n].
      watch_time_s: float [n], seconds, only read where clicked.
      group: integer [n].

    Returns:
      The loss in [0, 1], and the share of the pairs' weight in ties, both
      NaN where no group has a pair of positive weight.

    Raises:
      ValueError: lengths differ, or a score is NaN.
    """
    score, clicked, watch_time_s = _scored(score, clicked, watch_time_s)
    known = np.isfinite(clicked) & np.isfinite(watch_time_s)
    above, equal, all_pairs = _unclicked(score, clicked, group, known)
    weight = np.where(known & (clicked > 0.5), watch_time_s, 0.0)
    total = np.asarray(weight * all_pairs, np.float64)
    loss = Ratio(weight * (above + 0.5 * equal), total)
    return loss, Ratio(weight * equal, total)


def auc_per_user(score: ArrayLike, label: ArrayLike, user: ArrayLike) -> Ratio:
    """Mean AUC of the users that have both labels, by their impressions.

    Known as GAUC (Zhou et al. 2018, section 5.2). How active a user is, which
    an AUC over all impressions rewards, plays no part.

    Args:
      score: float [n].
      label: 0 or 1 (or NaN) [n].
      user: integer [n].

    Raises:
      ValueError: lengths differ, or a score is NaN.
    """
    score, label = _scored(score, label)
    known = np.isfinite(label)
    above, equal, negatives = _unclicked(score, label, user, known)
    code = np.unique(np.asarray(user), return_inverse=True)[1]
    positive = known & (label > 0.5)
    impressions = np.bincount(code, weights=known)[code]
    positives = np.bincount(code, weights=positive)[code]
    both = known & (positives > 0) & (positives < impressions)
    # A user's AUC is the mean, over the positives, of the negatives below.
    share = np.divide(
        negatives - above - 0.5 * equal,
        negatives * positives,
        out=np.zeros(len(score)),
        where=both & positive,
    )
    return Ratio(share * impressions, both.astype(np.float64))


def watch_time_xauc(score: ArrayLike, watch_time_s: ArrayLike) -> Ratio:
    """Share of pairs of different watch time that the score orders right.

    All pairs, not a sample; pairs of equal scores count one half.

    Args:
      score: float [n].
      watch_time_s: float [n], seconds.

    Returns:
      A share in [0, 1]; a constant score gets 0.5.

    Raises:
      ValueError: lengths differ, or a score is NaN.
    """
    score, watch_time_s = _scored(score, watch_time_s)
    known = np.isfinite(watch_time_s)
    right, pairs = np.zeros(len(score)), np.zeros(len(score))
    right[known], pairs[known] = _pairs(score[known], watch_time_s[known])
    return Ratio(right, pairs, of_pairs=True)


def auc(score: ArrayLike, label: ArrayLike) -> Ratio:
    """Area under the ROC curve; NaN where the labels are of one class.

    The share of pairs of different label that the score orders right.
    """
    score, label = _scored(score, label)
    return watch_time_xauc(
        score, np.where(np.isfinite(label), label > 0.5, np.nan)
    )


def log_loss(probability: ArrayLike, label: ArrayLike) -> Ratio:
    """Mean binary cross entropy in nats."""
    probability, label = _scored(probability, label)
    of_label = np.where(label > 0.5, probability, 1.0 - probability)
    # A probability of 0 or 1 that is wrong costs 36 nats, not infinity.
    smallest = np.finfo(np.float64).eps
    return mean_where_known(-np.log(np.clip(of_label, smallest, 1.0)), label)


def mae(expected: ArrayLike, observed: ArrayLike) -> Ratio:
    """Mean absolute error, in the unit of both arguments."""
    expected, observed = _scored(expected, observed)
    return mean_where_known(np.abs(expected - observed), observed)


def mse(expected: ArrayLike, observed: ArrayLike) -> Ratio:
    """Mean squared error, in the square of the arguments' unit."""
    expected, observed = _scored(expected, observed)
    return mean_where_known(np.square(expected - observed), observed)


def calibration(expected: ArrayLike, observed: ArrayLike) -> Ratio:
    """Mean expected value over mean observed value; 1 is calibrated."""
    expected, observed = _scored(expected, observed)
    known = np.isfinite(observed)
    return Ratio(np.where(known, expected, 0.0), np.where(known, observed, 0.0))


def mean_where_known(values: ArrayLike, label: ArrayLike) -> Ratio:
    """The mean of the values whose label is known."""
    values, label = (np.asarray(a, np.float64) for a in (values, label))
    known = np.isfinite(label)
    return Ratio(np.where(known, values, 0.0), known.astype(np.float64))


def _scored(score: ArrayLike, *others: ArrayLike) -> list[Floats]:
    """float64 arrays of one length, the first without NaN."""
    arrays = [np.asarray(a, np.float64) for a in (score, *others)]
    _check_lengths(**{f"argument_{i}": a for i, a in enumerate(arrays)})
    if np.isnan(arrays[0]).any():
        raise ValueError(
            f"{int(np.isnan(arrays[0]).sum())} of {len(arrays[0])} "
            "predictions are NaN; only labels may be. Check the model's "
            "weights and features."
        )
    return arrays


def _check_lengths(**arrays: NDArray[np.generic]) -> None:
    shapes = {name: a.shape for name, a in arrays.items()}
    if len(set(shapes.values())) > 1 or any(
        a.ndim != 1 for a in arrays.values()
    ):
        raise ValueError(
            "Expected flat arrays of one length (one entry an impression), "
            f"received shapes {shapes}."
        )


def _unclicked(
    score: Floats,
    clicked: Floats,
    group: ArrayLike,
    known: NDArray[np.bool_],
) -> tuple[Counts, Counts, Counts]:
    """Counts the unclicked of an impression's group: above, equal, all.

    Above and equal by score. Where not known, an impression is none of them,
    and its own counts are 0.
    """
    group = np.asarray(group)
    _check_lengths(score=score, group=group)
    rows = np.flatnonzero(known)
    rows = rows[np.lexsort((score[rows], group[rows]))]
    score, group = score[rows], group[rows]
    # Runs of one group, and within them runs of one score, are contiguous:
    # counts of unclicked impressions are differences of a running sum.
    new_group = _changes(group)
    unclicked = np.concatenate([[0], np.cumsum(clicked[rows] <= 0.5)])
    group_start, group_end = _runs(new_group)
    tie_start, tie_end = _runs(new_group | _changes(score))
    counts = np.zeros((3, len(known)), np.int64)
    counts[0, rows] = unclicked[group_end] - unclicked[tie_end]
    counts[1, rows] = unclicked[tie_end] - unclicked[tie_start]
    counts[2, rows] = unclicked[group_end] - unclicked[group_start]
    return counts[0], counts[1], counts[2]


def _pairs(score: Floats, target: Floats) -> tuple[Floats, Counts]:
    """Of each entry the pairs with another target, and those ordered right.

    Pairs of equal scores are half right.
    """
    target_of, rank, alike = np.unique(
        target, return_inverse=True, return_counts=True
    )
    # Among equal scores the higher targets come first, so that none of them
    # counts as being below the next.
    rising, falling = np.lexsort((-rank, score)), np.lexsort((rank, -score))
    right = _smaller_before(rank, rising).astype(np.float64)
    right += _smaller_before(len(target_of) - 1 - rank, falling)
    start, end = _runs(_changes(score[rising]))
    tied = np.empty(len(score), np.int64)
    tied[rising] = end - start
    start, end = _runs(_changes(score[rising]) | _changes(rank[rising]))
    tied[rising] -= end - start
    return right + 0.5 * tied, len(score) - alike[rank]


def _smaller_before(rank: Counts, order: Counts) -> Counts:
    """Of each entry, how many earlier ones in `order` have a smaller rank.

    A wavelet tree over the bits of the rank, highest first: two entries part
    at the first bit that differs, and there the ones count the zeros before
    them. O(n) a bit, so O(n) for labels and O(n log n) for watch times.
    """
    found, values = np.zeros(len(rank), np.int64), rank[order]
    place = np.arange(len(rank))
    for bit in reversed(range(int(rank.max(initial=0)).bit_length())):
        is_one = (values >> bit) & 1 == 1
        zeros = np.concatenate([[0], np.cumsum(~is_one)])
        start, end = _runs(_changes(values >> (bit + 1)))
        before = zeros[:-1] - zeros[start]
        found[order[is_one]] += before[is_one]
        # Zeros to the front of their node, ones behind, each in order.
        behind = zeros[end] - zeros[start] + place - before
        to = np.where(is_one, behind, start + before)
        values, order = _moved(values, to), _moved(order, to)
    return found


def _moved(values: Counts, to: Counts) -> Counts:
    moved = np.empty_like(values)
    moved[to] = values
    return moved


def _changes(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Whether an entry differs from the one before it; the first does."""
    changed = np.ones(len(values), np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _runs(
    new: NDArray[np.bool_],
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Start and end (exclusive) of the run that each entry is in."""
    starts = np.flatnonzero(new)
    run = np.cumsum(new) - 1
    return starts[run], np.append(starts[1:], len(new))[run]
