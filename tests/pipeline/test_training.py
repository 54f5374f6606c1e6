"""The loop: what it learns, how it resumes, and that N workers are one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.inputs import max_lengths
from models.keras_setup import tf
from models.lanes import training_dataset
from models.retrieval import FullSoftmaxModel, RetrievalModel
from pipeline import distributed_steps, training
from pipeline.distribution import launch_local_workers, make_strategy
from pipeline.training import TrainingResult, train
from schemas.config import RetrievalConfig
from schemas.errors import InputError, WatchnextError
from schemas.examples import retrieval_keys
from schemas.features import Feature, FeatureSet

ROOT = Path(__file__).parents[2]
VIDEOS, BATCH = 40, 32
FEATURES = FeatureSet((Feature("watch_history", "bag", "query", "video", 4),))
CONFIG = RetrievalConfig(
    embedding_dim=8,
    recency_bags=(4, 1),
    hidden_units=(16,),
    dropout=0.2,
    num_negatives=20,
    batch_size=BATCH,
    table_optimizer="lazy_adam",
    table_learning_rate=0.02,
    learning_rate=0.01,
    epochs=4,
    patience=4,
    checkpoint_every=7,
)


def next_video(video: int) -> int:
    """The rule to learn: each video is followed by one other."""
    return (video * 7) % VIDEOS + 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """330 examples in two files: 10 batches of 32 and 10 left over."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    return {
        _write(
            folder / f"train-{i}.tfrecord",
            [
                rng.integers(1, VIDEOS + 1, size=rng.integers(1, 5))
                for _ in range(165)
            ],
            next_video,
        ): 165
        for i in range(2)
    }


def _write(
    path: Path, histories: list[np.ndarray], label: Callable[[int], int]
) -> str:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for history in histories:
            writer.write(_example(history.tolist(), label(int(history[0]))))
    return str(path)


def _example(history: list[int], label: int) -> bytes:
    def ints(values: list[int]) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    weight = tf.train.FloatList(value=[1.0])
    user = tf.train.BytesList(value=[b"u"])
    feature = {
        "watch_history": ints(history),
        "label": ints([label]),
        "event_time_us": ints([0]),
        "user_id": tf.train.Feature(bytes_list=user),
        "example_weight": tf.train.Feature(float_list=weight),
    }
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def build(kind: type[RetrievalModel] = RetrievalModel) -> RetrievalModel:
    return kind(FEATURES, {"video": VIDEOS}, CONFIG, seed=1, example_age=False)


def hit_rate(model: RetrievalModel) -> dict[str, float]:
    """Share of videos whose successor is scored highest."""
    videos = np.arange(1, VIDEOS + 1)
    history = np.full((VIDEOS, 4), -1)
    history[:, 0] = videos
    queries = model.query_embedding({"watch_history": tf.constant(history)})
    embeddings, biases = model.candidates()
    best = np.argmax(queries @ tf.transpose(embeddings) + biases, axis=1) + 1
    return {"hit_rate": float(np.mean(best == (videos * 7) % VIDEOS + 1))}


def run(
    files: dict[str, int],
    workdir: Path,
    evaluate: Callable[[Any], dict[str, float]] = hit_rate,
    build_model: Callable[[], Any] = build,
    **options: Any,
) -> TrainingResult:
    config = CONFIG.model_copy(update=options.pop("changes", {}))
    options.setdefault("metric", "hit_rate")

    def make_dataset(epoch: int, skip: int) -> tf.data.Dataset:
        return training_dataset(
            files,
            retrieval_keys(FEATURES, "train", example_age=False),
            config.batch_size,
            padded_lengths=max_lengths(FEATURES),
            seed=1,
            epoch=epoch,
            skip_batches=skip,
        )

    return train(
        build_model,
        make_dataset,
        evaluate,
        config=config,
        workdir=str(workdir),
        strategy=make_strategy("one_device"),
        progress=False,
        **options,
    )


def weights(model: RetrievalModel) -> list[np.ndarray]:
    variables = (*model.table_variables, *model.dense_variables)
    return [v.numpy() for v in variables]


