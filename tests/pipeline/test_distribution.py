"""TF_CONFIG, the rows of each worker, and processes that live and die."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from models.keras_setup import tf
from models.lanes import WorkerRows
from pipeline.distribution import (
    Task,
    current_task,
    launch_local_workers,
    make_strategy,
    worker_rows,
)
from schemas.errors import UsageError

CLUSTER = {"chief": ["h:1"], "worker": ["h:2", "h:3"]}


def config(cluster: object, kind: str = "worker", index: object = 0) -> str:
    task = {"type": kind, "index": index}
    return json.dumps({"cluster": cluster, "task": task})


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("", Task(1, 0)),
        ("{}", Task(1, 0)),
        (config({"worker": ["h:1", "h:2"]}, "worker", 1), Task(2, 1)),
        (config(CLUSTER, "chief", 0), Task(3, 0)),
        # A chief comes before the workers.
        (config(CLUSTER, "worker", 1), Task(3, 2)),
    ],
)
def test_the_task_of_a_process(
    text: str, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    assert current_task() == task
    assert current_task().is_chief == (task.index == 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{worker", "not JSON"),
        (config({"worker": ["h:1"], "ps": ["h:2"]}), "received ps"),
        (config({"worker": ["h:1", "h:1"]}), "address of its own"),
        (config({"chief": ["h:1", "h:2"], "worker": []}), "one chief"),
        (config(CLUSTER, "worker", 2), "not in its cluster"),
        (config(CLUSTER, "worker", -1), "not in its cluster"),
        (config(CLUSTER, "worker", "0"), "not in its cluster"),
        (config(CLUSTER, "evaluator", 0), "not in its cluster"),
        (json.dumps({"cluster": CLUSTER}), "not in its cluster"),
    ],
)
def test_what_is_wrong_with_tf_config_is_said(
    text: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=message):
        current_task()


def test_a_strategy_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UsageError, match="needs TF_CONFIG"):
        make_strategy("multi_worker")
    with pytest.raises(UsageError, match="received 'horovod'"):
        make_strategy("horovod")  # type: ignore[arg-type]
    monkeypatch.setenv("TF_CONFIG", config(CLUSTER))
    with pytest.raises(UsageError, match="names 3 processes"):
        make_strategy("one_device")


def test_one_device_reads_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy = make_strategy("one_device")
    assert isinstance(strategy, tf.distribute.OneDeviceStrategy)
    assert worker_rows(strategy) == WorkerRows(1, 0, 1)


def test_workers_get_their_tasks_and_their_lines_are_passed_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = (
        "import json, os; c = json.loads(os.environ['TF_CONFIG']);"
        "print(c['task']['index'], len(set(c['cluster']['worker'])))"
    )
    assert launch_local_workers(3, [sys.executable, "-c", program]) == 0
    lines = sorted(capsys.readouterr().out.splitlines())
    assert lines == [f"[worker {i}] {i} 3" for i in range(3)]


def test_when_one_dies_the_others_are_ended(tmp_path: Path) -> None:
    # Worker 1 fails with 3; worker 0 would write a file after 30 s.
    program = tmp_path / "program.py"
    late = tmp_path / "late"
    program.write_text(
        "import json, os, sys, time\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        "if index == 1: sys.exit(3)\n"
        "time.sleep(30)\n"
        f"open({str(late)!r}, 'w')\n"
    )
    start = time.monotonic()
    assert launch_local_workers(2, [sys.executable, str(program)]) == 3
    assert time.monotonic() - start < 20
    assert not late.exists()


def test_a_killed_worker_gives_a_shell_s_exit_code() -> None:
    program = "import os; os.kill(os.getpid(), 9)"
    # 128 + 9, as a shell reports it.
    assert launch_local_workers(1, [sys.executable, "-c", program]) == 137


# Ends 0.3 s after SIGTERM, having "saved".
SAVING = """
import os, pathlib, signal, sys, time
def save(*_):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], f"saved-{os.getpid()}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], f"ready-{os.getpid()}").touch()
time.sleep(60)
"""


def wait_for(folder: Path, pattern: str, count: int) -> list[Path]:
    deadline = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < deadline, pattern
        time.sleep(0.02)
    return list(folder.glob(pattern))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_and_all_may_save(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell() -> None:
        wait_for(tmp_path, "ready-*", 2)
        os.kill(os.getpid(), number)

    teller = threading.Thread(target=tell)
    teller.start()
    before = signal.getsignal(number)
    command = [sys.executable, "-c", SAVING, str(tmp_path)]
    assert launch_local_workers(2, command) == 143
    teller.join()
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert signal.getsignal(number) is before
    # That they ended is no failure of one of them.
    assert capsys.readouterr().out == ""


def test_a_worker_that_fails_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program = (
        "import json, os, time; c = json.loads(os.environ['TF_CONFIG']);"
        "os.kill(os.getpid(), 9) if c['task']['index'] else time.sleep(30)"
    )
    assert launch_local_workers(2, [sys.executable, "-c", program]) == 137
    expected = "Worker 1 ended by SIGKILL: the others are ended."
    assert expected in capsys.readouterr().out


@pytest.mark.slow
def test_workers_do_not_outlive_what_started_them(tmp_path: Path) -> None:
    program = (
        "import sys; from pipeline.distribution import launch_local_workers;"
        "launch_local_workers(2, [sys.executable, '-c', *sys.argv[1:]])"
    )
    root = str(Path(__file__).parents[2])
    parent = subprocess.Popen(
        [sys.executable, "-c", program, SAVING, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": root},
    )
    ready = wait_for(tmp_path, "ready-*", 2)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    pids = [int(path.name.split("-")[1]) for path in ready]
    while any(Path(f"/proc/{pid}/stat").exists() for pid in pids):
        states = [
            Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0]
            for pid in pids
            if Path(f"/proc/{pid}/stat").exists()
        ]
        if set(states) == {"Z"}:
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not list(tmp_path.glob("saved-*"))
