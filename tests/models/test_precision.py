"""Training in 16 bits beside float32; loss scaling by hand numbers."""

import numpy as np
import pytest

from models.keras_setup import keras, tf
from models.loss_scale import LossScale, all_finite
from models.optimizers import DenseAdam, LazyAdam, RowwiseAdagrad
from models.precision import compute_dtype, dense
from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from models.training_step import TrainingStep
from schemas.features import Feature, FeatureSet
from schemas.model_config import ExpertsConfig, RankingConfig, RetrievalConfig

REQUESTS, C = 16, 4
SIZES = {"video": 30, "region": 3}
FEATURES = FeatureSet(
    (
        Feature("watch_history", "bag", "query", "video", 6),
        Feature("user_region", "categorical", "query", "region"),
        Feature("recent_watches", "continuous", "request", unit="watches"),
        Feature("video", "categorical", "candidate", "video"),
        Feature("duration_s", "continuous", "candidate", unit="s"),
    )
)
RANKING = RankingConfig(
    hidden_units=(32, 16),
    dropout=0.1,
    experts=ExpertsConfig(number=2, units=(8,)),
    wide=(("user_region", "video"),),
    learning_rate=0.01,
    table_learning_rate=0.01,
    batch_size=REQUESTS,
)
RETRIEVAL = RetrievalConfig(
    embedding_dim=16,
    recency_bags=(6, 1),
    hidden_units=(32,),
    num_negatives=20,
    table_learning_rate=0.05,
    learning_rate=0.01,
    batch_size=REQUESTS,
)
SIXTEEN = ("mixed_bfloat16", "mixed_float16")


def batch(number: int) -> dict[str, tf.Tensor]:
    """Video 1 to 5 are clicked, and the next watch is the last one's double."""
    rng = np.random.default_rng(number)
    history = rng.integers(1, 16, (REQUESTS, 6))
    video = rng.integers(1, 31, (REQUESTS, C))
    clicked = (video <= 5).astype(np.float32)
    values = {
        "watch_history": history,
        "user_region": rng.integers(0, 4, REQUESTS),
        "recent_watches": rng.random((REQUESTS, 4), np.float32),
        "video": video,
        "duration_s": rng.random((REQUESTS, C, 4), np.float32),
        "candidate_count": np.full(REQUESTS, C),
        "position": rng.integers(1, 5, (REQUESTS, C)),
        "clicked": clicked,
        "watch_time_s": clicked * 90,
        "label": history[:, 0] * 2,
        "example_weight": np.ones(REQUESTS, np.float32),
        "example_index": np.arange(REQUESTS),
    }
    return {name: tf.constant(value) for name, value in values.items()}


def make_model(which: str, precision: str) -> tuple:
    if which == "retrieval":
        section = RETRIEVAL.model_copy(update={"precision": precision})
        return section, RetrievalModel(
            FEATURES, SIZES, section, 3, example_age=False
        )
    section = RANKING.model_copy(update={"precision": precision})
    labels = ("clicked", "watch_time_s")
    return section, RankingModel(
        FEATURES, SIZES, section, 3, labels=labels, positions=True
    )


def weights(model) -> list[tf.Variable]:
    return [*model.table_variables, *model.dense_variables]


def trained(which: str, precision: str, steps: int = 20) -> tuple:
    """The losses of so many steps, and the model after them."""
    section, model = make_model(which, precision)
    step = TrainingStep(model, section)
    run = tf.function(step)
    losses = [
        float(run(batch(i), tf.constant(i, tf.int64))[0]) for i in range(steps)
    ]
    return losses, model, step


@pytest.fixture(scope="module")
def plain() -> dict[str, list[float]]:
    return {w: trained(w, "float32")[0] for w in ("ranking", "retrieval")}


@pytest.mark.parametrize("which", ["ranking", "retrieval"])
@pytest.mark.parametrize(
    ("precision", "tolerance"),
    # 8 and 11 bits: errors of up to 1/512 and 1/4096 in each number, which 20
    # steps at a high rate carry on.
    [("mixed_bfloat16", 0.02), ("mixed_float16", 0.01)],
)
def test_losses_of_20_steps_are_near_those_of_float32(
    plain, which: str, precision: str, tolerance: float
) -> None:
    losses, model, step = trained(which, precision)
    np.testing.assert_allclose(losses, plain[which], rtol=tolerance)
    # Not because 16 bits were not used, nor because nothing was learnt.
    assert np.abs(np.subtract(losses, plain[which])).max() > 1e-6
    assert losses[-1] < 0.9 * losses[0]
    kept = [*step.tables.variables, *step.dense.variables]
    dtypes = {v.dtype for v in [*weights(model), *kept]}
    assert dtypes - {tf.int64} == {tf.float32}


