"""Measures of a ranking: order within a group, order overall, calibration.

Flat NumPy arrays in, one entry an impression; floats out. Every measure is
exact and takes O(n log n). Impressions whose label or watch time is NaN (the
log does not tell) are left out; where nothing is left to measure the result
is NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics

Floats = NDArray[np.float64]


def weighted_per_user_loss(
    score: ArrayLike,
    clicked: ArrayLike,
    watch_time_s: ArrayLike,
    group: ArrayLike,
) -> tuple[float, float]:
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
    group = np.asarray(group)
    _check_lengths(score=score, group=group)
    known = np.isfinite(clicked) & np.isfinite(watch_time_s)
    score, group = score[known], group[known]
    order = np.lexsort((score, group))
    score, group = score[order], group[order]
    is_click = clicked[known][order] > 0.5
    weight = np.where(is_click, watch_time_s[known][order], 0.0)

    # Runs of one group, and within them runs of one score, are contiguous:
    # counts of unclicked impressions are differences of a running sum.
    new_group = _changes(group)
    new_score = new_group | _changes(score)
    unclicked = np.concatenate([[0], np.cumsum(~is_click)])
    group_start, group_end = _runs(new_group)
    tie_start, tie_end = _runs(new_score)
    above = unclicked[group_end] - unclicked[tie_end]
    equal = unclicked[tie_end] - unclicked[tie_start]
    all_pairs = unclicked[group_end] - unclicked[group_start]

    total = float(np.sum(weight * all_pairs))
    if total == 0.0:
        return float("nan"), float("nan")
    ties = float(np.sum(weight * equal)) / total
    return float(np.sum(weight * above)) / total + 0.5 * ties, ties


def watch_time_xauc(score: ArrayLike, watch_time_s: ArrayLike) -> float:
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
    score, watch_time_s = score[known], watch_time_s[known]
    pairs = len(score) * (len(score) - 1) // 2
    comparable = pairs - _tied_pairs(watch_time_s)
    if comparable == 0:
        return float("nan")
    scored_apart = pairs - _tied_pairs(score)
    if scored_apart == 0:
        return 0.5
    # tau_b = (right - wrong) / sqrt(scored_apart * comparable), counted by
    # SciPy in O(n log n); the share asked for is, with ties half,
    # (right + (comparable - right - wrong) / 2) / comparable.
    tau_b = stats.kendalltau(score, watch_time_s, variant="b").statistic
    return float(0.5 + 0.5 * tau_b * np.sqrt(scored_apart / comparable))


def calibration(expected: ArrayLike, observed: ArrayLike) -> float:
    """Mean expected value over mean observed value; 1 is calibrated."""
    expected, observed = _scored(expected, observed)
    known = np.isfinite(observed)
    if not known.any() or np.mean(observed[known]) == 0.0:
        return float("nan")
    return float(np.mean(expected[known]) / np.mean(observed[known]))


def mae(expected: ArrayLike, observed: ArrayLike) -> float:
    """Mean absolute error, in the unit of both arguments."""
    expected, observed = _scored(expected, observed)
    known = np.isfinite(observed)
    if not known.any():
        return float("nan")
    return float(np.mean(np.abs(expected[known] - observed[known])))


def mse(expected: ArrayLike, observed: ArrayLike) -> float:
    """Mean squared error, in the square of the arguments' unit."""
    expected, observed = _scored(expected, observed)
    known = np.isfinite(observed)
    if not known.any():
        return float("nan")
    return float(np.mean((expected[known] - observed[known]) ** 2))


def auc(score: ArrayLike, label: ArrayLike) -> float:
    """Area under the ROC curve; NaN where the labels are of one class."""
    score, label = _scored(score, label)
    known = np.isfinite(label)
    if len(np.unique(label[known])) < 2:
        return float("nan")
    return float(metrics.roc_auc_score(label[known] > 0.5, score[known]))


def log_loss(probability: ArrayLike, label: ArrayLike) -> float:
    """Mean binary cross entropy in nats."""
    probability, label = _scored(probability, label)
    known = np.isfinite(label)
    if not known.any():
        return float("nan")
    return float(
        metrics.log_loss(
            label[known] > 0.5, probability[known], labels=[False, True]
        )
    )


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


def _tied_pairs(values: Floats) -> int:
    counts = np.unique(values, return_counts=True)[1].astype(np.int64)
    return int(np.sum(counts * (counts - 1) // 2))
