"""Evaluation on a hand-made model whose answers are known."""

import math

import numpy as np
import pytest

from models.keras_setup import tf
from models.ranking_evaluation import Details, evaluate, measure
from models.ranking_predictions import (
    Predictions,
    collect_predictions,
    group_by,
)
from models.ranking_slices import VideoFacts

DAY_US = 86_400_000_000


class Oracle:
    """Reads its outputs from the batch; its loss is 2 an impression."""

    labels = ("clicked", "watch_time_s", "liked")

    def predict(self, features):
        return {
            "score": features["says_score"],
            "clicked": features["says_score"] / 10.0,
            "expected_watch_time_s": features["says_score"] * 2.0,
        }

    def compute_loss(self, inputs, *, training, global_batch_size):
        assert not training
        count = tf.reduce_sum(inputs["candidate_count"])
        return 2.0 * tf.cast(count, tf.float32) / global_batch_size, {}


def make_batch(rows):
    """Rows of (user, time_us, request_key, [(score, clicked, seconds)])."""
    width = 3
    table = np.full((len(rows), width, 3), 99.0, np.float32)
    for i, row in enumerate(rows):
        for j, impression in enumerate(row[3]):
            table[i, j] = impression
    return {
        "user_id": tf.constant([r[0] for r in rows]),
        "request_time_us": tf.constant([r[1] for r in rows], tf.int64),
        "request_key": tf.constant([r[2] for r in rows], tf.int64),
        "candidate_count": tf.constant([len(r[3]) for r in rows], tf.int64),
        "says_score": tf.constant(table[..., 0]),
        "clicked": tf.constant(table[..., 1]),
        "watch_time_s": tf.constant(table[..., 2]),
        "liked": tf.fill([len(rows), width], math.nan),
    }


# Four impressions: scores 1, 4, 2, 3; clicked 1, 0, 0, 1; 10, 0, 1, 30 s.
BATCHES = [
    make_batch([("a", 100, 7, [(1, 1, 10), (4, 0, 0)])]),
    make_batch([("a", 200, 7, [(2, 0, 1)]), ("a", 300, 8, [(3, 1, 30)])]),
]


def test_padding_is_left_out_and_batches_are_joined():
    found = collect_predictions(Oracle(), BATCHES, "request")
    np.testing.assert_array_equal(found.outputs["score"], [1, 4, 2, 3])
    np.testing.assert_array_equal(found.labels["clicked"], [1, 0, 0, 1])
    np.testing.assert_array_equal(found.labels["watch_time_s"], [10, 0, 1, 30])
    np.testing.assert_array_equal(found.group, [7, 7, 7, 8])
    assert found.loss == 2.0


def test_metrics_by_hand():
    values = evaluate(Oracle(), BATCHES, "request")
    expected = {
        # Request 7: the clicked impression (1) is below both others (4, 2);
        # request 8 has no unclicked one: 20 of 20 s are lost.
        "ranking.weighted_per_user_loss": 1.0,
        "ranking.weighted_per_user_loss_ties": 0.0,
        # Pairs by watch time, 30 > 10 > 1 > 0 with scores 3, 1, 2, 4:
        # right are (3, 1) and (3, 2), wrong the other four.
        "ranking.watch_time_xauc": 2 / 6,
        # Clicked 1, 3 against unclicked 4, 2: only 3 > 2.
        "ranking.auc_click": 1 / 4,
        # All are user a's.
        "ranking.auc_per_user_click": 1 / 4,
        "ranking.log_loss_click": -(
            math.log(0.1) + math.log(0.6) + math.log(0.8) + math.log(0.3)
        )
        / 4,
        # Said 2, 8, 4, 6 s of 10, 0, 1, 30 s: errors 8, 8, 3, 24.
        "ranking.watch_time_mae_s": 43 / 4,
        "ranking.watch_time_mse_s2": (64 + 64 + 9 + 576) / 4,
        "ranking.watch_time_rmse_s": math.sqrt(713) / 2,
        "ranking.calibration": 20 / 41,
        "ranking.loss": 2.0,
        "ranking.impressions": 4.0,
        "ranking.groups_are_requests": 1.0,
    }
    # `liked` has no output, and is unknown: it has no metrics.
    assert values == pytest.approx(expected, rel=1e-6)


