"""How far a running job is: a bar on a terminal, now and then a line elsewhere.

The jobs tell `beam_jobs/progress.py` of rows read and rows worked on; here is
decided what a person sees of it.
"""

import contextlib
import dataclasses
import datetime
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from beam_jobs.progress import Phase, Watcher, watching
from pipeline.console import say

# Where there is no terminal: none for shorter jobs, at most one per interval.
LINE_EVERY_S = 30.0
_TITLES: dict[Phase, str] = {"read": "reading", "work": "working"}


@contextlib.contextmanager
def progress_shown(stage: str) -> Iterator[None]:
    """Shows the progress of the Beam jobs that run within the block."""
    watcher: Watcher = Bar(stage) if sys.stdout.isatty() else Lines(stage)
    with watching(watcher):
        yield


class Bar:
    """One bar a phase, which is gone when the job has ended."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._lock = threading.Lock()
        self._progress: Progress | None = None
        self._tasks: dict[Phase, TaskID] = {}
        self._finishing = False

    def begin(self) -> None:
        self._tasks, self._finishing = {}, False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            _Rows(),
            _Left(),
            console=Console(),
            transient=True,
        )
        self._progress.start()

    def expect(self, phase: Phase, rows: int) -> None:
        progress, task = self._task(phase)
        with self._lock:
            total = progress.tasks[task].total or 0
            progress.update(task, total=total + rows)

    def report(self, phase: Phase, rows: int) -> None:
        progress, task = self._task(phase)
        if not progress.tasks[task].started:
            progress.start_task(task)
        progress.advance(task, rows)
        with self._lock:
            read = self._tasks.get("read")
            if (
                phase == "work"
                and read is not None
                and progress.tasks[read].total is None
            ):
                # Of a text nobody knows the rows before; now all are read.
                progress.update(read, total=progress.tasks[read].completed)
            if not self._finishing and progress.finished:
                # What comes after all shards has no rows to count.
                self._finishing = True
                progress.add_task(f"{self._stage}: finishing", total=None)

    def end(self) -> None:
        if self._progress:
            self._progress.stop()

    def _task(self, phase: Phase) -> tuple[Progress, TaskID]:
        if self._progress is None:
            raise ValueError("No job has begun.")
        with self._lock:
            if phase not in self._tasks:
                self._tasks[phase] = self._progress.add_task(
                    f"{self._stage}: {_TITLES[phase]}", start=False, total=None
                )
            return self._progress, self._tasks[phase]


class _Rows(ProgressColumn):
    """`1,000 of 5,000 rows, 250 rows/s`."""

    def render(self, task: Task) -> Text:
        if not task.completed and task.total is None:
            return Text()
        speed = task.finished_speed or task.speed
        return Text(_rows(task.completed, task.total, speed))


class _Left(TimeRemainingColumn):
    """`0:01:05 left`; the time that it took, where no end is known."""

    def render(self, task: Task) -> Text:
        if task.total is None or task.finished:
            elapsed_s = int(task.finished_time or task.elapsed or 0)
            return Text(str(datetime.timedelta(seconds=elapsed_s)))
        return super().render(task).append(" left")


@dataclasses.dataclass
class _Count:
    total: int = 0
    done: int = 0
    started: float | None = None


class Lines:
    """A plain line of text at most every `LINE_EVERY_S` seconds."""

    def __init__(
        self, stage: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stage = stage
        self._now = now
        self._lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        self._counts: dict[Phase, _Count] = {"read": _Count(), "work": _Count()}
        self._said = self._now()

    def expect(self, phase: Phase, rows: int) -> None:
        with self._lock:
            self._counts[phase].total += rows

    def report(self, phase: Phase, rows: int) -> None:
        with self._lock:
            now, count = self._now(), self._counts[phase]
            count.started = now if count.started is None else count.started
            count.done += rows
            if now - self._said < LINE_EVERY_S:
                return
            self._said = now
            line = self._line(phase, count, now - count.started)
        say(line)

    def end(self) -> None:
        pass

    def _line(self, phase: Phase, count: _Count, seconds: float) -> str:
        speed = count.done / seconds if seconds > 0 else None
        line = (
            f"{self._stage}: {_TITLES[phase]}, "
            f"{_rows(count.done, count.total or None, speed)}"
        )
        if not speed or count.total < count.done:
            return line
        left_s = round((count.total - count.done) / speed)
        return f"{line}, {datetime.timedelta(seconds=left_s)} left"


def _rows(done: float, total: float | None, speed: float | None) -> str:
    of = f" of {total:,.0f}" if total else ""
    rate = f", {speed:,.0f} rows/s" if speed else ""
    return f"{done:,.0f}{of} rows{rate}"
