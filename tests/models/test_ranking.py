"""The ranking model against closed forms, NumPy and what must not matter."""

import json
import math

import numpy as np
import pytest

from models.keras_setup import keras, tf
from models.ranking import RankingModel
from models.ranking_inputs import embedding_dim
from schemas.errors import ArtifactError, UsageError
from schemas.features import FeatureSet
from schemas.model_config import ExpertsConfig, RankingConfig
from tests.models.tiny_ranking import (
    CONFIG,
    EXPERTS,
    FEATURES,
    LABELS,
    LINEAR,
    SIZES,
    C,
    both,
    gradients,
    make_batch,
    make_model,
    naive_logits,
    sigmoid,
    spread,
)


@pytest.mark.parametrize("config", [CONFIG, EXPERTS, LINEAR])
def test_predictions_equal_the_naive_model(config):
    model, batch = spread(make_model(config)), make_batch()
    outputs = model.predict(batch)
    named = {"expected_watch_time_s", "score", *config.tasks}
    assert set(outputs) == named
    unknown = model.position_bias.logits.numpy()[0]
    for b, count in enumerate((3, 1, 2, 0)):
        for c in range(C):
            got = {k: float(v[b, c]) for k, v in outputs.items()}
            if c >= count:
                assert got == dict.fromkeys(got, 0.0)
                continue
            z = naive_logits(model, batch, b, c)
            bias = unknown[
                int(batch["user_device"][b]), int(batch["surface"][b])
            ]
            expected = {
                "expected_watch_time_s": 10.0 * math.exp(z["watch_time"]),
                "clicked": sigmoid(z["clicked"] + bias),
                "liked": sigmoid(z["liked"]),
            }
            if config is EXPERTS:
                expected["rating"] = math.log1p(math.exp(z["rating"]))
            expected["score"] = math.prod(
                expected[n] ** power
                for n, power in config.score_weights.items()
            )
            assert got == pytest.approx(expected, rel=1e-5)


def test_loss_equals_the_naive_sum_over_impressions():
    model, batch = spread(make_model()), make_batch()
    bias = model.position_bias.logits.numpy()[0]
    total = dict.fromkeys(model.heads, 0.0)
    for b, count in enumerate((3, 1, 2, 0)):
        for c in range(count):
            z = naive_logits(model, batch, b, c)
            z["clicked"] += bias[
                int(batch["user_device"][b]), int(batch["surface"][b])
            ]
            units = float(batch["watch_time_s"][b, c]) / 10.0
            p = sigmoid(z["watch_time"])
            total["watch_time"] -= units * math.log(p) + math.log(1 - p)
            for task in ("clicked", "liked"):
                label, p = float(batch[task][b, c]), sigmoid(z[task])
                if not math.isnan(label):
                    total[task] -= math.log(p if label else 1 - p)
    config = CONFIG.model_copy(update={"task_weights": {"liked": 3.0}})
    weighted = spread(make_model(config))
    for kind, factor in ((model, 1.0), (weighted, 3.0)):
        loss, parts = kind.compute_loss(
            batch, training=False, global_batch_size=8
        )
        want = total["watch_time"] + total["clicked"] + factor * total["liked"]
        assert float(loss) == pytest.approx(want / 8, rel=1e-5)
        assert {k: float(v) for k, v in parts.items()} == pytest.approx(
            {f"{k}_loss": v / 8 for k, v in total.items()}, rel=1e-5
        )


def test_ratings_alone_are_learnt_to_their_mean():
    config = RankingConfig(
        tasks=("rating",),
        task_weights={"watch_time": 0.0},
        score_weights={"rating": 1.0},
        hidden_units=(4,),
        max_embedding_dim=2,
    )
    model, batch = make_model(config), alike_impressions()
    # Nine impressions are rated: 20 / 9, and one is not.
    rated = [[1, 5, 9], [2, 3, 9], [1, 1, 9], [4, math.nan, 9], [2, 1, 9]]
    batch["rating"] = tf.constant(rated, tf.float32)
    train_to_the_end(model, batch)
    found = model.predict(batch)
    np.testing.assert_allclose(found["rating"][:, :2], 20 / 9, rtol=1e-3)
    np.testing.assert_allclose(found["score"], found["rating"], rtol=1e-6)


