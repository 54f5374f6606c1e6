"""Workers that come late, or never; what is lost later is in killed runs."""

import json
import socket
import threading
import time

import pytest

from pipeline.cluster import Task, Worker
from pipeline.distribution import _free_addresses, make_strategy
from pipeline.workers_health import LostWorkerError, wait_for_all
from schemas.errors import WatchnextError


def cluster(count: int) -> list[Task]:
    workers = tuple(
        Worker("worker", i, address)
        for i, address in enumerate(_free_addresses(count))
    )
    return [Task(count, i, workers) for i in range(count)]


def test_workers_wait_for_one_that_is_late() -> None:
    tasks = cluster(3)
    came: dict[int, float] = {}
    over = threading.Event()

    def wait(task: Task) -> None:
        wait_for_all(task, 30)
        came[task.index] = time.monotonic()
        # In place of TensorFlow's server, which has the port from then on.
        port = int(task.workers[task.index].address.split(":")[1])
        with socket.create_server(("127.0.0.1", port)):
            over.wait()

    threads = [threading.Thread(target=wait, args=(t,)) for t in tasks]
    for thread in threads[:2]:
        thread.start()
    time.sleep(1.0)
    assert not came
    start = time.monotonic()
    threads[2].start()
    while len(came) < 3:
        assert time.monotonic() < start + 10
        time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()


def test_one_that_does_not_come_is_named() -> None:
    first, second, third = cluster(3)
    port = int(first.workers[0].address.split(":")[1])
    name = f"worker 2 ({third.workers[2].address})"
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(LostWorkerError) as raised,
    ):
        wait_for_all(second, 1)
    assert str(raised.value).startswith(f"After 1 s {name} cannot be reached.")


def test_the_strategy_is_not_made_before_all_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = _free_addresses(2)
    value = {
        "cluster": {"chief": addresses[:1], "worker": addresses[1:]},
        "task": {"type": "chief", "index": 0},
    }
    monkeypatch.setenv("TF_CONFIG", json.dumps(value))
    monkeypatch.setattr(
        "pipeline.distribution.configure_heartbeats", lambda task: None
    )
    with pytest.raises(LostWorkerError, match=f"worker 1 .{addresses[1]}"):
        make_strategy(start_timeout_s=0)


def test_a_port_that_is_taken_is_said() -> None:
    first, _ = cluster(2)
    port = int(first.workers[0].address.split(":")[1])
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(WatchnextError, match=f"{port}, cannot be used"),
    ):
        wait_for_all(first, 1)
