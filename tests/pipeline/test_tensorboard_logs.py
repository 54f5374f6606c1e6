"""What TensorBoard finds in a training's log folder."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from models.keras_setup import tf
from pipeline import distributed_steps, tensorboard_logs, training
from pipeline.cli import main
from pipeline.tensorboard_logs import ProfileSteps, write_histograms
from schemas.errors import UsageError
from tests.pipeline.rule_to_learn import (
    CONFIG,
    VIDEOS,
    assert_same_bits,
    run,
    write_files,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return write_files(tmp_path_factory.mktemp("examples"))


def values(folder: Path, plugin: str) -> Iterator[tuple[int, object]]:
    """(step, value) of all that the logs have for a plugin."""
    for log in sorted(folder.glob("events.*")):
        for record in tf.data.TFRecordDataset(str(log)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == plugin:
                    yield event.step, value


def tensors(folder: Path, plugin: str) -> dict[str, dict[int, np.ndarray]]:
    """Tag -> step -> value."""
    found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for step, value in values(folder, plugin):
        found[value.tag][step] = tf.make_ndarray(value.tensor)
    return found


def test_scalars(
    files: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(files, tmp_path / "plain", changes={"epochs": 1})
    found = tensors(tmp_path / "plain/logs", "scalars")
    assert "train/gradient_norm/dense" not in found
    # Of ten steps the 4th and the 8th tell their norms.
    monkeypatch.setattr(training, "CHECK_EVERY", 4)
    monkeypatch.setattr(distributed_steps, "CHECK_EVERY", 4)
    told = run(files, tmp_path / "told", changes={"epochs": 1})
    assert_same_bits(plain.model, told.model)
    found = tensors(tmp_path / "told/logs", "scalars")
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


def test_every_epoch_has_the_weights_as_histograms(
    files: dict[str, int], tmp_path: Path
) -> None:
    result = run(files, tmp_path, changes={"epochs": 2})
    found = tensors(tmp_path / "logs", "histograms")
    # Two layers, 16 and 8 wide: the second has the names of the first.
    assert set(found) == {
        f"weights/{name}"
        for name in (
            *("video", "output", "biases"),
            *("kernel", "bias", "kernel_1", "bias_1"),
        )
    }
    assert all(set(steps) == {1, 2} for steps in found.values())
    # The best epoch's weights, by NumPy; row 0 stands for no video.
    table = result.model.output_embeddings.numpy()[1:]
    buckets = found["weights/output"][result.best_epoch]
    edges = np.append(buckets[:, 0], buckets[-1, 1])
    assert edges[0] == table.min() and edges[-1] == table.max()
    assert buckets[:, 2].sum() == VIDEOS * 8
    counts, _ = np.histogram(table.astype(np.float64), 30)
    # A number at an edge may be rounded into the next bucket.
    assert np.abs(np.cumsum(counts - buckets[:, 2])).max() <= 1


def test_of_a_large_table_rows_at_equal_distances_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard_logs, "_MOST_NUMBERS", 6)
    # Row i is (i, i): of rows 1 to 9, at most 3 are taken: 1, 4 and 7.
    rows = np.repeat(np.arange(10.0)[:, None], 2, axis=1)
    table = tf.Variable(rows, name="video_table")
    scalar = tf.Variable(2.5, name="scale")
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        write_histograms([table], [scalar], 3)
    found = tensors(tmp_path, "histograms")
    buckets = found["weights/video"][3]
    (full,) = np.nonzero(buckets[:, 2])
    assert buckets[full, 2].tolist() == [2, 2, 2]
    assert buckets[0, 0] == 1 and buckets[-1, 1] == 7
    assert buckets[full[1], 0] <= 4 <= buckets[full[1], 1]
    assert found["weights/scale"][3][:, 2].sum() == 1


def hparams(folder: Path) -> dict[str, plugin_data_pb2.HParamsPluginData]:
    return {
        value.tag: plugin_data_pb2.HParamsPluginData.FromString(
            value.metadata.plugin_data.content
        )
        for _, value in values(folder, "hparams")
    }


def test_hparams_are_the_section_and_the_chosen_epoch(
    files: dict[str, int], tmp_path: Path
) -> None:
    rates = iter([0.1, 0.4, 0.3])
    folder = tmp_path / "retrieval-3f9c"
    run(
        files,
        folder,
        lambda _: {"hit_rate": next(rates)},
        changes={"epochs": 3, "sequence": None},
    )
    told = hparams(folder / "logs")
    start = told["_hparams_/session_start_info"].session_start_info
    assert start.group_name == "retrieval-3f9c"
    assert set(start.hparams) == set(type(CONFIG).model_fields)
    assert start.hparams["batch_size"].number_value == 32
    assert start.hparams["logq_correction"].bool_value is True
    assert start.hparams["table_optimizer"].string_value == "lazy_adam"
    assert start.hparams["recency_bags"].string_value == "[4, 1]"
    assert start.hparams["sequence"].string_value == "None"
    end = told["_hparams_/session_end_info"].session_end_info
    assert end.status == api_pb2.STATUS_SUCCESS
    best = tensors(folder / "logs", "scalars")["best/hit_rate"]
    assert best == {2: pytest.approx(0.4)}


def test_inner_sections_are_named_by_both(tmp_path: Path) -> None:
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        inner = {"length": 50, "place": "beside"}
        tensorboard_logs.write_settings({"sequence": inner}, "x")
    start = hparams(tmp_path)["_hparams_/session_start_info"]
    values_of = start.session_start_info.hparams
    assert values_of["sequence.length"].number_value == 50
    assert values_of["sequence.place"].string_value == "beside"


def steps_of(folder: Path) -> list[int]:
    """The numbers of the steps that a profile has, in order."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    found = set()
    for plane in space.planes:
        names = {i: m.name for i, m in plane.stat_metadata.items()}
        events = {i: m.name for i, m in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                stats = {names[s.metadata_id]: s for s in event.stats}
                is_step = events[event.metadata_id] == "train"
                if is_step and "step_num" in stats:
                    number = stats["step_num"]
                    found.add(number.int64_value or number.uint64_value)
    return sorted(found)


def test_a_profile_has_the_steps_asked_for_and_changes_no_weight(
    files: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = run(files, tmp_path / "plain", changes={"epochs": 1})
    profiled = run(
        files,
        tmp_path / "profiled",
        changes={"epochs": 1},
        profile=ProfileSteps(4, 6),
    )
    assert_same_bits(plain.model, profiled.model)
    assert steps_of(tmp_path / "profiled/logs") == [4, 5, 6]
    logs = tmp_path / "profiled" / "logs"
    assert f"Profile of the steps 4:6: {logs}" in capsys.readouterr().out
    assert not (tmp_path / "plain/logs/plugins").exists()


def test_a_profile_that_the_run_s_end_cuts_is_kept(
    files: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The run has ten steps.
    options = {"changes": {"epochs": 1}}
    run(files, tmp_path / "cut", profile=ProfileSteps(9, 99), **options)
    assert steps_of(tmp_path / "cut/logs") == [9, 10]
    capsys.readouterr()
    run(files, tmp_path / "none", profile=ProfileSteps(11, 12), **options)
    said = capsys.readouterr().out
    assert "did none of the steps 11:12, it ended after 10" in said


@pytest.mark.parametrize(
    "text", ["", "3", "0:4", "5:4", "a:b", "1:2:3", "-1:2"]
)
def test_other_steps_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--profile-steps expects A:B"):
        ProfileSteps.parse(text)


def test_there_are_no_steps_of_a_model_that_is_there(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "retrieval", "--workdir", str(work)]
    assert main([*command, "--profile-steps", "1:2"]) == 2
    assert "retrieval_model is there already" in capsys.readouterr().err
