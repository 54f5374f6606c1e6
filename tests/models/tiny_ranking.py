"""A small ranking model, and what it must say, in NumPy."""

import math

import numpy as np
import pytest

from models.keras_setup import tf
from models.ranking import RankingModel
from schemas.features import Feature, FeatureSet
from schemas.model_config import ExpertsConfig, RankingConfig

C = 3  # Candidate slots per request.
LABELS = ("clicked", "watch_time_s", "liked", "rating")
SIZES = {"video": 6, "token": 4, "surface": 2, "device": 3, "topic": 5}
FEATURES = FeatureSet(
    (
        Feature("watch_history", "bag", "query", "video", 4),
        Feature("search_tokens", "bag", "query", "token", 3),
        Feature("user_device", "categorical", "query", "device"),
        Feature("user_age", "continuous", "query", unit="years"),
        Feature("surface", "categorical", "request", "surface"),
        Feature("recent_watches", "continuous", "request", unit="watches"),
        Feature("video", "categorical", "candidate", "video"),
        Feature("topics", "bag", "candidate", "topic", 2),
        Feature("duration_s", "continuous", "candidate", unit="s"),
    )
)
CONFIG = RankingConfig(
    tasks=("clicked", "liked"),
    hidden_units=(7, 5),
    max_embedding_dim=4,
    watch_time_unit_s=10.0,
    score_weights={"expected_watch_time_s": 1.0, "liked": 0.5},
)
# All kinds of tasks, each with a gate of its own.
EXPERTS = CONFIG.model_copy(
    update={
        "tasks": ("clicked", "liked", "rating"),
        "score_weights": {"expected_watch_time_s": 1.0, "rating": -0.5},
        "experts": ExpertsConfig(number=3, units=(6, 4), gate_dropout=0.4),
    }
)
LINEAR = CONFIG.model_copy(update={"hidden_units": ()})
both = pytest.mark.parametrize("config", [CONFIG, EXPERTS])


def make_model(config=CONFIG, positions=True, seed=3):
    return RankingModel(
        FEATURES, SIZES, config, seed, labels=LABELS, positions=positions
    )


def bags(rng, size, *shape):
    """Ids with 0 (unknown) among them, padded at the end by -1."""
    ids = rng.integers(0, size + 1, size=shape)
    length = rng.integers(0, shape[-1] + 1, size=shape[:-1])
    return np.where(np.arange(shape[-1]) < length[..., None], ids, -1)


def make_batch(count=(3, 1, 2, 0), seed=0):
    rng = np.random.default_rng(seed)
    b = len(count)
    batch = {
        "watch_history": bags(rng, 6, b, 4),
        "search_tokens": bags(rng, 4, b, 3),
        "user_device": rng.integers(0, 4, size=b),
        "user_age": rng.random((b, 4), np.float32),
        "surface": rng.integers(0, 3, size=b),
        "recent_watches": rng.random((b, 4), np.float32),
        "video": rng.integers(0, 7, size=(b, C)),
        "topics": bags(rng, 5, b, C, 2),
        "duration_s": rng.random((b, C, 4), np.float32),
        "candidate_count": np.array(count),
        "position": rng.integers(0, 4, size=(b, C)),
        "clicked": rng.integers(0, 2, size=(b, C)).astype(np.float32),
        "watch_time_s": rng.exponential(20, (b, C)).astype(np.float32),
        "liked": rng.choice(np.float32([0, 1, math.nan]), size=(b, C)),
        "rating": rng.choice(np.float32([1, 4.5, math.nan]), size=(b, C)),
        "example_index": np.arange(b),
    }
    return {k: tf.constant(v) for k, v in batch.items()}


def gradients(model, batch, **kwargs):
    variables = [*model.table_variables, *model.dense_variables]
    with tf.GradientTape() as tape:
        loss, _ = model.compute_loss(batch, global_batch_size=8, **kwargs)
    found = tape.gradient(loss, variables)
    return float(loss), [
        np.zeros(v.shape) if g is None else tf.convert_to_tensor(g).numpy()
        for g, v in zip(found, variables, strict=True)
    ]


def spread(model, seed=5):
    """Moves every weight away from zero, so that all of them matter."""
    rng = np.random.default_rng(seed)
    for table in model.table_variables:
        rows = rng.normal(0, 0.6, table.shape)
        rows[0] = 0.0
        table.assign(rows)
    for variable in model.dense_variables:
        variable.assign(rng.normal(0, 0.4, variable.shape))
    return model


# The naive model in NumPy: everything repeated for every candidate.


def naive_vector(model, feature, values):
    if feature.space is None:
        return [values]
    table = model.embeddings.tables[feature.space].numpy()
    if feature.kind == "categorical":
        return [table[values]]
    entries = [i for i in values if i != -1]
    zero = np.zeros(table.shape[1])
    mean = sum((table[i] for i in entries), zero) / max(len(entries), 1)
    if feature.name != "watch_history":
        return [mean]
    return [mean, table[entries[0]] if entries else zero]


def naive_logits(model, batch, b, c, scales=None):
    inputs = []
    for scopes in (("query", "request"), ("candidate",)):
        for feature in FEATURES.select(*scopes):
            values = batch[feature.name].numpy()[b]
            values = values[c] if feature.scope == "candidate" else values
            scale = (scales or {}).get(feature.name, 1.0)
            vectors = naive_vector(model, feature, values)
            inputs += [scale * vector for vector in vectors]
    hidden = np.concatenate(inputs)
    for layer in model.tower.layers:
        kernel, bias = (w.numpy() for w in layer.weights)
        hidden = np.maximum(hidden @ kernel + bias, 0.0)
    kernel, bias = (w.numpy() for w in model.head.weights)
    if model.experts is None:
        return dict(zip(model.heads, hidden @ kernel + bias, strict=True))
    says = []
    for tower in model.experts.towers:
        f = hidden
        for layer in tower.layers:
            f = np.maximum(f @ layer.kernel.numpy() + layer.bias.numpy(), 0.0)
        says.append(f)
    gates = np.split(model.experts.gate.kernel.numpy(), len(model.heads), 1)
    logits = {}
    for t, head in enumerate(model.heads):
        weights = np.exp(hidden @ gates[t])
        mixture = weights / weights.sum() @ np.stack(says)
        logits[head] = mixture @ kernel[:, t] + bias[t]
    return logits


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))
