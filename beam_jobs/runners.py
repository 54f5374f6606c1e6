"""How a Beam job runs: options, errors that stay readable, counters.

Default is the FnApiRunner, inside this process. Beam's own default, the
DirectRunner, first tries to download a runner; it is used only when asked for.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO
from unittest import mock

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    PrismRunnerOptions,
    StandardOptions,
)
from apache_beam.runners.worker import sdk_worker

from beam_jobs.engine_programs import find_prism
from schemas import errors

DEFAULT_RUNNER = "FnApiRunner"
COUNTERS = "watchnext"
# What a worker's stack trace says of an error of ours: type and one line.
_OWN_ERROR = re.compile(r"schemas\.errors\.(\w+): (.*)")
# Prism's notes that a bundle failed; the job's error has the reason.
_BUNDLE_FAILED = re.compile(r"[Pp]rism.*bundle error|aborting due to bundle")
_WHILE_RUNNING = re.compile(r" \[while running '.*$")
# Who tells a worker's stack trace: the step, the worker in this process, the
# job's messages (root), and an engine that repeats its workers' logs.
_TELLERS = (
    "apache_beam.runners.common",
    "apache_beam.runners.worker.sdk_worker",
    "",
    "PrismJobServer",
    "FlinkJarJobServer",
)


def pipeline_options(flags: Sequence[str] = ()) -> PipelineOptions:
    """Reads Beam's flags; without `--runner` the job runs in this process."""
    options = PipelineOptions(list(flags))
    standard = options.view_as(StandardOptions)
    if not any(flag.split("=")[0] == "--runner" for flag in flags):
        standard.runner = DEFAULT_RUNNER
    prism = options.view_as(PrismRunnerOptions)
    if standard.runner == "PrismRunner" and not prism.prism_location:
        # Beam would download it, although it may be here.
        prism.prism_location = find_prism()
    return options


def runner_name(options: PipelineOptions) -> str:
    """The short name of the runner, e.g. `FnApiRunner`."""
    return str(options.view_as(StandardOptions).runner or DEFAULT_RUNNER)


@dataclasses.dataclass
class JobRun:
    """A pipeline under construction; `counts` is filled when it has run."""

    pipeline: beam.Pipeline
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def run_pipeline(options: PipelineOptions) -> Iterator[JobRun]:
    """Builds in the block, runs at its end, then reads the counters.

    Raises:
      InputError, ArtifactError: raised by a worker; Beam hands back the text
        of a stack trace, from which the error is made again.
      OSError: ENOSPC, likewise.
    """
    run = JobRun(beam.Pipeline(options=options))
    yield run
    try:
        with _without_traces_of_own_errors():
            result = run.pipeline.run()
            result.wait_until_finish()
    except errors.WatchnextError as error:
        raise type(error)(_message(str(error))) from error
    except Exception as error:
        own = _OWN_ERROR.findall(str(error))
        kind = getattr(errors, own[-1][0], None) if own else None
        if kind is None and os.strerror(errno.ENOSPC) in str(error):
            full = os.strerror(errno.ENOSPC)
            raise OSError(errno.ENOSPC, full) from error
        if kind is None:
            raise
        raise kind(_message(own[-1][1])) from error
    run.counts.update(_counters(result))


def count(name: str, amount: int) -> None:
    """Adds to the counter `watchnext/<name>`; for use inside a worker."""
    beam.metrics.Metrics.counter(COUNTERS, name).inc(int(amount))


@contextlib.contextmanager
def _without_traces_of_own_errors() -> Iterator[None]:
    """Beam tells a failing step's stack; ours are explained in one line."""

    def keep(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not (
            isinstance(record.msg, errors.WatchnextError)
            or _OWN_ERROR.search(said)
            or _BUNDLE_FAILED.search(said)
        )

    def say(text: str, file: TextIO | None = None) -> None:
        if not _OWN_ERROR.search(text):
            print(text, file=file or sys.stdout)

    loggers = [logging.getLogger(name) for name in _TELLERS]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        # A worker in this process (LOOPBACK) prints the stack as well.
        with mock.patch.object(sdk_worker, "print", say, create=True):
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


def _message(text: str) -> str:
    return _WHILE_RUNNING.sub("", text.splitlines()[0]).strip()


def _counters(result: beam.runners.runner.PipelineResult) -> dict[str, int]:
    found = result.metrics().query(
        beam.metrics.MetricsFilter().with_namespace(COUNTERS)
    )["counters"]
    totals: dict[str, int] = {}
    for metric in found:
        name = metric.key.metric.name
        value = metric.committed
        value = metric.attempted if value is None else value
        totals[name] = totals.get(name, 0) + int(value)
    return dict(sorted(totals.items()))
