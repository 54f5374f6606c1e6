"""The whole step: compiled as not compiled, and the fused dense Adam."""

import numpy as np
import pytest

from models.keras_setup import keras, tf
from models.optimizers import DenseAdam
from models.retrieval import RetrievalModel
from models.training_step import TrainingStep
from schemas.features import Feature, FeatureSet
from schemas.model_config import RetrievalConfig

FEATURES = FeatureSet(
    (
        Feature("watch_history", "bag", "query", "video", 6),
        Feature("user_region", "categorical", "query", "region"),
    )
)
VIDEOS = 50
CONFIG = RetrievalConfig(
    embedding_dim=8,
    recency_bags=(6, 2, 1),
    hidden_units=(16,),
    dropout=0.3,
    num_negatives=20,
    batch_size=16,
    table_learning_rate=0.05,
)


def batch(number: int) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(number)
    return {
        "watch_history": tf.constant(rng.integers(-1, VIDEOS + 1, (16, 6))),
        "user_region": tf.constant(rng.integers(0, 4, 16)),
        "label": tf.constant(rng.integers(1, VIDEOS + 1, 16)),
        "example_weight": tf.constant(1 + rng.random(16), tf.float32),
        "example_index": tf.range(16, dtype=tf.int64),
    }


def trained(jit: bool, **changes: object) -> list[np.ndarray]:
    config = CONFIG.model_copy(update=changes)
    model = RetrievalModel(
        FEATURES,
        {"video": VIDEOS, "region": 3},
        config,
        seed=3,
        example_age=False,
        label_counts=np.arange(VIDEOS),
    )
    step = TrainingStep(model, config)
    run = tf.function(step, jit_compile=jit)
    losses = [
        run(batch(i), tf.constant(i, tf.int64))[0].numpy() for i in range(4)
    ]
    weights = [*model.table_variables, *model.dense_variables]
    return [np.array(losses), *(w.numpy() for w in weights)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"table_optimizer": "lazy_adam", "sampler": "unigram"},
        {"negatives": "list_wise", "sampler": "uniform", "temperature": 0.1},
        {"negatives": "mixed"},
    ],
)
def test_xla_compiles_the_step_and_trains_the_same(changes: dict) -> None:
    plain, compiled = trained(False, **changes), trained(True, **changes)
    # Other orders of addition; other draws or lost rows would differ by 1e-2.
    for found, expected in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_dense_adam_is_keras_s_adam() -> None:
    start = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found, expected = tf.Variable(start), tf.Variable(start)
    ours = DenseAdam(0.01)
    theirs = keras.optimizers.Adam(0.01, jit_compile=False)
    for i in range(5):
        gradient = tf.random.stateless_normal([4, 3], seed=[i, 1])
        ours.apply_gradients([(gradient, found)])
        theirs.apply_gradients([(gradient, expected)])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found.numpy() - start).max() > 0.01
