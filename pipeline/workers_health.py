"""A worker that is dead, hangs or never comes: the others stop and name it.

Every worker asks the others, again and again, whether they are there. It is
TensorFlow's server that answers, in threads of its own: a long evaluation by
the chief is no hang, while a stopped process is one, although its sockets
still take connections. TensorFlow's own heartbeats end the collective
operations, but name the survivors who left first along with the lost worker,
or nobody, and do not reach a chief that is evaluating.
"""

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator

from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

from models.keras_setup import tf
from pipeline.cluster import Task, Worker, current_task
from schemas.errors import WatchnextError

# Shorter ones would take a busy machine for a dead one. A lost worker is known
# after at most 5 + 2 x 10 s, and left after 10 more.
_HEARTBEAT_TIMEOUT_S = 20
_ASK_EVERY_S = 5.0
_ANSWER_WITHIN_S = 10
_ATTEMPTS = 2
_LEAVE_BY_ITSELF_S = 10.0
# How a failure of the cluster, and of nothing else, reads.
_CLUSTER = re.compile(
    r"Collective ops is aborted|CoordinationService|WorkerService"
)


class LostWorkerError(WatchnextError):
    """Another worker is gone; the run can be continued by all anew."""


def configure_heartbeats(task: Task) -> None:
    """Says when a worker counts as lost; before the strategy is made.

    The strategy itself starts the service with what is set here, but has no
    argument for it.
    """
    jobs = sorted({worker.job for worker in task.workers})
    first = task.workers[0]
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{first.job}/replica:0/task:{first.number}",
        heartbeat_timeout_in_ms=_HEARTBEAT_TIMEOUT_S * 1000,
        coordinated_jobs=[
            coordination_config_pb2.CoordinatedJob(
                name=job, num_tasks=sum(w.job == job for w in task.workers)
            )
            for job in jobs
        ],
    )


@contextlib.contextmanager
def waiting_for_all(task: Task, timeout_s: float) -> Iterator[None]:
    """Ends this process where the others do not come within a time.

    TensorFlow waits for them in one uninterruptible call, and its own limit
    has no effect there; so it is a thread that ends the process.
    """
    came = threading.Event()

    def watch() -> None:
        if came.wait(timeout_s):
            return
        missing = [
            task.name(index)
            for index, worker in enumerate(task.workers)
            if index != task.index and not _listens(worker.address)
        ]
        _leave(
            f"After {timeout_s:.0f} s this worker still waits for "
            f"{' and '.join(missing) or 'the others'}. Are all started, with "
            "the same cluster in TF_CONFIG, and can they reach each other?"
        )

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        came.set()


@contextlib.contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Stops where another worker is lost, and says which.

    The work inside must end on all workers at once: with a collective.

    Raises:
      LostWorkerError: names the worker, by its index and address. Where the
        main thread does not come to it within 10 s, as in an evaluation, the
        process ends, with the same line and exit code.
    """
    task = current_task()
    if task.num_workers == 1:
        yield
        return
    watch = _Watch(task)
    watch.start()
    try:
        yield
    except tf.errors.OpError as error:
        text = str(error.message)
        if not _CLUSTER.search(text):
            raise
        raise LostWorkerError(
            watch.lost_worker()
            or f"The workers lost each other: {text.splitlines()[0]}"
        ) from error
    finally:
        watch.left.set()


class _Watch(threading.Thread):
    """Asks the other workers whether they are there, until one is not."""

    def __init__(self, task: Task) -> None:
        super().__init__(daemon=True)
        self._task = task
        self._lost = ""
        self._found = threading.Event()
        self.left = threading.Event()

    def run(self) -> None:
        while not self._found.is_set():
            if self.left.wait(_ASK_EVERY_S):
                return
            gone = [
                self._task.name(index)
                for index, worker in enumerate(self._task.workers)
                if index != self._task.index and not _answers(worker)
            ]
            if gone:
                self._lost = (
                    f"Lost {' and '.join(gone)}: dead, hanging or "
                    "unreachable. Start all workers again to continue from "
                    "the last checkpoint."
                )
                self._found.set()
        if not self.left.wait(_LEAVE_BY_ITSELF_S):
            _leave(self._lost)

    def lost_worker(self) -> str:
        """Says who is lost; empty where all answer after all."""
        self._found.wait(_ASK_EVERY_S + _ATTEMPTS * _ANSWER_WITHIN_S)
        # Were this one gone at once, others would name it as lost as well.
        time.sleep(_ASK_EVERY_S)
        return self._lost


def _answers(worker: Worker) -> bool:
    """Asks TensorFlow's server; one started anew counts as another."""
    name = f"/job:{worker.job}/replica:0/task:{worker.number}"
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(tf.errors.OpError):
            context.context().check_collective_ops_peer_health(
                name, timeout_in_ms=_ANSWER_WITHIN_S * 1000
            )
            return True
    return False


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 5.0).close()
    except (OSError, ValueError):
        return False
    return True


def _leave(message: str) -> None:
    """Says it as the command line does, and ends whatever is under way."""
    print(f"watchnext: {message}", file=sys.stderr, flush=True)
    os._exit(1)