def copy_weights(parts):
    """Gives each first of a pair the weights of the second."""
    for mine, theirs in parts:
        for a, b in zip(mine.variables, theirs.variables, strict=True):
            a.assign(b)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_one_expert_is_the_model_without_experts(dropout):
    # One expert's softmax is 1: the layers follow each other, and drop alike.
    update = {"hidden_units": (7, 5, 4), "dropout": dropout}
    plain = spread(make_model(CONFIG.model_copy(update=update)))
    one = ExpertsConfig(number=1, units=(5, 4), gate_dropout=0.9)
    update = {"hidden_units": (7,), "dropout": dropout, "experts": one}
    model = spread(make_model(CONFIG.model_copy(update=update)), seed=8)
    layers = [*model.tower.layers, *model.experts.towers[0].layers]
    pairs = zip(plain.tower.layers, layers, strict=True)
    parts = [(model.embeddings, plain.embeddings)]
    parts += [(model.head, plain.head), *((b, a) for a, b in pairs)]
    parts += [(model.position_bias, plain.position_bias)]
    copy_weights(parts)
    batch = make_batch()
    for name, value in plain.predict(batch).items():
        np.testing.assert_allclose(model.predict(batch)[name], value, 1e-6)
    loss, _ = gradients(plain, batch, training=True, step=6)
    same, _ = gradients(model, batch, training=True, step=6)
    assert same == pytest.approx(loss, rel=1e-6)


def test_alike_experts_by_uniform_gates_are_one_expert():
    # Whatever is dropped, a mean of equal experts is that expert.
    model = spread(make_model(EXPERTS))
    model.experts.gate.kernel.assign(tf.zeros_like(model.experts.gate.kernel))
    first, *others = model.experts.towers
    copy_weights([(tower, first) for tower in others])
    one = EXPERTS.model_copy(
        update={"experts": ExpertsConfig(number=1, units=(6, 4))}
    )
    single, batch = spread(make_model(one)), make_batch()
    parts = [(single.embeddings, model.embeddings), (single.tower, model.tower)]
    parts += [(single.head, model.head), (single.experts.towers[0], first)]
    parts += [(single.position_bias, model.position_bias)]
    copy_weights(parts)
    loss, _ = gradients(model, batch, training=True, step=2)
    same, _ = gradients(single, batch, training=True, step=2)
    assert same == pytest.approx(loss, rel=1e-5)


def test_each_task_moves_its_own_gate_and_every_expert():
    config = EXPERTS.model_copy(
        update={"experts": ExpertsConfig(number=3, units=(6,), gate_dropout=0)}
    )
    model, batch = spread(make_model(config)), make_batch((C,) * 4)
    for task, head in enumerate(model.heads):
        with tf.GradientTape() as tape:
            _, parts = model.compute_loss(batch, global_batch_size=1)
            loss = parts[f"{head}_loss"]
        kernels = [t.layers[0].kernel for t in model.experts.towers]
        gate, *of_experts = tape.gradient(
            loss, [model.experts.gate.kernel, *kernels]
        )
        moved = np.abs(gate.numpy()).sum(axis=0).reshape(-1, 3)
        assert (moved[task] > 0).all()
        np.testing.assert_array_equal(np.delete(moved, task, axis=0), 0.0)
        assert all(np.abs(g.numpy()).sum() > 0 for g in of_experts)


def alike_impressions():
    """Five requests of two impressions with all features equal."""
    batch = make_batch((2,) * 5)
    batch = {k: tf.repeat(v[:1], 5, axis=0) for k, v in batch.items()}
    for name in ("video", "topics", "duration_s"):
        batch[name] = tf.repeat(batch[name][:, :1], C, axis=1)
    batch["clicked"] = tf.constant(
        [[1, 0, 9], [0, 0, 9], [1, 0, 9], [1, 0, 9], [0, 0, 9]], tf.float32
    )
    batch["watch_time_s"] = tf.constant(
        [[40, 3, 9], [0, 2, 9], [25, 0, 9], [10, 4, 9], [0, 6, 9]], tf.float32
    )
    return batch


def train_to_the_end(model, batch):
    variables = [*model.table_variables, *model.dense_variables]
    optimizer = keras.optimizers.Adam(0.03, jit_compile=False)
    optimizer.build(variables)

    @tf.function
    def train(steps):
        for _ in tf.range(steps):
            with tf.GradientTape() as tape:
                loss, _ = model.compute_loss(batch, global_batch_size=5)
            found = tape.gradient(loss, variables)
            optimizer.apply_gradients(
                [
                    (g, v)
                    for g, v in zip(found, variables, strict=True)
                    if g is not None
                ]
            )

    train(tf.constant(400))


