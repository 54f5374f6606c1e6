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
from collections.abc import Callable, Iterator

import grpc
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

from models.keras_setup import tf
from pipeline.cluster import Task, current_task
from schemas.errors import WatchnextError

# Shorter ones would take a busy machine for a dead one. A lost worker is known
# after at most 5 + 10 + 1 + 10 s, and left after 10 more.
_HEARTBEAT_TIMEOUT_S = 20
_ASK_EVERY_S = 5.0
_ANSWER_WITHIN_S = 10.0
_ATTEMPTS = 2
_LEAVE_BY_ITSELF_S = 10.0
_CALL_EVERY_S = 0.3
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


def wait_for_all(task: Task, timeout_s: float) -> None:
    """Returns once every worker is there; before the strategy is made.

    TensorFlow waits for the others in one call that nothing ends: no time
    limit, no signal, no other thread. So they are waited for here. A worker
    is there when its port takes connections: this process's own does until it
    has seen all others, and from then on TensorFlow's server has it.

    Raises:
      LostWorkerError: names those that did not come within the time.
    """
    waited_for = set(range(task.num_workers)) - {task.index}
    until = time.monotonic() + timeout_s
    with _listening(task):
        while waited_for:
            waited_for -= {
                index
                for index in waited_for
                if _listens(task.workers[index].address)
            }
            if waited_for and time.monotonic() > until:
                names = " and ".join(map(task.name, sorted(waited_for)))
                raise LostWorkerError(
                    f"After {timeout_s:.0f} s {names} cannot be reached. Are "
                    "all workers started, with the same cluster in TF_CONFIG, "
                    "and can they reach each other? `--start-timeout-s` waits "
                    "longer."
                )
            if waited_for:
                time.sleep(_CALL_EVERY_S)


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
            or f"The workers lost each other for a while: {text}"
        ) from error
    finally:
        watch.left.set()


class _Watch(threading.Thread):
    """Asks the other workers whether they are there, until one is not."""

    def __init__(self, task: Task) -> None:
        super().__init__(daemon=True)
        self._task = task
        self._peers = {
            index: _Peer(worker.address)
            for index, worker in enumerate(task.workers)
            if index != task.index
        }
        self._lost = ""
        self._found = threading.Event()
        self.left = threading.Event()

    def run(self) -> None:
        while not self._found.is_set():
            if self.left.wait(_ASK_EVERY_S):
                return
            gone = self._gone()
            if gone:
                names = " and ".join(map(self._task.name, sorted(gone)))
                self._lost = (
                    f"Lost {names}: dead, hanging or unreachable. Start all "
                    "workers again to continue from the last checkpoint."
                )
                self._found.set()
        if not self.left.wait(_LEAVE_BY_ITSELF_S):
            _leave(self._lost)

    def lost_worker(self) -> str:
        """Says who is lost; empty where all answer after all."""
        self._found.wait(_ASK_EVERY_S + _ATTEMPTS * (_ANSWER_WITHIN_S + 1))
        # Were this one gone at once, others would name it as lost as well.
        time.sleep(_ASK_EVERY_S)
        return self._lost

    def _gone(self) -> set[int]:
        """Those that did not answer, several times."""
        silent = set(self._peers)
        for attempt in range(_ATTEMPTS):
            if silent and attempt:
                time.sleep(1.0)  # A connection may break off.
            asked = {index: self._peers[index].ask() for index in silent}
            silent = {i for i, answer in asked.items() if not answer()}
        return silent


class _Peer:
    """The TensorFlow server of another worker.

    TensorFlow's own `check_collective_ops_peer_health` sends the same
    message, but was seen not to return once the collectives were aborted.
    """

    def __init__(self, address: str) -> None:
        options = [("grpc.enable_http_proxy", 0)]
        channel = grpc.insecure_channel(address, options)
        method = "/tensorflow.WorkerService/GetStatus"
        self._status = channel.unary_unary(method)
        self._first: bytes | None = None

    def ask(self) -> Callable[[], bool]:
        """Sends the question; what it returns waits for the answer."""
        answer = self._status.future(b"", timeout=_ANSWER_WITHIN_S)

        def answered() -> bool:
            try:
                status = answer.result()
            except grpc.RpcError:
                return False
            # It holds a number that is drawn at the start: one that was
            # started anew is another worker.
            self._first = self._first or status
            return bool(status == self._first)

        return answered


def _listening(task: Task) -> socket.socket:
    """This worker's port; the system completes connections by itself."""
    worker = task.workers[task.index]
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", int(worker.address.rpartition(":")[2])),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=4096,
        )
    except (OSError, ValueError, OverflowError) as error:
        raise WatchnextError(
            f"This worker's port in TF_CONFIG, {worker.address}, cannot be "
            f"used: {error}."
        ) from error


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
