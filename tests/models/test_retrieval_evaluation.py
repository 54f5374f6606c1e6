"""Evaluation of a model and of a baseline, against numbers by hand."""

import numpy as np
import pytest

from models import retrieval_evaluation
from models.baselines import Popularity
from models.keras_setup import tf
from models.retrieval_evaluation import ModelScorer, evaluate


class LinearModel:
    """u = the feature `direction`; three videos in two dimensions."""

    def query_embedding(self, features):
        return tf.cast(features["direction"], tf.float32)

    def candidates(self):
        return (
            tf.constant([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]),
            tf.constant([0.0, 0.0, 0.3]),
        )


def cases():
    """Two users: one looks along axis 0, one along axis 1."""
    return {
        "direction": tf.constant([[1.0, 0.0], [0.0, 1.0]]),
        "watch_history": tf.constant([[2, -1], [-1, -1]], tf.int64),
        "labels": tf.ragged.constant([[3], [1, 2]], dtype=tf.int64),
        "seen": tf.ragged.constant([[1], []], dtype=tf.int64),
    }


def test_model_is_scored_by_dot_product_plus_bias():
    scores = ModelScorer(LinearModel()).scores(cases())
    # (1, 0): 1, 0, .5 + .3; (0, 1): 0, 1, .8.
    np.testing.assert_allclose(scores, [[1, 0, 0.8], [0, 1, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_metrics_of_a_model(monkeypatch, chunk_bytes):
    monkeypatch.setattr(retrieval_evaluation, "_CHUNK_BYTES", chunk_bytes)
    got = evaluate(
        ModelScorer(LinearModel()), [cases(), cases()], (1, 2), "retrieval."
    )
    assert got["retrieval.cases"] == 4
    # First user: label 3 is second, first once 1 is removed; second user:
    # label 1 is last of three.
    assert got["retrieval.hit_rate_at_1"] == 0.0
    assert got["retrieval.hit_rate_at_2"] == 0.5
    assert got["retrieval.hit_rate_at_1_seen_removed"] == 0.5
    # Average precision: 1/2, and (1/1 + 2/3) / 2 = 5/6; mean 2/3.
    assert got["retrieval.mean_average_precision"] == pytest.approx(2 / 3)


def test_metrics_of_a_baseline_have_the_same_names():
    popularity = evaluate(
        Popularity(np.array([3, 2, 1])), [cases()], (1, 2), "x."
    )
    model = evaluate(ModelScorer(LinearModel()), [cases()], (1, 2), "x.")
    assert popularity.keys() == model.keys()
    # Label 3 is last, label 1 first.
    assert popularity["x.hit_rate_at_1"] == 0.5
