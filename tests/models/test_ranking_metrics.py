"""Measures against hand-worked cases and all-pairs oracles."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

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


def loss_and_ties(*arrays, **named):
    return tuple(
        ratio.value
        for ratio in ranking_metrics.weighted_per_user_loss(*arrays, **named)
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
    loss, ties = loss_and_ties(
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
    assert xauc.value == pytest.approx(4.5 / 5, abs=1e-12)


@given(IMPRESSIONS)
def test_weighted_per_user_loss_equals_all_pairs(impressions):
    arrays = columns(impressions)
    np.testing.assert_allclose(
        loss_and_ties(*arrays),
        all_pairs_loss(*arrays),
        atol=1e-12,
    )


@given(IMPRESSIONS)
def test_watch_time_xauc_equals_all_pairs(impressions):
    score, _, watch_time_s, _ = columns(impressions)
    np.testing.assert_allclose(
        ranking_metrics.watch_time_xauc(score, watch_time_s).value,
        all_pairs_xauc(score, watch_time_s),
        atol=1e-12,
    )


@given(IMPRESSIONS)
@settings(max_examples=50)
def test_auc_is_the_share_of_clicked_above_unclicked(impressions):
    score, clicked, _, _ = columns(impressions)
    # The same count as XAUC's, with the label as the watch time.
    np.testing.assert_allclose(
        ranking_metrics.auc(score, clicked).value,
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
        loss_and_ties(
            np.exp(score), clicked, watch_time_s, 1_000_003 * (3 - group)
        ),
        loss_and_ties(*columns(impressions)),
        atol=1e-12,
    )


def test_constant_score_is_half_and_all_ties():
    clicked = [1, 0, 1, 0, 0]
    watch_time_s = [3.0, 1.0, 8.0, 0.0, 2.0]
    loss = loss_and_ties(np.zeros(5), clicked, watch_time_s, np.zeros(5, int))
    assert loss == (0.5, 1.0)
    xauc = ranking_metrics.watch_time_xauc(np.zeros(5), watch_time_s)
    assert xauc.value == 0.5


def test_unknown_labels_are_left_out():
    nan = math.nan
    # Without the NaN rows: expected mean 3, observed mean 2, errors 1 and 1.
    assert ranking_metrics.calibration([2, 4, 9], [1, 3, nan]).value == 1.5
    assert ranking_metrics.mae([2, 4, 9], [1, 5, nan]).value == 1.0
    # Errors 1 and 3.
    assert ranking_metrics.mse([2, 4, 9], [1, 7, nan]).value == 5.0
    assert ranking_metrics.auc([1, 2, 3, 0], [0, 1, nan, nan]).value == 1.0
    # -(ln 0.5 + ln 0.75) / 2
    assert ranking_metrics.log_loss([0.5, 0.25, 0.9], [1, 0, nan]).value == (
        pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2)
    )
    assert ranking_metrics.watch_time_xauc([1, 2, 9], [0, 5, nan]).value == 1.0
    loss, _ = loss_and_ties(
        [1, 0, 5, 9], [1, 0, nan, 0], [7, 0, 1, nan], [0, 0, 0, 0]
    )
    assert loss == 0.0
    # Without the NaN rows user 0 has one of each, ordered wrong, and user 1
    # no unclicked one.
    per_user = ranking_metrics.auc_per_user(
        [1, 2, 3, 9, 0], [1, 0, nan, 1, nan], [0, 0, 0, 1, 1]
    )
    assert per_user.value == 0.0


def test_nothing_to_measure_is_nan():
    nothing = [math.nan, math.nan]
    for ratio in (
        ranking_metrics.auc([1, 2], [1, 1]),
        ranking_metrics.auc([1, 2], nothing),
        ranking_metrics.auc_per_user([1, 2], [0, 1], [7, 8]),
        ranking_metrics.log_loss([0.1, 0.2], nothing),
        ranking_metrics.mae([1, 2], nothing),
        ranking_metrics.mse([1, 2], nothing),
        ranking_metrics.calibration([1, 2], [0, 0]),
        ranking_metrics.watch_time_xauc([1, 2], [3, 3]),
        # Both clicked: no pair, though both were watched.
        *ranking_metrics.weighted_per_user_loss([1, 2], [1, 1], [5, 5], [0, 0]),
    ):
        assert math.isnan(ratio.value)


@given(IMPRESSIONS)
def test_auc_per_user_is_the_mean_of_the_users_aucs(impressions):
    score, clicked, _, user = columns(impressions)
    aucs, sizes = [], []
    for one in np.unique(user):
        own = user == one
        if 0 < clicked[own].sum() < own.sum():
            aucs.append(metrics.roc_auc_score(clicked[own], score[own]))
            sizes.append(own.sum())
    expected = np.average(aucs, weights=sizes) if aucs else math.nan
    np.testing.assert_allclose(
        ranking_metrics.auc_per_user(score, clicked, user).value,
        expected,
        atol=1e-12,
    )


def test_auc_and_log_loss_are_those_of_scikit_learn():
    rng = np.random.default_rng(3)
    # Rounded, so that scores tie; 0 and 1 are among them.
    probability = np.round(rng.random(5000), 2)
    label = rng.random(5000) < probability
    assert ranking_metrics.auc(probability, label).value == pytest.approx(
        metrics.roc_auc_score(label, probability), abs=1e-12
    )
    wrong = ~label
    assert ranking_metrics.log_loss(probability, wrong).value == (
        pytest.approx(metrics.log_loss(wrong, probability), rel=1e-12)
    )


def test_xauc_is_kendalls_tau_where_nothing_ties():
    rng = np.random.default_rng(4)
    score, watch_time_s = rng.normal(size=(2, 3000))
    tau = stats.kendalltau(score, watch_time_s).statistic
    xauc = ranking_metrics.watch_time_xauc(score, watch_time_s)
    assert xauc.value == pytest.approx((1 + tau) / 2, abs=1e-12)


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
    loss, _ = loss_and_ties(score, clicked, watch_time_s, np.zeros(count, int))
    xauc = ranking_metrics.watch_time_xauc(score, watch_time_s).value
    assert time.perf_counter() - started < 20
    # Independent of each other: half, with a deviation of order 1e-3.
    assert loss == pytest.approx(0.5, abs=0.005)
    assert xauc == pytest.approx(0.5, abs=0.005)
