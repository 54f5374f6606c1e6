"""N workers, or N devices of one, train the model that one trains."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.retrieval import RetrievalModel
from pipeline.distribution import launch_local_workers
from tests.pipeline.rule_to_learn import (
    CONFIG,
    VIDEOS,
    build,
    write_examples,
    write_files,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return write_files(tmp_path_factory.mktemp("examples"))


WORKER = """
import json, os, socket, struct, sys
from models.keras_setup import tf
from pipeline.distribution import current_task, make_strategy, worker_rows
job = json.loads(sys.argv[1])
# First of all: a cluster opens its connections, a device is divided.
if job["replicas"] > 1:
    (cpu,) = tf.config.list_physical_devices("CPU")
    part = tf.config.LogicalDeviceConfiguration()
    parts = [part] * job["replicas"]
    tf.config.set_logical_device_configuration(cpu, parts)
    names = [f"/cpu:{i}" for i in range(job["replicas"])]
    strategy = tf.distribute.MirroredStrategy(names)
else:
    strategy = make_strategy()
import numpy as np
from models.embeddings import local_component
import pipeline.training
from models.inputs import max_lengths
from models.lanes import training_dataset
from models.optimizers import table_optimizer
from models.retrieval import FullSoftmaxModel, RetrievalModel
from pipeline.training_report import TrainingReport
from schemas.model_config import RetrievalConfig
from schemas.examples import retrieval_keys
from schemas.features import from_json

features = from_json(job["features"])
config = RetrievalConfig(**job["config"])
keys = retrieval_keys(features, "train", example_age=False)

def build(videos=job["videos"]):
    return RetrievalModel(features, {"video": videos}, config, 1,
                          example_age=False)

def make_dataset(epoch, skip):
    return training_dataset(job["files"], keys, config.batch_size,
                            padded_lengths=max_lengths(features), seed=1,
                            epoch=epoch, skip_batches=skip,
                            rows=worker_rows(strategy))

def whole_tables(videos=7919):
    # Tensors of a table's length in the graph of a distributed step.
    with strategy.scope():
        model = build(videos)
        optimizer = table_optimizer(config.table_optimizer, 0.1)
        optimizer.build(model.table_variables)
    def replica(batch):
        tables = model.table_variables
        with tf.GradientTape() as tape:
            loss, _ = model.compute_loss(
                batch, step=1, global_batch_size=config.batch_size)
        copies = [local_component(table) for table in tables]
        optimizer.apply_gradients(zip(tape.gradient(loss, copies), tables))
        return loss
    step = tf.function(lambda batch: strategy.run(replica, (batch,)))
    batch = next(iter(make_dataset(1, 0)))
    graph = step.get_concrete_function(batch).graph
    count = 0
    for function in [graph, *graph._functions.values()]:
        for operation in getattr(function, "graph", function).get_operations():
            for tensor in operation.outputs:
                dims = tensor.shape.as_list() if tensor.shape.rank else []
                count += tensor.dtype != tf.resource and videos + 1 in dims
    return count

def bytes_sent():
    # By all of this process's connections: tcpi_bytes_acked of tcp_info.
    total = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            connection = socket.socket(fileno=int(fd))
        except OSError:  # Closed since, or no socket.
            continue
        try:
            info = connection.getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, 128)
            total += struct.unpack_from("=Q", info, 120)[0]
        except OSError:  # No TCP.
            pass
        connection.detach()
    return total

whole = whole_tables()
def evaluate(model):
    assert current_task().is_chief
    history = {"watch_history": tf.constant([[3, -1, -1, -1]], tf.int64)}
    embeddings, biases = model.candidates()
    scores = model.query_embedding(history) @ tf.transpose(embeddings) + biases
    return {"hit_rate": float(scores[0, 0])}

# The loop reports its loss after each step instead of now and then.
pipeline.training.CHECK_EVERY = 1
losses, sent = {}, []
report_steps = TrainingReport.steps
def steps(self, epoch, step, loss, metrics):
    losses[step] = loss
    sent.append(bytes_sent())
    report_steps(self, epoch, step, loss, metrics)
TrainingReport.steps = steps

result = pipeline.training.train(
    build, make_dataset, evaluate,
    metric="hit_rate", config=config, workdir=job["workdir"],
    strategy=strategy, stop_after_steps=job["steps"])
index = current_task().index
values = {f"loss_{step}": loss for step, loss in losses.items()}
for i, table in enumerate(result.model.table_variables):
    values[f"table_{i}"] = local_component(table).numpy()
for i, kernel in enumerate(result.model.dense_variables):
    values[f"dense_{i}"] = local_component(kernel).numpy()
if index == 0:
    result.model.save(job["out"])
np.savez(f"{job['out']}-{index}.npz", whole=whole, **values)
with open(f"{job['out']}-{index}-sent.json", "w") as stream:
    json.dump(sent, stream)
