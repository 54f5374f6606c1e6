"""The ranking model's dropout: of units, positions, gates and embeddings."""

import numpy as np
import pytest

from models import ranking_inputs
from models.keras_setup import tf
from models.request_dropout import kept_embeddings, kept_units
from tests.models.tiny_ranking import (
    CONFIG,
    EXPERTS,
    C,
    both,
    gradients,
    make_batch,
    make_model,
    naive_logits,
    spread,
)


def test_gate_dropout_is_drawn_in_training_alone():
    model, batch = spread(make_model(EXPERTS)), make_batch((C,) * 4)
    losses = {gradients(model, batch, training=True, step=s)[0] for s in (1, 2)}
    still = {gradients(model, batch, training=False, step=s)[0] for s in (1, 2)}
    assert len(losses) == 2
    assert len(still) == 1
    assert not losses & still


@both
def test_two_halves_of_a_batch_add_up_to_the_batch(config, monkeypatch):
    monkeypatch.setattr(ranking_inputs, "_FEW_TERMS", 3)
    config = config.model_copy(
        update={
            "dropout": 0.4,
            "position_dropout": 0.5,
            "embedding_dropout": 0.3,
        }
    )
    model, batch = spread(make_model(config)), make_batch((3, 1, 2, 3))
    halves = [
        {k: v[part] for k, v in batch.items()}
        for part in (slice(0, 2), slice(2, 4))
    ]
    loss, found = gradients(model, batch, training=True, step=9)
    (loss_1, found_1), (loss_2, found_2) = (
        gradients(model, h, training=True, step=9) for h in halves
    )
    assert loss_1 + loss_2 == pytest.approx(loss, rel=1e-5)
    for whole, a, b in zip(found, found_1, found_2, strict=True):
        np.testing.assert_allclose(a + b, whole, rtol=1e-4, atol=1e-6)
    # The dropout is drawn anew at each step, and not at all in evaluation.
    other, _ = gradients(model, batch, training=True, step=10)
    still, _ = gradients(model, batch, training=False, step=9)
    same, _ = gradients(model, batch, training=False, step=10)
    assert other != loss
    assert still == same


def test_dropout_keeps_the_mean_and_the_whole_request():
    index = tf.range(20_000, dtype=tf.int64)
    kept = kept_units(index, 5, (1, 3, 0), 0.25).numpy()
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.75)}
    # 100,000 draws: a standard deviation of 0.002.
    assert kept.mean() == pytest.approx(1.0, abs=0.01)
    # Of embeddings, and a column of what is never dropped.
    kept = kept_embeddings(index, 2, (1, 3), 0.8).numpy()
    assert set(np.unique(kept[:, :2])) == {0.0, np.float32(1 / (1 - 0.8))}
    assert kept[:, :2].mean() == pytest.approx(1.0, abs=0.05)
    np.testing.assert_array_equal(kept[:, 2], 1.0)


def test_whole_embeddings_are_dropped_where_there_are_many_terms(monkeypatch):
    # Of the spaces video 6, token 4, device 3, surface 2, topic 5.
    monkeypatch.setattr(ranking_inputs, "_FEW_TERMS", 3)
    model = make_model(CONFIG.model_copy(update={"embedding_dropout": 0.5}))
    inputs = model._inputs
    assert inputs.dropped == [
        *("watch_history", "search_tokens", "video", "topics")
    ]
    # Widths: history 2 x 4 (two bags), tokens 4, device 4, age 4, surface 4,
    # watches 4; video 4, topics 4, duration 4.
    assert inputs.request_owner.tolist() == [0] * 8 + [1] * 4 + [4] * 16
    assert inputs.candidate_owner.tolist() == [2] * 4 + [3] * 4 + [4] * 4
    spread(model)
    batch = make_batch((3, 3, 3, 3))
    drawn = kept_embeddings(batch["example_index"], 4, (3, 7), 0.5).numpy()
    assert len(np.unique(drawn[:, :4], axis=0)) > 1
    slots = model._slots(batch)
    found = model._logits(batch, slots, training=True, step=7)
    for i, (b, c) in enumerate(slots.numpy()):
        scales = dict(zip(inputs.dropped, drawn[b], strict=False))
        for head, z in naive_logits(model, batch, b, c, scales).items():
            assert float(found[head][i]) == pytest.approx(z, rel=1e-4), head
    still = model._logits(batch, slots)["clicked"].numpy()
    plain = spread(make_model())._logits(batch, slots)["clicked"].numpy()
    np.testing.assert_array_equal(still, plain)
