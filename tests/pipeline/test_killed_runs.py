"""Runs that are killed, stopped and told to stop: real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.keras_setup import tf

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """320 examples: 10 batches of 30 an epoch, 40 in the run of 4 epochs."""
    path = str(tmp_path_factory.mktemp("examples") / "train-0.tfrecord")
    rng = np.random.default_rng(0)

    def ints(values: Any) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    with tf.io.TFRecordWriter(path) as writer:
        for _ in range(320):
            history = rng.integers(1, 41, size=3).tolist()
            weight = tf.train.FloatList(value=[1.0])
            user = tf.train.BytesList(value=[b"u"])
            feature = {
                "watch_history": ints(history),
                "label": ints([history[0] * 7 % 40 + 1]),
                "event_time_us": ints([0]),
                "user_id": tf.train.Feature(bytes_list=user),
                "example_weight": tf.train.Feature(float_list=weight),
            }
            features = tf.train.Features(feature=feature)
            example = tf.train.Example(features=features)
            writer.write(example.SerializeToString())
    return {path: 320}


def run(
    files: dict[str, int], out: Path, attempts: list[dict[str, Any]], **job: Any
) -> list[dict[str, Any]]:
    """Runs in one work directory, one after the other."""
    job = {"workers": 1, "checkpoint_every": 7, **job}
    job |= {"files": files, "out": str(out)}
    out.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CONFIG", None)
    program = str(Path(__file__).with_name("killed_runs.py"))
    subprocess.run(
        [sys.executable, program, json.dumps({**job, "attempts": attempts})],
        env=environment,
        check=True,
    )
    return json.loads((out / "results.json").read_text())


def steps(out: Path) -> list[int]:
    found = (out / "work" / "checkpoints").glob("*.json")
    return sorted(int(path.stem.split("-")[1]) for path in found)


def test_a_run_that_is_killed_while_it_saves_or_told_to_stop(
    files: dict[str, int], tmp_path: Path
) -> None:
    *killed, whole = run(
        files,
        tmp_path,
        [
            {"inside": "data", "after": 7},
            {"inside": "manifest", "after": 14},
            {"signal": "SIGTERM", "to": [0], "after": 15},
            {},
            {"workdir": "whole"},
        ],
        step_s=0.01,
    )
    assert whole["codes"] == {"0": 0}
    codes = [result["codes"]["0"] for result in killed]
    assert codes == [-9, -9, 128 + 15, 0]
    # Killed in the first checkpoint, then in that of step 14.
    first, second, third = (result["log"]["0"] for result in killed[1:])
    assert "step-7 is not used: it was not written to its end" in first
    assert "Starting anew." in first
    assert "step-14 is not used" in second
    assert "Resuming from step-10." in second
    # The step under way is done and saved, and the run goes on after it.
    last = int(killed[2]["progress"]["0"]) + 1
    assert f"saved at step {last}." in second and "not used" not in third
    assert killed[3]["hash"] == whole["hash"] != {"0": ""}
    # The last two and the best.
    assert steps(tmp_path)[-1] == 40
    assert len(steps(tmp_path)) <= 3


def random_kills(workers: int) -> list[dict[str, Any]]:
    """10 kills, one every three steps, at random moments within them.

    A step takes 0.02 s and more: the last kill comes before step 40.
    """
    rng = np.random.default_rng(workers)
    victims = [list(range(workers)), [0], [workers - 1]]
    return [
        {
            "signal": "SIGKILL",
            "after": 3 * number + int(rng.integers(3)),
            "delay_s": float(rng.uniform(0, 0.06)),
            "to": victims[0 if number % 4 else number // 4 % 3],
        }
        for number in range(10)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_at_random_moments_change_no_bit(
    files: dict[str, int], tmp_path: Path, workers: int
) -> None:
    options = {"workers": workers, "checkpoint_every": 1, "step_s": 0.02}
    (whole,) = run(files, tmp_path / "whole", [{}], **options)
    results = run(
        files, tmp_path / "killed", [*random_kills(workers), {}], **options
    )
    assert set(whole["codes"].values()) == {0}
    for result in results[:-1]:
        assert -9 in result["codes"].values()
        assert 0 not in result["codes"].values()
    assert results[-1]["hash"] == whole["hash"]
    assert len(set(whole["hash"].values())) == 1 and whole["hash"]["0"]


@pytest.mark.slow
def test_all_workers_stop_at_one_step_when_one_is_told_to(
    files: dict[str, int], tmp_path: Path
) -> None:
    (whole,) = run(files, tmp_path / "whole", [{}], workers=2)
    told, rest = run(
        files,
        tmp_path / "told",
        [{"signal": "SIGTERM", "to": [1], "after": 22}, {}],
        workers=2,
        checkpoint_every=1000,
        step_s=0.01,
    )
    assert set(told["codes"].values()) == {128 + 15}
    done = {int(step) + 1 for step in told["progress"].values()}
    (last,) = done
    for log in told["log"].values():
        assert f"saved at step {last}." in log
    assert rest["hash"] == whole["hash"] != {"0": "", "1": ""}


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_the_others_stop_and_name_the_lost_worker(
    files: dict[str, int], tmp_path: Path, name: str, lost: int
) -> None:
    attempt = {"signal": name, "to": [lost], "after": 12}
    stopped, again = run(
        files, tmp_path / "run", [attempt, {}], workers=3, step_s=0.02
    )
    for index in {"0", "1", "2"} - {str(lost)}:
        assert stopped["codes"][index] == 1
        assert stopped["seconds"][index] < 60
        (line,) = (
            line
            for line in stopped["log"][index].splitlines()
            if line.startswith("watchnext: ")
        )
        assert line.startswith(f"watchnext: Lost worker {lost} (127.0.0.1:")
        # A survivor that left is not named.
        assert " and worker" not in line
    assert set(again["codes"].values()) == {0}


@pytest.mark.slow
def test_a_chief_that_evaluates_notices_a_lost_worker_and_waits_for_none(
    files: dict[str, int], tmp_path: Path
) -> None:
    attempt = {"signal": "SIGKILL", "to": [1], "after": 9}
    attempt |= {"evaluation_s": 120}
    lost, slow, resumed = run(
        files,
        tmp_path / "run",
        # An evaluation longer than all time limits is no hang.
        [
            attempt,
            {
                "evaluation_s": 50,
                "signal": "SIGTERM",
                "to": [0],
                "after": 9,
                "delay_s": 45,
            },
            {},
        ],
        workers=2,
    )
    assert lost["codes"]["0"] == 1 and lost["seconds"]["0"] < 60
    assert "Lost worker 1 (127.0.0.1:" in lost["log"]["0"]
    # Told to stop while it evaluates: at once, and nothing is lost.
    assert set(slow["codes"].values()) == {128 + 15}
    # It resumed at the first evaluation; this was the second one.
    assert "saved at step 20." in slow["log"]["0"]
    assert "saved at step 20." in slow["log"]["1"]
    assert set(resumed["codes"].values()) == {0}


@pytest.mark.slow
def test_workers_that_see_other_folders_say_so(
    files: dict[str, int], tmp_path: Path
) -> None:
    (result,) = run(files, tmp_path, [{}], workers=2, apart=True)
    assert result["codes"]["1"] == 1
    assert "All workers need the same work directory" in result["log"]["1"]
