"""What the ranking model's logits mean: losses and predictions by hand."""

import math

import numpy as np
import pytest

from models.keras_setup import tf
from models.ranking_tasks import (
    binary_loss,
    log_prediction,
    log_watch_time_s,
    squared_loss,
    watch_time_loss,
)
from schemas.model_config import RankingConfig


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


@pytest.mark.parametrize("objective", ["expected_watch_time", "paper"])
def test_gradient_of_the_watch_time_loss_by_hand(objective):
    # d softplus(z) = s(z), d softplus(-z) = s(z) - 1. T = 12 s = 3 units.
    z = tf.Variable([-1.3, 0.4, 2.0, 0.7])
    with tf.GradientTape() as tape:
        loss = watch_time_loss(
            z,
            tf.constant([1.0, 0.0, 0.0, 1.0]),
            tf.constant([12.0, 12.0, 0.0, math.nan]),
            objective=objective,
            unit_s=4.0,
        )
    s = [sigmoid(x) for x in z.numpy()]
    if objective == "paper":
        want = [3 * (s[0] - 1), s[1], s[2], 0.0]
    else:
        want = [3 * (s[0] - 1) + s[0], 3 * (s[1] - 1) + s[1], s[2], 0.0]
    np.testing.assert_allclose(tape.gradient(loss, z), want, rtol=1e-5)
    assert float(loss[3]) == 0.0


def test_binary_loss_has_no_gradient_where_the_label_is_unknown():
    z = tf.Variable([0.5, 0.5, 0.5])
    with tf.GradientTape() as tape:
        loss = binary_loss(z, tf.constant([1.0, 0.0, math.nan]))
    p = sigmoid(0.5)
    np.testing.assert_allclose(
        loss, [-math.log(p), -math.log(1 - p), 0.0], rtol=1e-6
    )
    np.testing.assert_allclose(
        tape.gradient(loss, z), [p - 1, p, 0.0], rtol=1e-6
    )


def test_the_loss_of_a_rating_by_hand():
    # softplus(0) = ln 2, its slope 1/2; softplus(3) = 3.04859, slope .95257.
    z = tf.Variable([0.0, 3.0, 3.0])
    with tf.GradientTape() as tape:
        loss = squared_loss(z, tf.constant([2.0, 4.0, math.nan]))
    errors = [math.log(2) - 2, 3.04859 - 4]
    np.testing.assert_allclose(loss, [*np.square(errors), 0.0], rtol=1e-4)
    want = [2 * errors[0] * 0.5, 2 * errors[1] * 0.95257, 0.0]
    np.testing.assert_allclose(tape.gradient(loss, z), want, rtol=1e-4)


def test_a_predicted_rating_is_a_factor_of_the_score_whatever_its_logit():
    # Softplus of -1000 is 0 in float32, whose logarithm no score could use.
    config = RankingConfig(tasks=("rating",))
    log = log_prediction("rating", tf.constant([-1000.0, 0.0, 5.0]), config)
    assert np.isfinite(log).all()
    want = [0.0, math.log(2), 5.0067153]
    np.testing.assert_allclose(tf.exp(log), want, rtol=1e-6, atol=1e-29)


def test_the_longest_valid_watch_is_the_largest_prediction():
    # e^200 overflows float32; two days are 172,800 s.
    seconds = tf.exp(log_watch_time_s(tf.constant([200.0, 1.0, -200.0]), 60.0))
    np.testing.assert_allclose(
        seconds, [172_800.0, 60 * math.e, 0.0], rtol=1e-5
    )
