"""Measures against hand-worked cases and all-pairs oracles."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import ranking_metrics

# Few distinct values, so that ties of all sorts are common.
IMPRESSIONS = st.lists(
    st.tuples(
        st.sampled_from([-1.0, 0.0, 0.25, 0.5, 2.0]),
        st.booleans(),
        st.sampled_from([0.0, 1.0, 2.5, 30.0, 31.0]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=40,
)


def columns(impressions):
    score, clicked, watch_time_s, group = zip(*impressions, strict=True)
    return (
        np.array(score),
        np.array(clicked, float),
        np.array(watch_time_s),
        np.array(group),
    )


def all_pairs_loss(score, clicked, watch_time_s, group):
    lost = tied = total = 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            if group[i] != group[j] or not clicked[i] or clicked[j]:
                continue
            total += watch_time_s[i]
            if score[j] > score[i]:
                lost += watch_time_s[i]
            elif score[j] == score[i]:
                lost += watch_time_s[i] / 2
                tied += watch_time_s[i]
    return (lost / total, tied / total) if total else (math.nan, math.nan)


def all_pairs_xauc(score, watch_time_s):
    right = total = 0.0
    for i in range(len(score)):
        for j in range(len(score)):
            if watch_time_s[i] > watch_time_s[j]:
                total += 1
                right += float(score[i] > score[j])
                right += 0.5 * float(score[i] == score[j])
    return right / total if total else math.nan


def test_weighted_per_user_loss_by_hand():
    # Group 7: clicked a (score 3, 10 s) and b (score 1, 30 s), unclicked
    # scores 2 and 1. a wins both pairs; b loses to 2 and ties with 1.
    # Group 8: clicked c (score 0, 5 s) loses to its only unclicked, score 1.
    # Lost 30 + 30 / 2 + 5 = 50 of 2 * 10 + 2 * 30 + 5 = 85; tied 30 of 85.
    loss, ties = ranking_metrics.weighted_per_user_loss(
        score=[3, 2, 1, 1, 0, 1],
        clicked=[1, 0, 1, 0, 1, 0],
        watch_time_s=[10, 4, 30, 9, 5, 0],
        group=[7, 7, 7, 7, 8, 8],
    )
    assert loss == pytest.approx(50 / 85, abs=1e-12)
    assert ties == pytest.approx(30 / 85, abs=1e-12)


def test_watch_time_xauc_by_hand():
    # Watch times 0, 0, 5, 9 with scores 1, 2, 2, 3. Of six pairs one has
    # equal watch times. (0:1, 5:2) right, (0:2, 5:2) tie, and 9:3 beats all
    # three: 1 + 1/2 + 3 of 5.
    xauc = ranking_metrics.watch_time_xauc([1, 2, 2, 3], [0, 0, 5, 9])
    assert xauc == pytest.approx(4.5 / 5, abs=1e-12)


@given(IMPRESSIONS)
def test_weighted_per_user_loss_equals_all_pairs(impressions):
    arrays = columns(impressions)
    np.testing.assert_allclose(
        ranking_metrics.weighted_per_user_loss(*arrays),
        all_pairs_loss(*arrays),
        atol=1e-12,
    )


@given(IMPRESSIONS)
def test_watch_time_xauc_equals_all_pairs(impressions):
    score, _, watch_time_s, _ = columns(impressions)
    np.testing.assert_allclose(
        ranking_metrics.watch_time_xauc(score, watch_time_s),
        all_pairs_xauc(score, watch_time_s),
        atol=1e-12,
    )


@given(IMPRESSIONS)
@settings(max_examples=50)
def test_auc_is_the_share_of_clicked_above_unclicked(impressions):
    score, clicked, _, _ = columns(impressions)
    # The same count as XAUC's, with the label as the watch time.
    np.testing.assert_allclose(
        ranking_metrics.auc(score, clicked),
        all_pairs_xauc(score, clicked),
        atol=1e-12,
    )


@given(IMPRESSIONS, st.randoms())
@settings(max_examples=50)
def test_order_of_rows_and_names_of_groups_do_not_matter(impressions, random):
    shuffled = list(impressions)
    random.shuffle(shuffled)
    score, clicked, watch_time_s, group = columns(shuffled)
    np.testing.assert_allclose(
        ranking_metrics.weighted_per_user_loss(
            np.exp(score), clicked, watch_time_s, 1_000_003 * (3 - group)
        ),
        ranking_metrics.weighted_per_user_loss(*columns(impressions)),
        atol=1e-12,
    )


def test_constant_score_is_half_and_all_ties():
    clicked = [1, 0, 1, 0, 0]
    watch_time_s = [3.0, 1.0, 8.0, 0.0, 2.0]
    loss = ranking_metrics.weighted_per_user_loss(
        np.zeros(5), clicked, watch_time_s, np.zeros(5, int)
    )
    assert loss == (0.5, 1.0)
    assert ranking_metrics.watch_time_xauc(np.zeros(5), watch_time_s) == 0.5


def test_unknown_labels_are_left_out():
    nan = math.nan
    # Without the NaN rows: expected mean 3, observed mean 2, errors 1 and 1.
    assert ranking_metrics.calibration([2, 4, 9], [1, 3, nan]) == 1.5
    assert ranking_metrics.mae([2, 4, 9], [1, 5, nan]) == 1.0
    assert ranking_metrics.auc([1, 2, 3, 0], [0, 1, nan, nan]) == 1.0
    # -(ln 0.5 + ln 0.75) / 2
    assert ranking_metrics.log_loss([0.5, 0.25, 0.9], [1, 0, nan]) == (
        pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)
    )
    assert ranking_metrics.watch_time_xauc([1, 2, 9], [0, 5, nan]) == 1.0
    loss, _ = ranking_metrics.weighted_per_user_loss(
        [1, 0, 5, 9], [1, 0, nan, 0], [7, 0, 1, nan], [0, 0, 0, 0]
    )
    assert loss == 0.0


def test_nothing_to_measure_is_nan():
    nothing = [math.nan, math.nan]
    assert math.isnan(ranking_metrics.auc([1, 2], [1, 1]))
    assert math.isnan(ranking_metrics.auc([1, 2], nothing))
    assert math.isnan(ranking_metrics.log_loss([0.1, 0.2], nothing))
    assert math.isnan(ranking_metrics.mae([1, 2], nothing))
    assert math.isnan(ranking_metrics.calibration([1, 2], [0, 0]))
    assert math.isnan(ranking_metrics.watch_time_xauc([1, 2], [3, 3]))
    # Both clicked: no pair, though both were watched.
    assert all(
        math.isnan(value)
        for value in ranking_metrics.weighted_per_user_loss(
            [1, 2], [1, 1], [5, 5], [0, 0]
        )
    )


def test_nan_scores_and_different_lengths_are_refused():
    with pytest.raises(ValueError, match="1 of 2 predictions are NaN"):
        ranking_metrics.mae([math.nan, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="one length"):
        ranking_metrics.watch_time_xauc([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="one length"):
        ranking_metrics.weighted_per_user_loss([1.0], [1.0], [1.0], [0, 0])


def test_a_million_impressions_take_seconds():
    # All pairs of one group of 500,000 clicks would be 2.5e11 comparisons.
    rng = np.random.default_rng(0)
    count = 1_000_000
    score = rng.normal(size=count)
    watch_time_s = rng.exponential(30, size=count)
    clicked = rng.integers(0, 2, size=count)
    started = time.perf_counter()
    loss, _ = ranking_metrics.weighted_per_user_loss(
        score, clicked, watch_time_s, np.zeros(count, int)
    )
    xauc = ranking_metrics.watch_time_xauc(score, watch_time_s)
    assert time.perf_counter() - started < 20
    # Independent of each other: half, with a deviation of order 1e-3.
    assert loss == pytest.approx(0.5, abs=0.005)
    assert xauc == pytest.approx(0.5, abs=0.005)
