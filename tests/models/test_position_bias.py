"""The position's bias: its cells, its dropout, and what it learns."""

import math

import numpy as np
import pytest

from models.keras_setup import tf
from models.position_bias import LAST_POSITION, PositionBias
from models.ranking_tasks import binary_loss


def test_position_bias_reads_its_cell():
    bias = PositionBias(devices=2, surfaces=1, dropout=0.0, seed=1)
    bias.logits.assign(np.arange((LAST_POSITION + 1) * 6).reshape(-1, 3, 2))
    # Position p, device d, surface s hold 6 p + 2 d + s; positions beyond the
    # last share its cells.
    logits = bias(
        tf.constant([0, 2, LAST_POSITION + 7, 1], tf.int64),
        tf.constant([1, 0, 2, 0], tf.int64),
        tf.constant([0, 1, 1, 0], tf.int64),
    )
    last = 6 * LAST_POSITION + 5
    np.testing.assert_array_equal(logits, [2, 13, last, 6])


def test_position_dropout_is_a_function_of_seed_step_and_row():
    bias = PositionBias(devices=0, surfaces=0, dropout=0.3, seed=1)
    position = tf.fill([5000, 4], tf.constant(7, tf.int64))
    seen = bias.seen_positions(position, 2, 0).numpy()
    assert set(np.unique(seen)) == {0, 7}
    # 20,000 draws: a standard deviation of 0.003.
    assert np.mean(seen == 0) == pytest.approx(0.3, abs=0.015)
    tail = bias.seen_positions(position[3000:], 2, 3000)
    np.testing.assert_array_equal(tail, seen[3000:])
    assert (bias.seen_positions(position, 3, 0).numpy() != seen).any()


def test_position_bias_takes_what_position_explains():
    # Alike videos; position 1 is clicked 3 times of 4, position 2 once of 4:
    # logits ln 3 and -ln 3 around the main tower, whatever that holds.
    bias = PositionBias(devices=0, surfaces=0, dropout=0.0, seed=1)
    position = tf.constant([1, 1, 1, 1, 2, 2, 2, 2], tf.int64)
    zero = tf.zeros_like(position)
    clicked = tf.constant([1, 1, 1, 0, 0, 0, 0, 1], tf.float32)
    for _ in range(300):
        with tf.GradientTape() as tape:
            logit = bias(position, zero, zero)
            loss = tf.reduce_sum(binary_loss(logit, clicked))
        gradient = tape.gradient(loss, bias.logits)
        bias.logits.assign_sub(0.5 * tf.convert_to_tensor(gradient))
    found = bias.logits.numpy()[:, 0, 0]
    np.testing.assert_allclose(found[1:3], [math.log(3), -math.log(3)], 1e-4)
    np.testing.assert_array_equal(found[3:], 0.0)