"""


def run_workers(
    files: dict[str, int],
    folder: Path,
    workers: int,
    steps: int,
    optimizer: str,
    replicas: int = 1,
    videos: int = VIDEOS,
    **changes: Any,
) -> list[dict[str, np.ndarray]]:
    folder.mkdir(exist_ok=True)
    program = folder / "worker.py"
    program.write_text(WORKER)
    changes |= {"table_optimizer": optimizer, "epochs": 9, "patience": 9}
    config = CONFIG.model_copy(update=changes)
    job: dict[str, Any] = {
        "features": [
            {
                "name": "watch_history",
                "kind": "bag",
                "scope": "query",
                "space": "video",
                "max_length": 4,
            }
        ],
        "config": config.model_dump(mode="json"),
        "videos": videos,
        "files": files,
        "workdir": str(folder / "work"),
        "steps": steps,
        "replicas": replicas,
        "out": str(folder / "tables"),
    }
    command = [sys.executable, str(program), json.dumps(job)]
    assert launch_local_workers(workers, command) == 0
    found = []
    for index in range(workers):
        with np.load(folder / f"tables-{index}.npz") as values:
            found.append(dict(values))
    return found


def assert_equal_runs(
    alone: dict[str, np.ndarray], workers: list[dict[str, np.ndarray]]
) -> None:
    """Losses of each step within 1e-5, weights within 1e-6.

    Weights are the same bits on all workers; losses are those of the steps
    that the workers ran, all or, where they were resumed, the last ones.
    """
    first, *others = workers
    for name, found in first.items():
        atol = 1e-5 if name.startswith("loss_") else 1e-6
        np.testing.assert_allclose(
            found, alone[name], atol=atol, rtol=0, err_msg=name
        )
        for other in others:
            assert other[name].tobytes() == found.tobytes(), name
    weights = {n for n in alone if not n.startswith("loss_")}
    assert weights <= first.keys()


def assert_learnt(alone: dict[str, np.ndarray], steps: int) -> None:
    """Something was learnt, so that equality means something."""
    for i, table in enumerate(build().table_variables):
        assert np.abs(alone[f"table_{i}"] - table.numpy()).max() > 0.05
    losses = [float(alone[f"loss_{step}"]) for step in range(1, steps + 1)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TF_CONFIG", raising=False)


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam"])
def test_two_workers_are_one(
    files: dict[str, int], tmp_path: Path, optimizer: str
) -> None:
    # 50 steps are five epochs; also stopped in the third one, and resumed.
    (alone,) = run_workers(files, tmp_path / "one", 1, 50, optimizer)
    assert_learnt(alone, 50)
    whole = run_workers(files, tmp_path / "two", 2, 50, optimizer)
    assert sum(name.startswith("loss_") for name in whole[0]) == 50
    assert_equal_runs(alone, whole)
    run_workers(files, tmp_path / "parts", 2, 23, optimizer)
    resumed = run_workers(files, tmp_path / "parts", 2, 50, optimizer)
    assert_equal_runs(alone, resumed)
    # What the chief saves is a model like any other.
    loaded = RetrievalModel.load(str(tmp_path / "two" / "tables"))
    for i, table in enumerate(loaded.table_variables):
        assert table.numpy().tobytes() == whole[0][f"table_{i}"].tobytes()
    # Nothing of a table's length is made, read or sent.
    assert whole[0]["whole"] == 0


@pytest.mark.usefixtures("no_cluster")
def test_two_workers_are_one_for_ten_steps(
    files: dict[str, int], tmp_path: Path
) -> None:
    (alone,) = run_workers(files, tmp_path / "one", 1, 10, "lazy_adam")
    both = run_workers(files, tmp_path / "two", 2, 10, "lazy_adam")
    assert {f"loss_{step}" for step in range(1, 11)} <= both[0].keys()
    assert_equal_runs(alone, both)


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_bytes_on_the_wire_are_those_of_the_rows(tmp_path: Path) -> None:
    # The same 500 videos are watched in tables of 10,000 and of 1M rows.
    rng = np.random.default_rng(0)
    histories = list(rng.integers(1, 501, size=(12 * 1024, 4)))
    path = write_examples(tmp_path / "train", histories, lambda video: video)
    per_step = {}
    for videos in (10_000, 1_000_000):
        folder = tmp_path / str(videos)
        run_workers(
            {path: len(histories)},
            folder,
            2,
            12,
            "rowwise_adagrad",
            videos=videos,
            batch_size=1024,
            embedding_dim=16,
            num_negatives=100,
            sampler="uniform",
            checkpoint_every=1000,
        )
        sent = json.loads((folder / "tables-1-sent.json").read_text())
        # The first steps open connections.
        per_step[videos] = float(np.median(np.diff(sent)[4:]))
    # A worker sends each row that it has a gradient for once: an index of 8
    # bytes and its values. At most 500 rows of the input table; 500 labels
    # and 100 negatives of the output table and of the biases. (Its 512 * 4
    # watches and 512 labels, not merged, would be 198 kB.)
    rows = 500 * (8 + 64) + 600 * (8 + 64) + 600 * (8 + 4)
    # Two bags of 16 into 16 and 16 units, with biases: sent once each.
    dense = 4 * (32 * 16 + 16 + 16 * 16 + 16)
    # Calls have headers.
    assert 0.6 * rows < per_step[10_000] < 1.15 * (rows + dense)
    assert per_step[1_000_000] < 1.1 * per_step[10_000]


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_two_devices_of_one_worker_are_one(
    files: dict[str, int], tmp_path: Path
) -> None:
    (alone,) = run_workers(files, tmp_path / "one", 1, 12, "lazy_adam")
    (both,) = run_workers(files, tmp_path / "two", 1, 12, "lazy_adam", 2)
    assert_equal_runs(alone, [both])
    assert both["whole"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_cluster")
def test_two_devices_in_float16_learn_like_one(
    files: dict[str, int], tmp_path: Path
) -> None:
    # A device's part of a kernel's gradient is rounded to 11 bits before they
    # are added up, so losses agree to these, not to those of float32.
    precision = {"precision": "mixed_float16"}
    (alone,) = run_workers(
        files, tmp_path / "one", 1, 20, "lazy_adam", **precision
    )
    (both,) = run_workers(
        files, tmp_path / "two", 1, 20, "lazy_adam", 2, **precision
    )
    assert_learnt(alone, 20)
    for step in range(1, 21):
        name = f"loss_{step}"
        np.testing.assert_allclose(both[name], alone[name], rtol=0.02)
