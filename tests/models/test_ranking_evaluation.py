"""Evaluation on a hand-made model whose answers are known."""

import math

import numpy as np
import pytest

from models.keras_setup import tf
from models.ranking_evaluation import (
    Predictions,
    collect_predictions,
    evaluate,
    group_by,
    measure,
)

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
        "ranking.log_loss_click": -(
            math.log(0.1) + math.log(0.6) + math.log(0.8) + math.log(0.3)
        )
        / 4,
        # Said 2, 8, 4, 6 s of 10, 0, 1, 30 s: errors 8, 8, 3, 24.
        "ranking.watch_time_mae_s": 43 / 4,
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


def test_no_impressions_are_refused():
    with pytest.raises(ValueError, match="received none"):
        collect_predictions(Oracle(), [], "request")
