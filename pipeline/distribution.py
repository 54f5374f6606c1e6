"""On what devices and processes a training runs."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Literal

from models.keras_setup import tf
from models.lanes import WorkerRows
from pipeline.cluster import Task as Task
from pipeline.cluster import current_task as current_task
from pipeline.console import say
from pipeline.local_processes import (
    LocalProcess,
    passing_signals_to,
    terminate,
)
from pipeline.workers_health import configure_heartbeats, wait_for_all
from schemas.errors import UsageError

StrategyName = Literal["auto", "one_device", "mirrored", "multi_worker", "tpu"]
# Pods of a cluster may have to wait for machines.
START_TIMEOUT_S = 600.0


def make_strategy(
    name: StrategyName = "auto",
    tpu: str | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> tf.distribute.Strategy:
    """Creates the distribution strategy; before any other TensorFlow call.

    Args:
      name: `auto` takes the cluster of TF_CONFIG if there is one, else all
        GPUs of this machine, else its CPU.
      tpu: name or address of the TPU, for `tpu`; None is the local one.
      start_timeout_s: how long to wait for the other workers.

    Raises:
      UsageError: an unknown name, a malformed TF_CONFIG, `multi_worker`
        without one, or another strategy despite one.
      LostWorkerError: another worker did not come within the time.
    """
    task = current_task()
    gpus = tf.config.list_physical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
        if task.num_workers > 1:
            name = "multi_worker"
    if task.num_workers > 1 and name != "multi_worker":
        raise UsageError(
            f"TF_CONFIG names {task.num_workers} processes but the strategy "
            f"is {name!r}; pass 'multi_worker' or unset TF_CONFIG."
        )
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "multi_worker":
        if not os.environ.get("TF_CONFIG"):
            raise UsageError(
                "'multi_worker' needs TF_CONFIG in each process, or "
                "`--workers N` to start N processes on this machine."
            )
        if task.num_workers == 1:
            return tf.distribute.MultiWorkerMirroredStrategy()
        configure_heartbeats(task)
        wait_for_all(task, start_timeout_s)
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu or "")
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    raise UsageError(
        "The strategy must be auto, one_device, mirrored, multi_worker or "
        f"tpu, received {name!r}."
    )


def worker_rows(strategy: tf.distribute.Strategy) -> WorkerRows:
    """The rows of each global batch that this process reads."""
    task, pieces = current_task(), int(strategy.num_replicas_in_sync)
    per_worker = pieces // task.num_workers
    return WorkerRows(pieces, task.index * per_worker, per_worker)


def launch_local_workers(num_workers: int, argv: Sequence[str]) -> int:
    """Runs a command as a cluster of processes on this machine.

    Each process gets its TF_CONFIG on a free port of 127.0.0.1. Their output
    is passed on line by line, behind `[worker i]`. When one fails, it is named
    and the others are terminated. SIGTERM and Ctrl-C are passed on, and the
    workers are given the time to save; a second Ctrl-C terminates them. They
    never outlive this process, whatever it dies of.

    Args:
      num_workers: processes to start.
      argv: the command, program first.

    Returns:
      0, or the exit code of the first process that failed.
    """
    addresses = _free_addresses(num_workers)
    processes: list[LocalProcess] = []
    with passing_signals_to(processes) as received:
        try:
            for index in range(num_workers):
                task = {"type": "worker", "index": index}
                config = {"cluster": {"worker": addresses}, "task": task}
                environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
                prefix = f"[worker {index}] "
                processes.append(LocalProcess(argv, prefix, environment))
            return _wait(processes, received)
        finally:
            terminate(processes)


def _wait(processes: Sequence[LocalProcess], received: Sequence[int]) -> int:
    """Waits until all have ended well or one has failed.

    Once they were told to stop it waits for all: one of them is saving.
    """
    while True:
        codes = [process.poll() for process in processes]
        running = None in codes
        failed = [i for i, code in enumerate(codes) if code]
        if failed and not (received and running):
            code = codes[failed[0]] or 0
            how = f"with exit code {code}"
            if code < 0:
                how = f"by {signal.Signals(-code).name}"
            if not received:
                say(f"Worker {failed[0]} ended {how}: the others are ended.")
            # A signal's negative number is no exit code.
            return code if code > 0 else 128 - code
        if not running:
            return 0
        time.sleep(0.05)


def _free_addresses(count: int) -> list[str]:
    """Addresses whose ports were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(_bound_socket()) for _ in range(count)]
        return [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]


@contextlib.contextmanager
def _bound_socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound
