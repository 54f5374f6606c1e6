"""Negatives from the batch and of each example: N replicas equal one."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.distribution import launch_local_workers

ROOT = Path(__file__).parents[2]

# Trains 4 steps on batches of 16; the last argument says with what.
PROGRAM = """
import json, sys
from pipeline.distribution import current_task, make_strategy, worker_rows
from models.keras_setup import tf
job = json.loads(sys.argv[1])
if job["replicas"] > 1:
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * job["replicas"]
    tf.config.set_logical_device_configuration(cpu, parts)
    names = [f"/cpu:{i}" for i in range(job["replicas"])]
    strategy = tf.distribute.MirroredStrategy(names)
else:
    strategy = make_strategy()
import numpy as np
from models.embeddings import local_component
from models.retrieval import RetrievalModel
from models.training_step import TrainingStep
from schemas.model_config import RetrievalConfig
from schemas.features import Feature, FeatureSet

features = FeatureSet((Feature("watch_history", "bag", "query", "video", 4),))
config = RetrievalConfig(
    embedding_dim=8, recency_bags=(4, 1), hidden_units=(16,), dropout=0.2,
    num_negatives=6, batch_size=16, negatives=job["negatives"],
    sampler="unigram", table_learning_rate=0.1)
with strategy.scope():
    model = RetrievalModel(features, {"video": 40}, config, 1,
                           example_age=False, label_counts=np.arange(40))
    step = TrainingStep(model, config)
rows = worker_rows(strategy)
size = 16 // rows.pieces

def part(number, piece):
    rng = np.random.default_rng(number)
    whole = {
        "watch_history": rng.integers(-1, 41, (16, 4)),
        "label": rng.integers(1, 41, 16),
        "example_weight": 1 + rng.random(16, np.float32),
        "example_index": np.arange(16),
    }
    cut = slice(piece * size, (piece + 1) * size)
    return {k: tf.constant(v[cut]) for k, v in whole.items()}

def batch(number):
    if rows.per_worker == 1:
        return part(number, rows.first)
    return strategy.experimental_distribute_values_from_function(
        lambda c: part(number, rows.first + c.replica_id_in_sync_group))

run = tf.function(lambda b, n: strategy.run(step, args=(b, n))[0])
for number in range(4):
    run(batch(number), tf.constant(number, tf.int64))
if current_task().is_chief:
    weights = (*model.table_variables, *model.dense_variables)
    np.savez(job["out"], *(local_component(w).numpy() for w in weights))
"""


def trained(
    folder: Path, negatives: str, workers: int = 1, replicas: int = 1
) -> list[np.ndarray]:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    out = folder / f"{workers}-{replicas}.npz"
    job = {"negatives": negatives, "replicas": replicas, "out": str(out)}
    command = [sys.executable, str(program), json.dumps(job)]
    assert launch_local_workers(workers, command) == 0
    with np.load(out) as values:
        return [values[name] for name in values.files]


@pytest.mark.parametrize(
    ("negatives", "workers", "replicas"),
    [
        ("mixed", 1, 2),
        pytest.param("list_wise", 1, 2, marks=pytest.mark.slow),
        pytest.param("in_batch", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_replicas_train_the_weights_of_one(
    tmp_path: Path,
    negatives: str,
    workers: int,
    replicas: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TF_CONFIG", raising=False)
    alone = trained(tmp_path, negatives)
    together = trained(tmp_path, negatives, workers, replicas)
    # Initial embeddings are below 0.05 everywhere.
    assert np.abs(alone[0]).max() > 0.1
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
