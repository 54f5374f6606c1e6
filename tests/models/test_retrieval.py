"""The retrieval model against NumPy, and its saving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.keras_setup import tf
from models.retrieval import RetrievalModel
from schemas.errors import ArtifactError
from schemas.features import Feature, FeatureSet
from schemas.model_config import RetrievalConfig, SequenceConfig, TowerConfig

FEATURES = FeatureSet(
    (
        Feature("watch_history", "bag", "query", "video", 6),
        Feature("search_tokens", "bag", "query", "token", 5),
        Feature("user_region", "categorical", "query", "region"),
        Feature("user_age", "continuous", "query"),
        # Not of the query: no part of this model.
        Feature("duration_s", "continuous", "candidate"),
    )
)
SIZES = {"video": 30, "token": 12, "region": 4}
CONFIG = RetrievalConfig(
    embedding_dim=8,
    token_dim=5,
    categorical_dim=3,
    recency_bags=(6, 2, 1),
    hidden_units=(16,),
    dropout=0.0,
    num_negatives=20,
)


def build(age: bool = True, **changes: object) -> RetrievalModel:
    config = CONFIG.model_copy(update=changes)
    model = RetrievalModel(FEATURES, SIZES, config, seed=3, example_age=age)
    bias = tf.random.stateless_normal([31], seed=[1, 1])
    model.output_biases.assign(bias)
    return model


def batch(rows: int = 8, seed: int = 0) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(seed)

    def bags(size: int, length: int) -> tf.Tensor:
        ids = rng.integers(0, size + 1, size=(rows, length))
        for row, end in enumerate(rng.integers(0, length + 1, size=rows)):
            ids[row, end:] = -1
        return tf.constant(ids)

    return {
        "watch_history": bags(30, 6),
        "search_tokens": bags(12, 5),
        "user_region": tf.constant(rng.integers(0, 5, size=rows)),
        "user_age": tf.constant(rng.random((rows, 4)), tf.float32),
        "example_age": tf.constant(rng.random(rows), tf.float32),
        "label": tf.constant(rng.integers(1, 31, size=rows)),
        "example_weight": tf.constant(1 + rng.random(rows), tf.float32),
        "example_index": tf.range(rows, dtype=tf.int64),
    }


def numpy_query(model: RetrievalModel, inputs: dict) -> np.ndarray:
    tables = {k: v.numpy() for k, v in model.embeddings.tables.items()}
    values = {k: v.numpy() for k, v in inputs.items()}

    def mean(table: np.ndarray, bag: np.ndarray) -> np.ndarray:
        entries = bag[bag >= 0]
        known = table[entries[entries > 0]].sum(0)
        return known / max(len(entries), 1)

    rows = []
    for i in range(len(values["label"])):
        history = values["watch_history"][i]
        region = values["user_region"][i]
        rows.append(
            np.concatenate(
                [
                    mean(tables["video"], history[:6]),
                    mean(tables["video"], history[:2]),
                    mean(tables["video"], history[:1]),
                    mean(tables["token"], values["search_tokens"][i]),
                    tables["region"][region] * (region > 0),
                    values["user_age"][i],
                    [values["example_age"][i]] if model.example_age else [],
                ]
            )
        )
    hidden, output = model.query_tower.towers[0].layers
    x = np.stack(rows) @ hidden.kernel.numpy() + hidden.bias.numpy()
    return np.maximum(x, 0) @ output.kernel.numpy() + output.bias.numpy()


@pytest.mark.parametrize("age", [True, False])
def test_query_embedding_equals_numpy(age: bool) -> None:
    model, inputs = build(age), batch()
    found = model.query_embedding(inputs)
    np.testing.assert_allclose(found, numpy_query(model, inputs), atol=1e-5)


def test_an_absent_example_age_is_0() -> None:
    model, inputs = build(), batch()
    without = {k: v for k, v in inputs.items() if k != "example_age"}
    zero = {**inputs, "example_age": tf.zeros([8])}
    np.testing.assert_array_equal(
        model.query_embedding(without), model.query_embedding(zero)
    )
    assert not np.allclose(
        model.query_embedding(without), model.query_embedding(inputs)
    )


def test_full_softmax_loss_equals_numpy() -> None:
    model, inputs = build(), batch()
    embeddings, biases = (x.numpy() for x in model.candidates())
    assert embeddings.shape == (30, 8) and biases.shape == (30,)
    logits = numpy_query(model, inputs) @ embeddings.T + biases
    log_z = np.log(np.exp(logits).sum(1))
    labels = inputs["label"].numpy()
    losses = log_z - logits[np.arange(8), labels - 1]
    expected = (losses * inputs["example_weight"].numpy()).sum() / 16
    found, _ = model.full_softmax_loss(inputs, global_batch_size=16)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_compute_loss_equals_numpy_on_the_sampler_s_draw() -> None:
    model, inputs = build(), batch()
    ids = model.negatives.sampler.draw(17).ids.numpy()
    embeddings, biases = (x.numpy() for x in model.candidates())
    p = np.log1p(1 / np.arange(1, 31)) / np.log(31)
    logits = numpy_query(model, inputs) @ embeddings.T + biases
    logits -= np.log(20 * p)
    total = 0.0
    for i, label in enumerate(inputs["label"].numpy()):
        others = [logits[i, j - 1] for j in ids if j != label]
        own = logits[i, label - 1]
        loss = np.log(np.exp([own, *others]).sum()) - own
        total += loss * float(inputs["example_weight"][i])
    found, metrics = model.compute_loss(inputs, step=17, global_batch_size=32)
    np.testing.assert_allclose(found, total / 32, rtol=1e-5)
    assert metrics == {}
    uncorrected = build(logq_correction=False)
    other, _ = uncorrected.compute_loss(inputs, step=17, global_batch_size=32)
    assert abs(float(other) - total / 32) > 1e-3


SEQUENCE = SequenceConfig(length=6, layers=1, heads=2, dropout=0.0)


def test_the_loss_of_every_moment_is_that_of_the_history_rolled_back() -> None:
    model, inputs = build(sequence=SEQUENCE), batch()
    alone = RetrievalModel(
        FEATURES,
        SIZES,
        model.config.model_copy(
            update={
                "sequence": SEQUENCE.model_copy(update={"every_moment": False})
            }
        ),
        seed=3,
        example_age=True,
    )
    alone.output_biases.assign(model.output_biases)
    history, labels = inputs["watch_history"].numpy(), inputs["label"].numpy()
    total = 0.0
    for j in range(6):
        # Moment j as an example of its own: its label is the watch after it,
        # searches are not known yet, and an unknown label teaches nothing.
        label = history[:, j - 1] if j else labels
        rolled = np.pad(history[:, j:], [(0, 0), (0, j)], constant_values=-1)
        tokens = inputs["search_tokens"]
        before = {
            **inputs,
            "watch_history": tf.constant(rolled),
            "search_tokens": tf.fill(tokens.shape, tf.constant(-1, tf.int64))
            if j
            else tokens,
            "label": tf.constant(np.maximum(label, 1)),
            "example_weight": inputs["example_weight"]
            * tf.constant(label > 0, tf.float32),
        }
        total += alone.compute_loss(before, step=17, global_batch_size=8)[0]
    found, _ = model.compute_loss(inputs, step=17, global_batch_size=8)
    np.testing.assert_allclose(found, total / 6, rtol=1e-5)
    full, _ = model.full_softmax_loss(inputs, global_batch_size=8)
    assert abs(float(full) - float(found)) > 1e-3


def test_beside_each_other_tower_and_encoder_learn_for_themselves() -> None:
    beside = SEQUENCE.model_copy(update={"place": "beside"})
    model, inputs = build(sequence=beside, num_negatives=50), batch()
    queries = model.query_embedding(inputs).numpy()
    embeddings, biases = (x.numpy() for x in model.candidates())
    assert queries.shape == (8, 16) and embeddings.shape == (30, 16)
    # The score of serving: both dot products, both biases.
    own = model.output_biases.numpy()[1:]
    np.testing.assert_allclose(biases, 2 * own, rtol=1e-6)
    every = model.query_tower.of_each_moment(inputs).numpy()
    np.testing.assert_allclose(every[:, 0], queries, atol=1e-5)
    # Full softmax, moment by moment, each half with its half of the table.
    history, labels = inputs["watch_history"].numpy(), inputs["label"].numpy()
    total = 0.0
    for i in range(8):
        for j in range(6):
            label = history[i, j - 1] if j else labels[i]
            if label < 1:
                continue
            for half in (slice(0, 8), slice(8, 16)):
                logits = embeddings[:, half] @ every[i, j, half] + own
                loss = np.log(np.exp(logits).sum()) - logits[label - 1]
                total += loss * float(inputs["example_weight"][i]) / 6
    found, _ = model.full_softmax_loss(inputs, global_batch_size=8)
    np.testing.assert_allclose(found, total / 8, rtol=1e-5)
    # Nothing that the tower learns moves the encoder.
    with tf.GradientTape() as tape:
        first = tf.reduce_sum(model.query_embedding(inputs)[:, :8])
    encoder = model.query_tower.sequence.trainable_variables
    shared = model.embeddings.tables["video"]
    gradients = tape.gradient(first, [*encoder, shared])
    assert not any(np.any(g) for g in gradients[:-1])
    assert np.any(tf.convert_to_tensor(gradients[-1]))


MORE = (
    TowerConfig(),
    TowerConfig(embedding_dim=4, recency_bags=(2, 5), hidden_units=()),
    TowerConfig(recency_bags=()),
)
# Of u, and of the tables: 8, 8, 4 and 8.
COLUMNS = [slice(0, 8), slice(8, 16), slice(16, 20), slice(20, 28)]


def alone(model: RetrievalModel, which: int) -> RetrievalModel:
    """A model of one tower, with the weights of one of several."""
    section = model.config.towers[which]
    changes = section.model_dump(exclude={"sequence", "more_towers"})
    one = build(**changes)
    for space, table in one.embeddings.tables.items():
        width = int(table.shape[1])
        columns = slice(which * width, (which + 1) * width)
        if space == "video":
            columns = COLUMNS[which]
        table.assign(model.embeddings.tables[space][:, columns])
    one.output_embeddings.assign(model.output_embeddings[:, COLUMNS[which]])
    ours = model.query_tower.towers[which].trainable_variables
    for old, new in zip(ours, one.dense_variables, strict=True):
        new.assign(old)
    return one


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_towers_side_by_side_are_models_whose_scores_add_up(
    pooling: str,
) -> None:
    model, inputs = build(more_towers=MORE, pooling=pooling), batch()
    # Those that began alike would stay alike.
    first, second, *_ = (t.layers[0].kernel for t in model.query_tower.towers)
    assert not np.allclose(first, second)
    queries = model.query_embedding(inputs)
    embeddings, biases = model.candidates()
    scores, losses = np.zeros([8, 30]), 0.0
    for which in range(4):
        one = alone(model, which)
        own = one.query_embedding(inputs)
        np.testing.assert_allclose(own, queries[:, COLUMNS[which]], atol=1e-6)
        v, b = one.candidates()
        scores += own.numpy() @ v.numpy().T + b.numpy()
        losses += float(one.compute_loss(inputs, global_batch_size=8)[0])
    together = queries.numpy() @ embeddings.numpy().T + biases.numpy()
    np.testing.assert_allclose(together, scores, rtol=1e-4, atol=1e-5)
    # The same negatives for all, drawn once.
    found, _ = model.compute_loss(inputs, global_batch_size=8)
    np.testing.assert_allclose(found, losses, rtol=1e-5)


def test_a_tower_learns_by_its_own_scores_alone() -> None:
    model, inputs = build(more_towers=MORE), batch()
    table = model.embeddings.tables["video"]
    with tf.GradientTape() as tape:
        second = tf.reduce_sum(model.query_embedding(inputs)[:, COLUMNS[1]])
    others = [
        model.query_tower.towers[i].trainable_variables for i in (0, 2, 3)
    ]
    *of_others, rows = tape.gradient(second, [*others, table])
    flat = [g for tower in of_others for g in tower if g is not None]
    assert not any(np.any(g) for g in flat)
    moved = np.any(tf.convert_to_tensor(rows).numpy(), axis=0)
    assert moved[COLUMNS[1]].all()
    assert not any(moved[COLUMNS[i]].any() for i in (0, 2, 3))


def test_with_many_uniform_draws_the_loss_is_the_full_one() -> None:
    inputs = batch()
    model = build(num_negatives=200_000, sampler="uniform")
    sampled, _ = model.compute_loss(inputs, step=1, global_batch_size=8)
    full, _ = model.full_softmax_loss(inputs, global_batch_size=8)
    # The masked label is 1/30 of the corpus, and its own term is e^o / E with
    # E = 6,667: ln(1 - p_label) is what differs, known from the full softmax.
    queries = numpy_query(model, inputs)
    embeddings, biases = (x.numpy() for x in model.candidates())
    logits = queries @ embeddings.T + biases
    odds = np.exp(logits)
    labels = inputs["label"].numpy() - 1
    own = odds[np.arange(8), labels]
    losses = np.log((odds.sum(1) - own) / own) + np.log(200_000 / 30)
    expected = (losses * inputs["example_weight"].numpy()).mean()
    np.testing.assert_allclose(sampled, expected, rtol=2e-3)
    assert float(full) < float(sampled)


def test_parts_of_a_batch_add_up_to_its_loss() -> None:
    model, whole = build(dropout=0.5), batch()
    total = 0.0
    for part in (slice(0, 3), slice(3, 8)):
        rows = {k: v[part] for k, v in whole.items()}
        total += model.compute_loss(rows, step=5, global_batch_size=8)[0]
    expected, _ = model.compute_loss(whole, step=5, global_batch_size=8)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


@pytest.mark.parametrize("sequence", [None, SEQUENCE])
@pytest.mark.parametrize("pooling", ["mean", "sum", "max"])
def test_sparse_gradients_for_all_tables_and_none_for_row_0(
    pooling: str, sequence: SequenceConfig | None
) -> None:
    model, inputs = build(pooling=pooling, sequence=sequence), batch()
    with tf.GradientTape() as tape:
        loss, _ = model.compute_loss(inputs, step=1, global_batch_size=8)
    for gradient in tape.gradient(loss, model.table_variables):
        assert isinstance(gradient, tf.IndexedSlices)
        assert not np.any(tf.convert_to_tensor(gradient)[0])
    names = {v.ref() for v in (*model.table_variables, *model.dense_variables)}
    assert names == {v.ref() for v in model.trainable_variables}


def test_xla_compiles_the_loss_of_every_moment() -> None:
    model, inputs = build(sequence=SEQUENCE, pooling="max"), batch()
    # Drawn outside: XLA would draw other numbers.
    draw = model.negatives.sampler.draw(17)
    model.negatives.sampler.draw = lambda _: draw

    @tf.function(jit_compile=True)
    def gradients() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss, _ = model.compute_loss(inputs, step=17, global_batch_size=8)
        return loss, tape.gradient(loss, model.dense_variables)

    compiled, found = gradients()
    with tf.GradientTape() as tape:
        loss, _ = model.compute_loss(inputs, step=17, global_batch_size=8)
    np.testing.assert_allclose(compiled, loss, rtol=1e-5)
    expected = tape.gradient(loss, model.dense_variables)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert np.any(other)


@pytest.mark.parametrize(
    "changes", [{}, {"sequence": SEQUENCE}, {"more_towers": MORE}]
)
def test_saving_and_loading(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, inputs = build(**changes), batch()
    folder = str(tmp_path / "model")
    model.save(folder)
    loaded = RetrievalModel.load(folder)
    np.testing.assert_array_equal(
        loaded.query_embedding(inputs), model.query_embedding(inputs)
    )
    for found, expected in zip(
        loaded.candidates(), model.candidates(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    first = {p.name: p.read_bytes() for p in Path(folder).iterdir()}
    loaded.save(folder)
    again = {p.name: p.read_bytes() for p in Path(folder).iterdir()}
    assert first == again


def test_an_incomplete_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Train it"):
        RetrievalModel.load(str(tmp_path))
    build().save(str(tmp_path))
    (tmp_path / "weights.index").unlink()
    with pytest.raises(ArtifactError, match="no complete retrieval model"):
        RetrievalModel.load(str(tmp_path))


def test_a_space_without_a_size_is_named() -> None:
    with pytest.raises(ValueError, match="'video': 3"):
        RetrievalModel(FEATURES, {"video": 3}, CONFIG, 1, example_age=False)


COUNTS = np.arange(30) % 7


def counted(**changes: object) -> RetrievalModel:
    config = CONFIG.model_copy(update=changes)
    return RetrievalModel(
        FEATURES, SIZES, config, 3, example_age=True, label_counts=COUNTS
    )


def test_a_temperature_scores_vectors_of_length_1() -> None:
    model, inputs = build(temperature=0.2), batch()
    u = numpy_query(model, inputs)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = model.output_embeddings.numpy()[1:]
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    np.testing.assert_allclose(model.query_embedding(inputs), u, atol=1e-5)
    embeddings, biases = (x.numpy() for x in model.candidates())
    np.testing.assert_allclose(embeddings, v / 0.2, atol=1e-5)
    # `build` gave the model biases; a cosine has none.
    assert not biases.any()
    logits = u @ v.T / 0.2
    logits -= np.log(20 * np.log1p(1 / np.arange(1, 31)) / np.log(31))
    ids = model.negatives.sampler.draw(4).ids.numpy()
    expected = 0.0
    for i, label in enumerate(inputs["label"].numpy()):
        own = logits[i, label - 1]
        others = [logits[i, j - 1] for j in ids if j != label]
        loss = np.log(np.exp([own, *others]).sum()) - own
        expected += loss * float(inputs["example_weight"][i]) / 8
    found, _ = model.compute_loss(inputs, step=4, global_batch_size=8)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("negatives", ["in_batch", "mixed", "list_wise"])
@pytest.mark.parametrize("corrected", [True, False])
def test_the_kinds_of_negatives_by_hand(
    negatives: str, corrected: bool
) -> None:
    model = counted(
        negatives=negatives,
        sampler="uniform",
        num_negatives=5,
        logq_correction=corrected,
    )
    inputs = batch()
    labels = inputs["label"].numpy()
    share = (COUNTS + 1) / (COUNTS + 1).sum()
    if negatives == "list_wise":
        drawn = model.negatives.sampler.draw_rows(4, 0, 8).ids.numpy()
        times = np.full(30, 5 / 30)
    elif negatives == "mixed":
        drawn = np.tile([*labels, *model.negatives.sampler.draw(4).ids], (8, 1))
        times = 8 * share + 5 / 30
    else:
        drawn, times = np.tile(labels, (8, 1)), 8 * share
    embeddings, biases = (x.numpy() for x in model.candidates())
    logits = numpy_query(model, inputs) @ embeddings.T + biases
    if corrected:
        logits -= np.log(times)
    expected = 0.0
    for i, label in enumerate(labels):
        others = [logits[i, j - 1] for j in drawn[i] if j != label]
        own = logits[i, label - 1]
        loss = np.log(np.exp([own, *others]).sum()) - own
        expected += loss * float(inputs["example_weight"][i]) / 8
    found, _ = model.compute_loss(inputs, step=4, global_batch_size=8)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_loaded_model_serves_without_label_counts(tmp_path: Path) -> None:
    model, inputs = counted(sampler="unigram"), batch()
    model.compute_loss(inputs, step=1, global_batch_size=8)
    model.save(str(tmp_path))
    loaded = RetrievalModel.load(str(tmp_path))
    np.testing.assert_array_equal(
        loaded.query_embedding(inputs), model.query_embedding(inputs)
    )
    with pytest.raises(ValueError, match="label_counts"):
        loaded.compute_loss(inputs, step=1, global_batch_size=8)
    # Uncorrected, the batch's own labels need no counts, nor a sampler.
    plain = build(
        sampler="unigram", negatives="in_batch", logq_correction=False
    )
    plain.compute_loss(inputs, step=1, global_batch_size=8)
