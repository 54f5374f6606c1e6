"""Runs jobs as processes, some at once; one that fails stops no other.

Each job's output is a log file of its own. What is still running when this
process is interrupted, or killed, is ended with it.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.local_processes import start

_CHILD = "pipeline.experiments.child"
# Of TensorFlow, and of the BLAS below NumPy.
_THREADS = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclasses.dataclass(frozen=True)
class Job:
    """A process to run.

    Attributes:
      name: said when it is done.
      arguments: of `pipeline.experiments.child`.
      log: file of its output.
    """

    name: str
    arguments: tuple[str, ...]
    log: str


@dataclasses.dataclass(frozen=True)
class Done:
    """A job that ended; `code` is its exit code."""

    job: Job
    code: int
    seconds: float


def run_jobs(
    jobs: Sequence[Job], at_once: int, tell: Callable[[Done], None]
) -> list[Done]:
    """Runs all jobs, `at_once` of them at a time.

    Args:
      jobs: independent of each other.
      at_once: the machine's cores are shared out among so many.
      tell: called with each as it ends, one at a time.

    Returns:
      how each ended, in the order of the jobs.

    Raises:
      KeyboardInterrupt: by SIGINT or SIGTERM; nothing runs any more.
    """
    crew = _Crew(max(1, (os.cpu_count() or 1) // at_once), tell)
    with _terminated_as_interrupted(), ThreadPoolExecutor(at_once) as pool:
        try:
            return list(pool.map(crew.run, jobs))
        except BaseException:
            crew.end()
            raise


def last_line(log: str) -> str:
    """What a failed job said last."""
    path = Path(log)
    text = path.read_text(errors="replace") if path.exists() else ""
    said = [line.strip() for line in text.split("\n") if line.strip()]
    return said[-1] if said else "nothing"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Lets SIGTERM end this process as SIGINT does: jobs do not outlive it."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Crew:
    """The processes that run."""

    def __init__(self, threads: int, tell: Callable[[Done], None]) -> None:
        self._threads, self._tell = threads, tell
        self._running: set[subprocess.Popen[Any]] = set()
        self._lock, self._ended = threading.Lock(), False

    def run(self, job: Job) -> Done:
        Path(job.log).parent.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with open(job.log, "wb") as log:
            with self._lock:
                if self._ended:
                    return Done(job, -1, 0.0)
                process = start(
                    [sys.executable, "-m", _CHILD, *job.arguments],
                    self._environment(),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                )
                self._running.add(process)
            code = process.wait()
        done = Done(job, code, time.monotonic() - started)
        with self._lock:
            self._running.discard(process)
            if not self._ended:
                self._tell(done)
        return done

    def end(self) -> None:
        """Ends what runs, and lets nothing more begin."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()

    def _environment(self) -> Mapping[str, str]:
        # The child finds our packages where this process found them.
        path = os.pathsep.join(p for p in sys.path if p)
        threads = dict.fromkeys(_THREADS, str(self._threads))
        return {**os.environ, "PYTHONPATH": path, **threads}
