"""Processes of this machine that work for this one and end with it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

_GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


def start(
    argv: Sequence[str], environment: Mapping[str, str], **options: Any
) -> subprocess.Popen[Any]:
    """Starts a command that never outlives the thread that starts it.

    Whatever that dies of: two runs would write to one folder, were this
    process killed and started anew.

    Args:
      argv: the command, program first.
      environment: all of it.
      options: further ones of `subprocess.Popen`.
    """
    libc = ctypes.CDLL(None)  # Loaded here: the child may only call it.
    return subprocess.Popen(
        list(argv),
        env=dict(environment),
        # A terminal's Ctrl-C would reach it twice.
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        **options,
    )


class LocalProcess:
    """A command whose output is passed on, line by line behind a prefix.

    It never outlives the thread that starts it; see `start`.

    Args:
      argv: the command, program first.
      prefix: of its lines, of standard output and error alike.
      environment: all of it.
    """

    def __init__(
        self, argv: Sequence[str], prefix: str, environment: Mapping[str, str]
    ) -> None:
        self.popen = start(
            argv,
            environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._prefix = prefix
        self._reader = threading.Thread(target=self._pass_on)
        self._reader.start()

    def poll(self) -> int | None:
        """Its exit code, None while it runs; minus the signal that ended it."""
        return self.popen.poll()

    def join(self) -> None:
        """Waits until all that it said is passed on."""
        self._reader.join()

    def _pass_on(self) -> None:
        assert self.popen.stdout is not None  # A pipe was asked for.
        with self.popen.stdout as stream:
            for line in stream:
                sys.stdout.write(self._prefix + line)
                sys.stdout.flush()


@contextlib.contextmanager
def passing_signals_to(
    processes: Sequence[LocalProcess],
) -> Iterator[list[int]]:
    """Sends the processes SIGTERM when this one gets it, or SIGINT.

    A second SIGINT raises KeyboardInterrupt. Yields the list of what it got
    so far; processes may be added to theirs.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def pass_on(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)
        for process in processes:
            process.popen.terminate()

    before = {
        number: signal.signal(number, pass_on)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def terminate(processes: Sequence[LocalProcess]) -> None:
    """Ends those that still run, kindly first, and passes on their lines."""
    running: list[subprocess.Popen[Any]] = [
        p.popen for p in processes if p.poll() is None
    ]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _GRACE_S
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for ended in processes:
        ended.join()


def without_cluster() -> dict[str, str]:
    """This process's environment without its place in a cluster."""
    return {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
