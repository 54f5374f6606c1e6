"""How far a job is, told to whoever watches it in this very process.

A job has two phases: rows are read, then, after the shuffle, whole shards of
them are worked on. The steps report here; where nobody watches (another
process, a cluster, a test) a report does nothing. It never touches the data.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal, Protocol

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
)

Phase = Literal["read", "work"]
_IN_PROCESS = ("FnApiRunner", "DirectRunner", "BundleBasedDirectRunner")


class Watcher(Protocol):
    """Is told of one job after the other, by several threads at once."""

    def begin(self) -> None:
        """A job is about to be built."""

    def expect(self, phase: Phase, rows: int) -> None:
        """That many rows more will come in a phase."""

    def report(self, phase: Phase, rows: int) -> None:
        """That many rows more are done."""

    def end(self) -> None:
        """The job has ended, well or not."""


# Who wants to know, and who is told: the same only while a job runs here.
_waiting: Watcher | None = None
_watcher: Watcher | None = None


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Jobs that run in this process within the block tell the watcher."""
    global _waiting
    before, _waiting = _waiting, watcher
    try:
        yield
    finally:
        _waiting = before


@contextlib.contextmanager
def told(options: PipelineOptions) -> Iterator[None]:
    """Marks the building and running of one job."""
    global _watcher
    before = _watcher
    _watcher = _waiting if _runs_here(options) else None
    try:
        if _watcher:
            _watcher.begin()
        yield
    finally:
        if _watcher:
            _watcher.end()
        _watcher = before


def is_watched() -> bool:
    """Whether it is worth while to find out how many rows there are."""
    return _watcher is not None


def expect(phase: Phase, rows: int) -> None:
    """Announces rows of a phase."""
    if _watcher:
        _watcher.expect(phase, rows)


def report(phase: Phase, rows: int) -> None:
    """Reports rows of a phase as done."""
    if _watcher:
        _watcher.report(phase, rows)


def _runs_here(options: PipelineOptions) -> bool:
    # Without a runner it is the one in process, see `runners`.
    runner = options.view_as(StandardOptions).runner or _IN_PROCESS[0]
    mode = options.view_as(DirectOptions).direct_running_mode
    return runner in _IN_PROCESS and mode != "multi_processing"