@pytest.mark.parametrize(
    ("objective", "output", "seconds"),
    [
        # All ten: (40 + 3 + 2 + 25 + 10 + 4 + 6) / 10 = 90 / 10.
        ("expected_watch_time", "expected_watch_time_s", 9.0),
        # Clicked ones over the unclicked: (40 + 25 + 10) / (10 - 3).
        ("paper", "watch_time_odds", 75 / 7),
    ],
)
def test_trained_to_the_end_the_odds_are_the_closed_form(
    objective, output, seconds
):
    config = RankingConfig(
        objective=objective,
        hidden_units=(4,),
        max_embedding_dim=2,
        watch_time_unit_s=7.0,
        score_weights={output: 1.0},
    )
    model, batch = make_model(config, positions=False), alike_impressions()
    train_to_the_end(model, batch)
    outputs = model.predict(batch)
    np.testing.assert_allclose(outputs[output][:, :2], seconds, rtol=1e-3)
    # Three clicks of ten impressions.
    np.testing.assert_allclose(outputs["clicked"][:, :2], 0.3, rtol=1e-3)


@both
def test_padding_changes_neither_loss_nor_gradients(config):
    model, batch = spread(make_model(config)), make_batch()
    padded = np.arange(C) >= batch["candidate_count"].numpy()[:, None]
    garbage = dict(batch)
    for name in ("video", "position", "clicked", "watch_time_s", "liked"):
        value = 1 if batch[name].dtype == tf.int64 else 77.0
        garbage[name] = tf.where(
            padded, tf.cast(value, batch[name].dtype), batch[name]
        )
    garbage["duration_s"] = tf.where(
        padded[..., None], math.nan, batch["duration_s"]
    )
    garbage["topics"] = tf.where(
        padded[..., None], tf.constant(5, tf.int64), batch["topics"]
    )
    loss, found = gradients(model, batch, training=True, step=4)
    same, same_found = gradients(model, garbage, training=True, step=4)
    assert same == loss
    for a, b in zip(found, same_found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.abs(g).sum() > 0 for g in found)


def test_unknown_ids_and_padding_get_no_gradient():
    model, batch = spread(make_model()), make_batch()
    _, found = gradients(model, batch)
    for gradient in found[: len(model.table_variables)]:
        np.testing.assert_array_equal(gradient[0], 0.0)


def test_position_moves_the_click_logit_in_training_alone():
    config = CONFIG.model_copy(update={"position_dropout": 0.0})
    model, batch = spread(make_model(config)), make_batch()
    moved = {**batch, "position": (batch["position"] + 1) % 4}
    for name, value in model.predict(batch).items():
        np.testing.assert_array_equal(value, model.predict(moved)[name])
    without = {k: v for k, v in batch.items() if k != "position"}
    model.predict(without)
    _, parts = model.compute_loss(batch, training=True, global_batch_size=1)
    _, other = model.compute_loss(moved, training=True, global_batch_size=1)
    assert float(parts["clicked_loss"]) != float(other["clicked_loss"])
    for name in ("watch_time_loss", "liked_loss"):
        assert float(parts[name]) == float(other[name])


@pytest.mark.parametrize("missing", ["user_device", "surface"])
def test_position_bias_of_a_log_without_a_place(missing):
    features = FeatureSet(tuple(f for f in FEATURES if f.name != missing))
    model = RankingModel(
        features, SIZES, CONFIG, 3, labels=LABELS, positions=True
    )
    # Devices 3, surfaces 2, each with the unknown; of a missing one that alone.
    shape = {"user_device": (101, 1, 3), "surface": (101, 4, 1)}[missing]
    assert tuple(model.position_bias.logits.shape) == shape
    model.position_bias.logits.assign(
        np.arange(math.prod(shape)).reshape(shape)
    )
    batch = make_batch((C,) * 4)
    batch.pop(missing)
    found = model._bias(batch, model._slots(batch)).numpy()
    # Position 0 is not known: the logit is the other place's id.
    other = {"user_device": "surface", "surface": "user_device"}[missing]
    np.testing.assert_array_equal(found, np.repeat(batch[other], C))