def assert_same_bits(one: RetrievalModel, other: RetrievalModel) -> None:
    for a, b in zip(weights(one), weights(other), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("kind", [RetrievalModel, FullSoftmaxModel])
def test_it_learns_the_rule(
    kind: type[RetrievalModel], files: dict[str, int], tmp_path: Path
) -> None:
    changes = {"epochs": 16, "patience": 16}
    result = run(
        files, tmp_path, build_model=lambda: build(kind), changes=changes
    )
    history = result.history
    # By chance 1 in 40.
    assert history[-1]["hit_rate"] > 0.6
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert len(history) == 16


def test_without_a_metric_the_last_epoch_is_the_best(
    files: dict[str, int], tmp_path: Path
) -> None:
    def evaluate(_: RetrievalModel) -> dict[str, float]:
        raise AssertionError("nothing is to be evaluated")

    options: dict[str, Any] = {
        "changes": {"epochs": 3, "patience": 1},
        "metric": None,
    }
    result = run(files, tmp_path / "all", evaluate, **options)
    assert result.best_epoch == 3
    assert [sorted(epoch) for epoch in result.history] == 3 * [["train_loss"]]
    # A stopped one goes on to the same.
    run(files, tmp_path / "cut", evaluate, stop_after_steps=15, **options)
    resumed = run(files, tmp_path / "cut", evaluate, **options)
    assert_same_bits(resumed.model, result.model)


def test_the_weights_are_those_of_the_best_epoch(
    files: dict[str, int], tmp_path: Path
) -> None:
    seen = []

    def evaluate(model: RetrievalModel) -> dict[str, float]:
        seen.append(weights(model))
        return {"hit_rate": [0.1, 0.5, 0.3, 0.5, 0.9][len(seen) - 1]}

    result = run(files, tmp_path, evaluate, changes={"patience": 2})
    # Epochs 3 and 4 are no better than 2 (0.5 again is not better): stop.
    assert len(seen) == 4 and result.best_epoch == 2
    for found, expected in zip(weights(result.model), seen[1], strict=True):
        np.testing.assert_array_equal(found, expected)
    for table, then in zip(weights(result.model), seen[3], strict=True):
        assert not np.array_equal(table, then)
    assert [h["hit_rate"] for h in result.history] == [0.1, 0.5, 0.3, 0.5]


def test_a_metric_may_be_one_that_falls(
    files: dict[str, int], tmp_path: Path
) -> None:
    values = iter([3.0, 1.0, 2.0, 5.0])
    result = run(
        files,
        tmp_path,
        lambda _: {"hit_rate": next(values)},
        higher_is_better=False,
        changes={"patience": 2},
    )
    assert result.best_epoch == 2 and len(result.history) == 4


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [("lazy_adam", "cosine"), ("rowwise_adagrad", "constant")],
)
def test_a_resumed_run_ends_with_the_same_bits(
    files: dict[str, int], tmp_path: Path, optimizer: str, schedule: str
) -> None:
    options = {
        "changes": {"table_optimizer": optimizer, "schedule": schedule},
        "total_steps": 40,
    }
    whole = run(files, tmp_path / "whole", **options)
    # In the middle of epoch 1, at the very end of epoch 2, inside epoch 3.
    for stop in (4, 20, 25):
        part = run(files, tmp_path / "parts", stop_after_steps=stop, **options)
        assert len(part.history) == (stop - 1) // 10
    resumed = run(files, tmp_path / "parts", **options)
    assert_same_bits(whole.model, resumed.model)
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch


def test_the_rates_of_a_step_reach_both_optimisers(
    files: dict[str, int], tmp_path: Path
) -> None:
    # A warm-up of 10^9 steps: each of 10 moves a weight by 1e-9 at most.
    changes = {"warmup_steps": 10**9, "epochs": 1}
    learnt = run(files, tmp_path, changes=changes).model
    for found, initial in zip(weights(learnt), weights(build()), strict=True):
        np.testing.assert_allclose(found, initial, atol=1e-7)


def test_a_finished_run_is_read_back(
    files: dict[str, int], tmp_path: Path
) -> None:
    first = run(files, tmp_path, changes={"epochs": 2})

    def never(_: Any) -> dict[str, float]:
        raise AssertionError("A finished run was evaluated again.")

    again = run(files, tmp_path, never, changes={"epochs": 2})
    assert_same_bits(first.model, again.model)
    assert again.history == first.history


def test_a_loss_that_is_not_finite_names_the_step(
    files: dict[str, int], tmp_path: Path
) -> None:
    class Diverging(RetrievalModel):
        def compute_loss(self, inputs: Any, **options: Any) -> Any:
            loss, metrics = super().compute_loss(inputs, **options)
            return tf.where(options["step"] == 13, np.nan, loss), metrics

    with pytest.raises(WatchnextError, match="nan at step 13"):
        run(files, tmp_path, build_model=lambda: build(Diverging))
    # The last checkpoint is from before.
    steps = {p.stem for p in (tmp_path / "checkpoints").glob("*.json")}
    assert steps == {"step-7", "step-10"}


def test_wrong_inputs_are_explained(
    files: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="one batch of 1000"):
        run(files, tmp_path / "a", changes={"batch_size": 1000})
    with pytest.raises(WatchnextError, match=r"'hit_rate'.*gave auc"):
        run(files, tmp_path / "b", lambda _: {"auc": 1.0})
    with pytest.raises(WatchnextError, match="is nan after epoch 1"):
        run(files, tmp_path / "c", lambda _: {"hit_rate": float("nan")})


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value of TensorBoard's logs."""
    (log,) = folder.iterdir()
    found: dict[str, dict[int, float]] = {}
    for record in tf.data.TFRecordDataset(str(log)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            number = float(tf.make_ndarray(value.tensor))
            found.setdefault(value.tag, {})[event.step] = number
    return found


def test_tensorboard_finds_scalars(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(files, tmp_path / "plain", changes={"epochs": 1})
    assert "train/gradient_norm/dense" not in scalars(tmp_path / "plain/logs")
    # Of ten steps the 4th and the 8th tell their norms.
    monkeypatch.setattr(training, "CHECK_EVERY", 4)
    monkeypatch.setattr(distributed_steps, "CHECK_EVERY", 4)
    told = run(files, tmp_path / "told", changes={"epochs": 1})
    assert_same_bits(plain.model, told.model)
    found = scalars(tmp_path / "told/logs")
    assert {"train/loss", "train/examples_per_s", "epoch/hit_rate"} <= set(
        found
    )
    for name in ("video", "output", "biases", "dense"):
        norms = found[f"train/gradient_norm/{name}"]
        assert len(norms) == 2
        assert all(norm > 0 for norm in norms.values())
    table = told.model.output_embeddings.numpy()[1:]
    expected = np.linalg.norm(table, axis=1).mean()
    norms = found["epoch/embedding_norm/output"]
    assert norms == {1: pytest.approx(expected, rel=1e-5)}


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
from schemas.config import RetrievalConfig
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
    path = _write(tmp_path / "train", histories, lambda video: video)
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
