"""How a Beam job runs: options, errors that stay readable, counters.

Default is the FnApiRunner, inside this process. Beam's own default, the
DirectRunner, first tries to download a runner; it is used only when asked for.
"""

import argparse
import contextlib
import dataclasses
import errno
import functools
import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    PipelineOptions,
    PrismRunnerOptions,
    StandardOptions,
)
from apache_beam.runners.worker import sdk_worker

from beam_jobs import progress
from beam_jobs.engine_programs import find_prism
from schemas import errors

DEFAULT_RUNNER = "FnApiRunner"
COUNTERS = "watchnext"
# Runners that hold what is being shuffled in the memory of this process.
_IN_PROCESS = ("FnApiRunner", "BundleBasedDirectRunner")
# What a worker's stack trace says of an error of ours: type and one line.
_OWN_ERROR = re.compile(r"schemas\.errors\.(\w+): (.*)")
_WHILE_RUNNING = re.compile(r" \[while running '.*$")
# Where Beam tells the stack trace of a failing step: the step itself, the
# job's messages (root), and an engine that repeats its workers' logs.
_TELLERS = (
    "apache_beam.runners.common",
    "",
    "PrismJobServer",
    "FlinkJarJobServer",
)
_READER_THREAD = "read_grpc_client_inputs"
# RunInference says so wherever the packages of its model manager are missing.
_UNTRUE = "Resource module is not available"


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


class ShuffleOptions(PipelineOptions):
    """Where a job of this machine may put what is being shuffled."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--spill_folder", help=argparse.SUPPRESS)


def spill_folder(options: PipelineOptions) -> str | None:
    """The folder for shuffled bytes; None: they travel through the runner."""
    folder = options.view_as(ShuffleOptions).spill_folder
    return str(folder) if folder else None


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
    with _spilling(options), progress.told(options):
        run = JobRun(beam.Pipeline(options=options))
        yield run
        if runner_name(options) != DEFAULT_RUNNER:
            _silence_dropped_workers()
        result = _finished(run.pipeline)
    run.counts.update(_counters(result))


def count(name: str, amount: int) -> None:
    """Adds to the counter `watchnext/<name>`; for use inside a worker."""
    beam.metrics.Metrics.counter(COUNTERS, name).inc(int(amount))


@contextlib.contextmanager
def _spilling(options: PipelineOptions) -> Iterator[None]:
    """Gives a job of this process a folder for what it shuffles."""
    shuffle = options.view_as(ShuffleOptions)
    if runner_name(options) not in _IN_PROCESS:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="watchnext-shuffle-") as folder:
        shuffle.spill_folder = folder
        try:
            yield
        finally:
            shuffle.spill_folder = None


def _finished(pipeline: beam.Pipeline) -> beam.runners.runner.PipelineResult:
    """Runs a pipeline; errors of ours come back as they were raised."""
    try:
        with _without_traces_of_own_errors():
            result = pipeline.run()
            result.wait_until_finish()
            return result
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


@contextlib.contextmanager
def _without_traces_of_own_errors() -> Iterator[None]:
    """Beam tells a failing step's stack; ours are explained in one line."""

    def keep(record: logging.LogRecord) -> bool:
        own = isinstance(record.msg, errors.WatchnextError)
        text = record.getMessage()
        return not (own or _OWN_ERROR.search(text) or _UNTRUE in text)

    loggers = [logging.getLogger(name) for name in _TELLERS]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


@functools.cache
def _silence_dropped_workers() -> None:
    """Leaves the telling of what failed to the job's own error.

    An engine whose job has failed drops the worker in this process (LOOPBACK)
    in the middle of its bundles. The worker tells each of their stacks twice
    and its reader dies of it, before or after the job's error has come: so
    this holds for good. The job's error carries the stack of what failed.
    """
    for module in ("sdk_worker", "data_plane"):
        logger = logging.getLogger(f"apache_beam.runners.worker.{module}")
        logger.setLevel(logging.CRITICAL)
    vars(sdk_worker)["print"] = lambda *_, **__: None
    logging.getLogger("PrismJobServer").addFilter(
        lambda record: "undle" not in record.getMessage()
    )
    hook = threading.excepthook

    def but_for_readers(died: threading.ExceptHookArgs) -> None:
        if died.thread is None or died.thread.name != _READER_THREAD:
            hook(died)

    threading.excepthook = but_for_readers


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
