"""Norms of gradients and embeddings against hand numbers."""

import numpy as np
import pytest

from models import norms
from models.keras_setup import tf
from models.norms import embedding_norms, squared_gradient_norms


def test_rows_that_occur_twice_are_added_up():
    video = tf.Variable(tf.zeros([5, 2]), name="video_table")
    biases = tf.Variable(tf.zeros([5]), name="biases")
    unused = tf.Variable(tf.zeros([5]), name="unused")
    rows = tf.IndexedSlices(
        tf.constant([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]),
        tf.constant([4, 1, 4]),
        tf.constant([5, 2]),
    )
    scalars = tf.IndexedSlices(
        tf.constant([1.0, 1.0, -1.0]), tf.constant([2, 3, 3]), tf.constant([5])
    )
    squares = squared_gradient_norms(
        [video, biases, unused],
        [rows, scalars, None],
        [tf.constant([[3.0]]), None, tf.constant([4.0])],
    )
    got = {k: float(v) ** 0.5 for k, v in squares.items()}
    assert got == pytest.approx(
        {
            # Row 4: (3, 0), row 1: (0, 2).
            "gradient_norm/video": 13**0.5,
            # The two of row 3 cancel out.
            "gradient_norm/biases": 1.0,
            "gradient_norm/dense": 5.0,
        }
    )


@pytest.mark.parametrize("chunk_rows", [1, 2, 100])
def test_mean_length_of_the_rows_after_row_0(monkeypatch, chunk_rows):
    monkeypatch.setattr(norms, "_CHUNK_ROWS", chunk_rows)
    rows = np.array([[9.0, 9.0], [3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    video = tf.Variable(rows.astype(np.float32), name="video_table")
    biases = tf.Variable(tf.ones([4]), name="biases")
    # (5 + 1 + 0) / 3; a vector has no rows.
    assert embedding_norms([video, biases]) == pytest.approx(
        {"embedding_norm/video": 2.0}
    )