def test_request_without_candidate_count_scores_every_slot():
    model = spread(make_model())
    batch = make_batch((C,) * 4)
    features = {f.name: batch[f.name] for f in FEATURES}
    for name, value in model.predict(batch).items():
        np.testing.assert_array_equal(model.predict(features)[name], value)


def test_a_score_of_many_small_probabilities_does_not_vanish():
    config = CONFIG.model_copy(
        update={"score_weights": {"clicked": 0.5, "liked": 0.5}}
    )
    model = make_model(config, positions=False)
    model.head.kernel.assign(tf.zeros_like(model.head.kernel))
    # e^-100 is no float32 (the least is 1e-45), its root e^-50 is.
    model.head.bias.assign([0.0, -100.0, 0.0])
    score = model.predict(make_batch((C,)))["score"]
    want = math.exp(-50) * math.sqrt(0.5)
    np.testing.assert_allclose(score, want, rtol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, EXPERTS, LINEAR])
def test_saved_and_loaded_predictions_are_equal(config, tmp_path):
    model, batch = spread(make_model(config)), make_batch()
    model.save(str(tmp_path / "model"))
    loaded = RankingModel.load(str(tmp_path / "model"))
    for name, value in model.predict(batch).items():
        np.testing.assert_array_equal(loaded.predict(batch)[name], value)
    loss, found = gradients(model, batch, training=True, step=3)
    again, again_found = gradients(loaded, batch, training=True, step=3)
    assert again == loss
    for a, b in zip(found, again_found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_incomplete_model_is_refused(tmp_path):
    folder = tmp_path / "model"
    make_model().save(str(folder))
    saved = json.loads((folder / "model.json").read_text())
    saved["positions"] = False
    (folder / "model.json").write_text(json.dumps(saved))
    with pytest.raises(ArtifactError, match="no complete ranking model"):
        RankingModel.load(str(folder))
    with pytest.raises(ArtifactError, match="no complete ranking model"):
        RankingModel.load(str(tmp_path / "nothing"))


def test_a_click_model_has_no_watch_time_head():
    config = RankingConfig(
        tasks=("clicked",),
        task_weights={"watch_time": 0.0},
        score_weights={"clicked": 1.0},
    )
    model, batch = make_model(config), make_batch()
    outputs = model.predict(batch)
    assert set(outputs) == {"clicked", "score"}
    np.testing.assert_allclose(outputs["score"], outputs["clicked"], 1e-6)
    _, parts = model.compute_loss(batch, global_batch_size=1)
    assert set(parts) == {"clicked_loss"}


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"tasks": ("clicked", "shared")}, "clicked, liked, rating; received"),
        ({"tasks": ("watch_time_s",)}, "clicked, liked, rating; received"),
        ({"tasks": ("clicked", "clicked")}, "different names"),
        ({"task_weights": {"likes": 1.0}}, "received 'likes'"),
        ({"task_weights": {"liked": -1.0}}, "received 'liked': -1.0"),
        ({"score_weights": {"watch_time_odds": 1.0}}, "expected_watch_time_s"),
        ({"score_weights": {}}, "received {}"),
        (
            {"task_weights": {"watch_time": 0.0}},
            "clicked, liked; received .*expected_watch_time_s",
        ),
    ],
)
def test_names_that_do_not_exist_are_refused(update, message):
    with pytest.raises(UsageError, match=message):
        make_model(CONFIG.model_copy(update=update))


def test_missing_vocabulary_sizes_are_refused():
    with pytest.raises(ValueError, match="a vocabulary size for each of"):
        RankingModel(
            FEATURES, {"video": 3}, CONFIG, 1, labels=LABELS, positions=True
        )


def test_embedding_dim_grows_with_the_logarithm():
    # 2 ceil(log2(V + 1)): 2 log2(2), 2 log2(4), 2 ceil(log2(7472) = 12.9).
    assert embedding_dim(1, 64) == 2
    assert embedding_dim(3, 64) == 4
    assert embedding_dim(7471, 64) == 26
    assert embedding_dim(7471, 16) == 16
    # An empty vocabulary still has the zero vector of the unknown.
    assert embedding_dim(0, 64) == 1


def test_initial_values_follow_from_the_seed():
    models = [make_model(seed=3), make_model(seed=3), make_model(seed=4)]
    weights = [
        np.concatenate([v.numpy().ravel() for v in m.dense_variables])
        for m in models
    ]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()
