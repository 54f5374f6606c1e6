"""The benchmarks compare equals: peers write what the jobs write."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from benchmarks import (
    columnar_examples,
    columnar_transform,
    naive_examples,
    polars_examples,
    polars_transform,
)
from benchmarks.beam_jobs import KEYS
from benchmarks.contest import checksum
from benchmarks.given import PARTS, Given
from benchmarks.logs import make_graph, make_log
from benchmarks.row_columns import COLUMNS, ROWS_FILE
from benchmarks.transform_rows import make_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Some 130 users, of whom some have 20 labels and most have fewer."""
    path = tmp_path_factory.mktemp("log")
    graph = make_graph(path / "full", 20_000)
    make_log(path / "log", 4_000, ("watches", "searches"))
    return Given.read(str(path / "log"), str(graph))


def examples(
    folder: Path, part: str, given: Given
) -> dict[tuple[bytes, int, int], dict[str, Any]]:
    """What the files of a part hold, by user, time and (first) label."""
    keys = given.keys(part)
    files = sorted(str(f) for f in folder.glob(f"{part}-*.tfrecord"))
    records = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    parsed = tf.io.parse_example(
        records, {k.name: k.parse_spec() for k in keys}
    )
    columns = {
        name: value.to_list()
        if isinstance(value, tf.RaggedTensor)
        else value.numpy()
        for name, value in parsed.items()
    }
    found = {}
    for row in range(len(records)):
        example = {name: values[row] for name, values in columns.items()}
        label = example["label"] if part == "train" else example["labels"][0]
        key = (example["user_id"], int(example["event_time_us"]), int(label))
        assert key not in found
        found[key] = example
    return found


@pytest.mark.slow  # 15 s: the transform graph is fitted.
@pytest.mark.parametrize("peer", [naive_examples, polars_examples])
def test_peers_write_the_examples_of_the_job(
    peer: Any, given: Given, tmp_path: Path
) -> None:
    folders = tmp_path / "ours", tmp_path / "theirs"
    for module, folder in zip((columnar_examples, peer), folders, strict=True):
        folder.mkdir()
        module.write_examples(given, folder)
    for part in PARTS:
        ours, theirs = (examples(folder, part, given) for folder in folders)
        assert len(ours) > (500 if part == "train" else 5)
        assert ours.keys() == theirs.keys()
        for key, example in ours.items():
            for name, value in example.items():
                other = theirs[key][name]
                if np.asarray(value).dtype == np.float32:
                    np.testing.assert_allclose(value, other, atol=1e-6)
                else:
                    np.testing.assert_array_equal(value, other, err_msg=name)
        assert checksum(folders[0], part, given.keys(part)) == checksum(
            folders[1], part, given.keys(part)
        )
        if part == "train":
            weights = {float(e["example_weight"]) for e in ours.values()}
            assert {1.0, 20.0} <= weights  # 20 / 20 labels, 20 / 1.


@pytest.mark.slow  # 15 s: a transform graph of its own.
def test_polars_transforms_as_the_graph_does(tmp_path: Path) -> None:
    num_rows = make_rows(tmp_path, 3_000)
    folders = tmp_path / "ours", tmp_path / "theirs"
    for module, folder in zip(
        (columnar_transform, polars_transform), folders, strict=True
    ):
        folder.mkdir()
        module.transform_rows(tmp_path, folder)
    ours, theirs = (
        pl.concat([pl.read_ipc(f) for f in sorted(folder.glob("*.arrow"))])
        for folder in folders
    )
    assert ours.height == theirs.height == num_rows
    for name in COLUMNS:
        values = ours[name].to_numpy()
        # All rows are in the sample, so the knots are the same.
        np.testing.assert_allclose(
            values, theirs[name].to_numpy(), atol=1e-6, err_msg=name
        )
    # A column without ties runs through the quantiles evenly: mean 1/2.
    score = ours["candidate_score"].to_numpy()[:, 0]
    rows = pl.read_parquet(tmp_path / ROWS_FILE)
    assert rows["candidate_score"].n_unique() > 0.9 * num_rows
    assert score.mean() == pytest.approx(0.5, abs=0.01)


def test_a_log_is_in_the_order_of_time_and_split_by_day(tmp_path: Path) -> None:
    log = make_log(tmp_path, 4_000, ("watches",))
    times = {
        part: pl.read_parquet(log.files("watches", part))[
            "event_time_us"
        ].to_numpy()
        for part in ("train", "valid", "test")
    }
    assert all(np.all(np.diff(t) >= 0) for t in times.values())
    # Training ends where validation begins, which lasts a day.
    assert times["train"][-1] < log.bounds.train_end_us
    assert times["valid"][0] >= log.bounds.train_end_us
    assert times["valid"][-1] < log.bounds.valid_end_us
    assert times["test"][0] >= log.bounds.valid_end_us
    day_us = 24 * 3600 * 10**6
    assert log.bounds.valid_end_us - log.bounds.train_end_us == day_us
    assert sum(map(len, times.values())) == log.rows["watches"]
    assert log.rows["watches"] == pytest.approx(4_000, rel=0.2)


@pytest.mark.slow  # Minutes: every process imports TensorFlow.
def test_quick_prints_every_key_as_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "benchmarks/beam_jobs.py",
            "--quick",
            f"--data={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert set(KEYS) <= printed.keys()
    numbers = [k for k in KEYS if k != "flink_bytes_equal"]
    assert all(printed[key] > 0 for key in numbers)
    assert printed["flink_bytes_equal"] in (True, False, None)
    assert printed["flink_note"]
    assert {"gemm_gflops", "versions"} <= printed["machine"].keys()