@pytest.mark.parametrize("which", ["ranking", "retrieval"])
@pytest.mark.parametrize("precision", SIXTEEN)
def test_what_is_not_training_is_float32_to_the_bit(
    which: str, precision: str
) -> None:
    (_, half), (_, full) = (
        make_model(which, precision),
        make_model(which, "float32"),
    )
    given = batch(0)
    if which == "ranking":
        found, expected = half.predict(given), full.predict(given)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
        return
    np.testing.assert_array_equal(
        half.query_embedding(given), full.query_embedding(given)
    )


def test_a_layer_is_computed_in_its_dtype_from_float32_weights() -> None:
    layer = keras.layers.Dense(1, "relu", kernel_initializer="ones")
    layer.build([None, 2])
    # 256 + 1 has nine bits: bfloat16 has eight, float16 eleven.
    given = tf.constant([[256.0, 1.0]])
    for dtype, wanted in (
        (tf.bfloat16, 256.0),
        (tf.float16, 257.0),
        (tf.float32, 257.0),
    ):
        found = dense(layer, given, dtype)
        assert found.dtype == dtype
        assert float(found[0, 0]) == wanted
    assert layer.kernel.dtype == tf.float32
    assert compute_dtype("mixed_bfloat16", training=False) == tf.float32


def test_float16_gradients_vanish_without_the_scale() -> None:
    layer = keras.layers.Dense(1, kernel_initializer="ones")
    layer.build([None, 1])
    scale = LossScale()

    def gradient(factor: float) -> float:
        with tf.GradientTape() as tape:
            outputs = dense(layer, tf.constant([[1.0]]), tf.float16)
            # Below float16's least number, 6e-8.
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32)) * 1e-8
            loss *= factor
        return float(tape.gradient(loss, layer.kernel)[0, 0])

    assert gradient(1.0) == 0.0
    scaled = gradient(float(scale.scaled(tf.constant(1.0))))
    (found,) = scale.unscaled([tf.constant(scaled)])
    assert float(found) == pytest.approx(1e-8, rel=1e-3)


def test_the_scale_is_halved_at_once_and_doubled_in_time() -> None:
    scale = LossScale(first=8.0, patience=3)
    seen = []
    for finite in (True, True, False, True, True, True, True, False):
        scale.update(tf.constant(finite))
        seen.append((float(scale.scale), float(scale.good_steps)))
    assert seen == [
        *((8, 1), (8, 2), (4, 0)),
        *((4, 1), (4, 2), (8, 0), (8, 1), (4, 0)),
    ]


def test_finite_means_all_rows_and_all_weights() -> None:
    rows = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([0, 3]))
    assert bool(all_finite([rows, tf.constant([1.0])]))
    bad = tf.IndexedSlices(tf.constant([[1.0], [np.nan]]), rows.indices)
    assert not bool(all_finite([bad, tf.constant([1.0])]))
    assert not bool(all_finite([rows, tf.constant([np.inf])]))


@pytest.mark.parametrize("rule", [DenseAdam, LazyAdam, RowwiseAdagrad])
def test_an_optimiser_that_skips_changes_neither_weights_nor_moments(
    rule,
) -> None:
    variable = tf.Variable(np.ones((3, 2), np.float32))
    optimizer = rule(0.1)
    optimizer.build([variable])

    @tf.function
    def step(applies: tf.Tensor) -> None:
        gradient = tf.ones([3, 2])
        if rule is not DenseAdam:
            shape = tf.constant([3, 2])
            gradient = tf.IndexedSlices(gradient, tf.range(3), shape)
        optimizer.applies = applies
        optimizer.apply_gradients([(gradient, variable)])

    def state() -> list[np.ndarray]:
        kept = [v.numpy() for v in optimizer.variables if v.dtype == tf.float32]
        return [variable.numpy(), *kept]

    step(tf.constant(True))
    before = state()
    assert (before[0] < 1.0).all()
    step(tf.constant(False))
    for found, expected in zip(state(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    step(tf.constant(True))
    assert (state()[0] < before[0]).all()


@pytest.mark.parametrize(
    ("which", "jit"), [("ranking", False), ("retrieval", True)]
)
def test_a_step_that_overflows_is_left_out(which: str, jit: bool) -> None:
    section, model = make_model(which, "mixed_float16")
    step = TrainingStep(model, section)
    assert step.loss_scale is not None
    # Gradients of 2^-8 and more are then beyond float16's 65,504.
    scale = 2.0**24
    step.loss_scale.scale.assign(scale)
    run, seen = tf.function(step, jit_compile=jit), []
    for i in range(12):
        before = [w.numpy() for w in weights(model)]
        loss, _ = run(batch(i), tf.constant(i, tf.int64))
        assert np.isfinite(loss)
        moved = any(
            (w.numpy() != b).any()
            for w, b in zip(weights(model), before, strict=True)
        )
        # Halved exactly where nothing moved.
        scale = scale if moved else scale / 2
        assert float(step.loss_scale.scale) == scale
        assert all(np.isfinite(w.numpy()).all() for w in weights(model))
        seen.append(moved)
    assert not seen[0] and any(seen)
