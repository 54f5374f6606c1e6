"""Which runner is taken, and what a failing worker leaves to read."""

import errno
import logging
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PrismRunnerOptions

from beam_jobs.runners import (
    count,
    pipeline_options,
    run_pipeline,
    runner_name,
)
from schemas.errors import InputError


def test_default_runner_needs_no_download() -> None:
    assert runner_name(pipeline_options([])) == "FnApiRunner"
    chosen = pipeline_options(["--runner=FlinkRunner", "--parallelism=2"])
    assert runner_name(chosen) == "FlinkRunner"


def test_a_prism_that_is_here_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prism = tmp_path / "prism"
    prism.write_text("#!/bin/sh\n")
    prism.chmod(0o755)
    monkeypatch.setenv("WATCHNEXT_PRISM", str(prism))

    def location(*flags: str) -> str | None:
        options = pipeline_options(flags).view_as(PrismRunnerOptions)
        return options.prism_location

    assert location("--runner=PrismRunner") == str(prism)
    assert location("--runner=PrismRunner", "--prism_location=/x") == "/x"
    assert location() is None


def _fail(number: int) -> int:
    if number == 3:
        raise InputError("file x is bad: expected y.")
    return number


def _broken(number: int) -> float:
    return 1 / number


def _count(number: int) -> None:
    count("seen", number)


def _full(number: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/x")


def test_a_full_disk_stays_one() -> None:
    with (
        pytest.raises(OSError, match="No space left") as caught,
        run_pipeline(pipeline_options()) as job,
    ):
        _ = job.pipeline | beam.Create([1]) | beam.Map(_full)
    assert caught.value.errno == errno.ENOSPC


def test_own_errors_leave_no_stack_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The command line, which other tests call, mutes this logger for good.
    caplog.set_level(logging.ERROR, "apache_beam.runners.common")
    for function, kind in ((_fail, InputError), (_broken, Exception)):
        caplog.clear()
        with pytest.raises(kind), run_pipeline(pipeline_options()) as job:
            _ = job.pipeline | beam.Create([3, 0]) | beam.Map(function)
        logged = [r for r in caplog.records if r.levelname == "ERROR"]
        # A failure that we did not foresee keeps its trace.
        assert bool(logged) == (function is _broken)


def test_own_errors_keep_type_and_message() -> None:
    with (
        pytest.raises(InputError) as caught,
        run_pipeline(pipeline_options()) as job,
    ):
        _ = job.pipeline | beam.Create([1, 2, 3]) | "F" >> beam.Map(_fail)
    assert str(caught.value) == "file x is bad: expected y."


def test_other_errors_stay_what_they_are() -> None:
    with (
        pytest.raises(Exception, match="division by zero") as caught,
        run_pipeline(pipeline_options()) as job,
    ):
        _ = job.pipeline | beam.Create([0]) | beam.Map(_broken)
    assert not isinstance(caught.value, InputError)


def test_counts_are_read_after_the_run() -> None:
    with run_pipeline(pipeline_options()) as job:
        _ = job.pipeline | beam.Create([1, 2, 3]) | beam.Map(_count)
    assert job.counts == {"seen": 6}
