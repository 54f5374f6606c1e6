"""The loop: what it learns, how it resumes, and that N workers are one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.inputs import dataset, max_lengths
from models.keras_setup import tf
from models.retrieval import FullSoftmaxModel, RetrievalModel
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
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """330 examples in two files: 10 batches of 32 and 10 left over."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    paths = [str(folder / f"train-{i}.tfrecord") for i in range(2)]
    for path in paths:
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(165):
                history = rng.integers(1, VIDEOS + 1, size=rng.integers(1, 5))
                writer.write(_example(history.tolist()))
    return paths


def _example(history: list[int]) -> bytes:
    def ints(values: list[int]) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    weight = tf.train.FloatList(value=[1.0])
    user = tf.train.BytesList(value=[b"u"])
    feature = {
        "watch_history": ints(history),
        "label": ints([next_video(history[0])]),
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
    files: list[str],
    workdir: Path,
    evaluate: Callable[[Any], dict[str, float]] = hit_rate,
    build_model: Callable[[], Any] = build,
    **options: Any,
) -> TrainingResult:
    config = CONFIG.model_copy(update=options.pop("changes", {}))

    def make_dataset(epoch: int, skip: int) -> tf.data.Dataset:
        return dataset(
            files,
            retrieval_keys(FEATURES, "train", example_age=False),
            config.batch_size,
            padded_lengths=max_lengths(FEATURES),
            seed=1,
            epoch=epoch,
            shuffle=True,
            drop_remainder=True,
            skip_batches=skip,
        )

    return train(
        build_model,
        make_dataset,
        evaluate,
        metric="hit_rate",
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
    kind: type[RetrievalModel], files: list[str], tmp_path: Path
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


def test_the_weights_are_those_of_the_best_epoch(
    files: list[str], tmp_path: Path
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
    files: list[str], tmp_path: Path
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


@pytest.mark.parametrize("optimizer", ["lazy_adam", "rowwise_adagrad"])
def test_a_resumed_run_ends_with_the_same_bits(
    files: list[str], tmp_path: Path, optimizer: str
) -> None:
    changes = {"table_optimizer": optimizer}
    whole = run(files, tmp_path / "whole", changes=changes)
    # In the middle of epoch 1, at the very end of epoch 2, inside epoch 3.
    for stop in (4, 20, 25):
        part = run(
            files, tmp_path / "parts", changes=changes, stop_after_steps=stop
        )
        assert len(part.history) == (stop - 1) // 10
    resumed = run(files, tmp_path / "parts", changes=changes)
    assert_same_bits(whole.model, resumed.model)
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch


def test_a_finished_run_is_read_back(files: list[str], tmp_path: Path) -> None:
    first = run(files, tmp_path, changes={"epochs": 2})

    def never(_: Any) -> dict[str, float]:
        raise AssertionError("A finished run was evaluated again.")

    again = run(files, tmp_path, never, changes={"epochs": 2})
    assert_same_bits(first.model, again.model)
    assert again.history == first.history


def test_a_loss_that_is_not_finite_names_the_step(
    files: list[str], tmp_path: Path
) -> None:
    class Diverging(RetrievalModel):
        def compute_loss(self, inputs: Any, **options: Any) -> Any:
            loss, metrics = super().compute_loss(inputs, **options)
            return tf.where(options["step"] == 13, np.nan, loss), metrics

    with pytest.raises(WatchnextError, match="nan at step 13"):
        run(files, tmp_path, build_model=lambda: build(Diverging))
    # The last checkpoint is from before.
    latest = tf.train.latest_checkpoint(str(tmp_path / "checkpoints"))
    assert latest.endswith("step-10")


def test_wrong_inputs_are_explained(files: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one batch of 1000"):
        run(files, tmp_path / "a", changes={"batch_size": 1000})
    with pytest.raises(WatchnextError, match=r"'hit_rate'.*gave auc"):
        run(files, tmp_path / "b", lambda _: {"auc": 1.0})
    with pytest.raises(WatchnextError, match="is nan after epoch 1"):
        run(files, tmp_path / "c", lambda _: {"hit_rate": float("nan")})


def test_tensorboard_finds_scalars(files: list[str], tmp_path: Path) -> None:
    run(files, tmp_path, changes={"epochs": 1})
    (log,) = (tmp_path / "logs").iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(log)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            found[value.tag] = value.metadata.plugin_data.plugin_name
    assert found["train/loss"] == found["epoch/hit_rate"] == "scalars"


WORKER = """
import json, sys
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
from models.inputs import dataset, max_lengths
from models.optimizers import table_optimizer
from models.retrieval import FullSoftmaxModel, RetrievalModel
from pipeline.training import train
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
    return dataset(job["files"], keys, config.batch_size,
                   padded_lengths=max_lengths(features), seed=1, epoch=epoch,
                   shuffle=True, drop_remainder=True, skip_batches=skip,
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

whole = whole_tables()
def evaluate(model):
    assert current_task().is_chief
    history = {"watch_history": tf.constant([[3, -1, -1, -1]], tf.int64)}
    embeddings, biases = model.candidates()
    scores = model.query_embedding(history) @ tf.transpose(embeddings) + biases
    return {"hit_rate": float(scores[0, 0])}

result = train(build, make_dataset, evaluate,
               metric="hit_rate", config=config, workdir=job["workdir"],
               strategy=strategy, stop_after_steps=job["steps"])
index = current_task().index
values = {}
for i, table in enumerate(result.model.table_variables):
    values[f"table_{i}"] = local_component(table).numpy()
for i, kernel in enumerate(result.model.dense_variables):
    values[f"dense_{i}"] = local_component(kernel).numpy()
if index == 0:
    result.model.save(job["out"])
np.savez(f"{job['out']}-{index}.npz", whole=whole, **values)
"""


def run_workers(
    files: list[str],
    folder: Path,
    workers: int,
    steps: int,
    optimizer: str,
    replicas: int = 1,
) -> list[dict[str, np.ndarray]]:
    folder.mkdir(exist_ok=True)
    program = folder / "worker.py"
    program.write_text(WORKER)
    changes = {"table_optimizer": optimizer, "patience": 9}
    config = CONFIG.model_copy(update=changes)
    job = {
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
        "videos": VIDEOS,
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


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "lazy_adam"])
def test_two_workers_are_one(
    files: list[str],
    tmp_path: Path,
    optimizer: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TF_CONFIG", raising=False)
    # 20 steps, two epochs of which end in between; resumed after 13.
    (alone,) = run_workers(files, tmp_path / "one", 1, 20, optimizer)
    run_workers(files, tmp_path / "two", 2, 13, optimizer)
    first, second = run_workers(files, tmp_path / "two", 2, 20, optimizer)
    initial = build()
    for i, table in enumerate(initial.table_variables):
        # Something was learnt, so that equality means something.
        assert np.abs(alone[f"table_{i}"] - table.numpy()).max() > 0.05
    assert first.keys() == alone.keys()
    for name, expected in alone.items():
        assert first[name].tobytes() == second[name].tobytes(), name
        np.testing.assert_allclose(
            first[name], expected, atol=1e-6, rtol=0, err_msg=name
        )
    # What the chief saves is a model like any other.
    loaded = RetrievalModel.load(str(tmp_path / "two" / "tables"))
    for i, table in enumerate(loaded.table_variables):
        assert table.numpy().tobytes() == first[f"table_{i}"].tobytes()
    # Nothing of a table's length is made, read or sent.
    assert first["whole"] == 0


@pytest.mark.slow
def test_two_devices_of_one_worker_are_one(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TF_CONFIG", raising=False)
    (alone,) = run_workers(files, tmp_path / "one", 1, 12, "lazy_adam")
    (both,) = run_workers(files, tmp_path / "two", 1, 12, "lazy_adam", 2)
    for name, expected in alone.items():
        np.testing.assert_allclose(
            both[name], expected, atol=1e-6, rtol=0, err_msg=name
        )
    assert both["whole"] == 0
