"""On what devices and processes a training runs.

A cluster is described by TF_CONFIG, as everywhere in TensorFlow:

    {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
     "task": {"type": "worker", "index": 0}}

Each process is started with the same command and its own task.
"""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, Literal

from models.keras_setup import tf
from models.lanes import WorkerRows
from schemas.errors import UsageError

StrategyName = Literal["auto", "one_device", "mirrored", "multi_worker", "tpu"]
_GRACE_S = 10.0


@dataclasses.dataclass(frozen=True)
class Task:
    """This process's place in the cluster."""

    num_workers: int = 1
    index: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process writes; the first worker does."""
        return self.index == 0


def current_task() -> Task:
    """Reads TF_CONFIG; a single chief where it is not set.

    Raises:
      UsageError: TF_CONFIG is malformed; says what is wrong with it.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return Task()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"TF_CONFIG is not JSON: {error}.") from error
    if not isinstance(value, dict) or not value.get("cluster"):
        return Task()  # A task without a cluster is a single process.
    cluster, task = value["cluster"], value.get("task", {})
    others = sorted(set(cluster) - {"chief", "worker"})
    if others:
        raise UsageError(
            "TF_CONFIG's cluster may have 'chief' and 'worker', received "
            f"{', '.join(others)} as well. Parameter servers and evaluators "
            "are not used here."
        )
    chiefs, workers = cluster.get("chief", []), cluster.get("worker", [])
    addresses = [*chiefs, *workers]
    if len(chiefs) > 1 or len(set(addresses)) < len(addresses):
        raise UsageError(
            "TF_CONFIG needs at most one chief and an address of its own for "
            f"each process, received {addresses}."
        )
    kind, index = task.get("type"), task.get("index")
    group = {"chief": chiefs, "worker": workers}.get(kind, [])
    if not isinstance(index, int) or not 0 <= index < len(group):
        raise UsageError(
            f"TF_CONFIG's task {task} is not in its cluster of "
            f"{len(chiefs)} chief(s) and {len(workers)} worker(s): expected "
            "'type' chief or worker, and an 'index' from 0."
        )
    before = len(chiefs) if kind == "worker" else 0
    return Task(len(addresses), before + index)


def make_strategy(
    name: StrategyName = "auto", tpu: str | None = None
) -> tf.distribute.Strategy:
    """Creates the distribution strategy; before any other TensorFlow call.

    Args:
      name: `auto` takes the cluster of TF_CONFIG if there is one, else all
        GPUs of this machine, else its CPU.
      tpu: name or address of the TPU, for `tpu`; None is the local one.

    Raises:
      UsageError: an unknown name, a malformed TF_CONFIG, `multi_worker`
        without one, or another strategy despite one.
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
    is passed on line by line, behind `[worker i]`. When one fails, the others
    are terminated.

    Args:
      num_workers: processes to start.
      argv: the command, program first.

    Returns:
      0, or the exit code of the first process that failed.
    """
    addresses = _free_addresses(num_workers)
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    try:
        for index in range(num_workers):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            process = subprocess.Popen(
                list(argv),
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            processes.append(process)
            arguments = (process.stdout, f"[worker {index}] ")
            reader = threading.Thread(target=_pass_on, args=arguments)
            reader.start()
            readers.append(reader)
        return _wait(processes)
    finally:
        _terminate(processes)
        for reader in readers:
            reader.join()


def _wait(processes: Sequence["subprocess.Popen[str]"]) -> int:
    """Waits until all have ended well or one has failed."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code]
        if failed:
            # A signal's negative number is no exit code.
            return failed[0] if failed[0] > 0 else 128 - failed[0]
        if None not in codes:
            return 0
        time.sleep(0.05)


def _terminate(processes: Sequence["subprocess.Popen[Any]"]) -> None:
    running = [p for p in processes if p.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pass_on(stream: IO[str], prefix: str) -> None:
    with stream:
        for line in stream:
            sys.stdout.write(prefix + line)
            sys.stdout.flush()


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