def test_a_rating_has_errors_and_no_probability():
    found = measure(
        Predictions(
            outputs={
                "score": np.array([1.0, 2.0, 3.0]),
                "rating": np.array([3.5, 2.0, 1.0]),
            },
            labels={
                "clicked": np.array([1.0, 0.0, 1.0]),
                "watch_time_s": np.array([5.0, 0.0, 2.0]),
                "rating": np.array([4.0, math.nan, 3.0]),
            },
            group=np.zeros(3, np.int64),
            user=np.zeros(3, int),
        )
    )
    # Errors 0.5 and 2; the second is not rated.
    assert found["ranking.mse_rating"] == 4.25 / 2
    assert found["ranking.mae_rating"] == 2.5 / 2
    assert not {n for n in found if n.endswith(("auc_rating", "loss_rating"))}


def test_a_users_day_is_the_group_without_request_ids():
    # One user, all on one day: 10 s lost to both, 30 s only to the score 4:
    # (10 + 10 + 30) of (20 + 60).
    values = evaluate(Oracle(), BATCHES, group_by(False))
    assert values["ranking.weighted_per_user_loss"] == 50 / 80
    assert values["ranking.groups_are_requests"] == 0.0
    assert group_by(True) == "request"


def test_days_begin_at_local_midnight_and_users_are_apart():
    hour_us = DAY_US // 24
    rows = [
        ("a", DAY_US - 2 * hour_us, 1, [(1, 1, 1)]),
        ("a", DAY_US - 1, 1, [(1, 1, 1)]),
        ("a", DAY_US, 2, [(1, 1, 1)]),
        ("b", DAY_US, 2, [(1, 1, 1)]),
    ]

    def days(offset):
        group = collect_predictions(
            Oracle(), [make_batch(rows)], "user_day", utc_offset_hours=offset
        ).group
        return [list(group).index(g) for g in group]

    # Index of the first row of the same group.
    assert days(0.0) == [0, 0, 2, 3]
    # At UTC+1: 23:00, 0:59, 1:00; only the first is the day before.
    assert days(1.0) == [0, 1, 1, 3]


def test_undefined_metrics_are_left_out_and_the_prefix_is_free():
    found = measure(
        Predictions(
            outputs={"score": np.array([0.5, 0.6]), "clicked": np.ones(2) / 2},
            labels={
                "clicked": np.ones(2),
                "watch_time_s": np.array([1.0, 2.0]),
            },
            group=np.zeros(2, int),
            user=np.zeros(2, int),
        ),
        prefix="click_model.",
    )
    # All clicked: neither pairs nor an AUC. Cross entropy is ln 2.
    assert found == pytest.approx(
        {
            "click_model.watch_time_xauc": 1.0,
            "click_model.log_loss_click": math.log(2),
            "click_model.impressions": 2.0,
        }
    )


FACTS = VideoFacts(
    upload_time_us=None, duration_s=np.array([30.0, 90.0]), surfaces=["home"]
)


def in_detail(batch, **more):
    """A batch of three candidates a request, with what details need."""
    shape = np.asarray(batch["clicked"]).shape
    of_request = {
        "watch_history": np.array([[1, 0, -1]] * shape[0]),
        "surface": np.ones(shape[0], np.int64),
    }
    of_candidate = {
        "video": np.tile([1, 2, 0], (shape[0], 1)),
        "position": np.tile([1, 2, 3], (shape[0], 1)),
    }
    found = {**batch, **of_request, **of_candidate, **more}
    return {name: tf.convert_to_tensor(value) for name, value in found.items()}


def test_details_are_slices_and_estimates_with_intervals():
    # Scores 3, 1, 2; the first is clicked and watched 10 to 17 s.
    rows = [
        (f"user {i}", 100, i, [(3, 1, 10 + i), (1, 0, 0), (2, i % 2, 4)])
        for i in range(8)
    ]
    propensity = np.full((8, 3), 1 / 3, np.float32)
    # Two requests were not shuffled.
    propensity[6:] = 1.0
    batch = in_detail(make_batch(rows), propensity=propensity)
    values = evaluate(
        Oracle(), [batch], "request", details=Details(FACTS, 50, seed=1)
    )
    part = "ranking.by_duration.under_1_minute."
    # The first videos: 6 s said of each, 108 s watched, all clicked.
    assert values[f"{part}impressions"] == 8
    assert values[f"{part}calibration"] == pytest.approx(48 / 108)
    assert 0.3 < values[f"{part}calibration_low"] < 48 / 108
    assert values[f"{part}mean_expected_watch_time_s"] == pytest.approx(6.0)
    assert values[f"{part}mean_watch_time_s"] == pytest.approx(108 / 8)
    low, high = (
        values[f"{part}mean_watch_time_s_{e}"] for e in ("low", "high")
    )
    assert 10 < low < 108 / 8 < high < 17
    assert f"{part}auc_click" not in values
    # All 24: clicked scores 3 (8 times) and 2 (4 times), others 1 and 2.
    # Right: 8 x 12 + 4 x 8, and 4 x 4 ties, of 12 x 12.
    assert values["ranking.by_surface.home.auc_click"] == pytest.approx(
        (96 + 32 + 8) / 144
    )
    assert values["ranking.by_activity.watched_0_to_5.impressions"] == 24
    loss = "ranking.log_loss_click"
    assert 0.0 < values[f"{loss}_low"] < values[loss] < values[f"{loss}_high"]
    assert values["ranking.watch_time_rmse_s_low"] == pytest.approx(
        math.sqrt(values["ranking.watch_time_mse_s2_low"])
    )
    of_policy = "ranking.off_policy."
    assert values[f"{of_policy}requests"] == 6
    # By score, the first video keeps its place; the others change theirs, so
    # that they tell nothing: 3 x 1 click of each request.
    assert values[f"{of_policy}clicks_per_request.ips"] == pytest.approx(3.0)
    assert values[f"{of_policy}clicks_per_request.as_shown"] == (
        pytest.approx(1.5)
    )
    assert values[f"{of_policy}watch_time_s_per_request.snips"] == (
        pytest.approx(3 * 12.5)
    )
    # Where all requests are alike, nothing is known of others.
    assert f"{of_policy}clicks_per_request.snips_low" not in values


def test_each_epoch_has_neither_intervals_nor_slices():
    rows = [("a", 100, 1, [(3, 1, 10), (1, 0, 0), (2, 0, 4)])]
    batch = in_detail(make_batch(rows), propensity=np.full((1, 3), 0.5))
    names = evaluate(Oracle(), [batch], "request")
    assert not [n for n in names if n.count(".") > 1 or n.endswith("_low")]


def test_without_propensities_or_requests_nothing_is_said_of_other_orders():
    rows = [("a", 100, 1, [(3, 1, 10), (1, 0, 0), (2, 0, 4)])]
    plain = in_detail(make_batch(rows))
    logged = in_detail(make_batch(rows), propensity=np.full((1, 3), 0.5))
    fixed = in_detail(make_batch(rows), propensity=np.ones((1, 3)))
    for batch, groups, said in (
        (plain, "request", False),
        (fixed, "request", False),
        (logged, "user_day", False),
        (logged, "request", True),
    ):
        values = evaluate(
            Oracle(), [batch], groups, details=Details(FACTS, 0, seed=1)
        )
        assert any("off_policy" in name for name in values) == said
        assert not any(name.endswith("_low") for name in values)


def test_no_impressions_are_refused():
    with pytest.raises(ValueError, match="received none"):
        collect_predictions(Oracle(), [], "request")
