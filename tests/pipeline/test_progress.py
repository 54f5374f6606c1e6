"""What is seen of a job that runs: on a terminal, in a pipe, in a log."""

import os
import pty
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import progress
from beam_jobs.runners import pipeline_options, run_pipeline
from beam_jobs.user_shards import GroupByUserShard
from pipeline.progress import Lines, progress_shown
from schemas.events import EventSchema

# Read as 80 row groups, and worked on in 8 shards, each for some time: the
# bar is drawn ten times a second.
ROWS = 800_000
_JOB = f"""
import hashlib, sys
import apache_beam as beam
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from beam_jobs.runners import pipeline_options, run_pipeline
from beam_jobs.user_shards import GroupByUserShard
from pipeline.progress import progress_shown
from schemas.events import EventSchema

names = ("user_id", "query", "event_time_us")
n = np.arange({ROWS})
rows = pa.table({{
    "user_id": pa.array(n % 999).cast(pa.string()),
    "query": pa.array(n).cast(pa.string()),
    "event_time_us": n,
}})
pq.write_table(rows, sys.argv[1], row_group_size=10_000)
with progress_shown("split"), run_pipeline(pipeline_options()) as job:
    _ = job.pipeline | GroupByUserShard(
        {{"searches": {{"all": [sys.argv[1]]}}}},
        EventSchema({{"searches": names}}), 8, 10_000,
    ) | beam.Map(lambda _: hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000))
print("done")
"""


def _command(tmp_path: Path) -> list[str]:
    return [sys.executable, "-c", _JOB, str(tmp_path / "rows.parquet")]


def test_a_terminal_shows_rows_their_rate_and_the_time_left(
    tmp_path: Path,
) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        _command(tmp_path), stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # The terminal has closed.
                break
            if not data:
                break
            seen += data
    os.close(ours)
    assert process.returncode == 0, seen.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    for phase in ("reading", "working"):
        shown = re.findall(
            rf"split: {phase} \S+ +([\d,]+) of 800,000 rows, [\d,]+ rows/s +"
            r"\d:\d\d:\d\d left",
            text,
        )
        assert shown, (phase, text[-2000:])
        done = [int(rows.replace(",", "")) for rows in shown]
        assert done == sorted(done)
        assert 0 < done[-1] < ROWS
    assert text.rstrip().endswith("done")


def test_a_pipe_gets_no_control_characters(tmp_path: Path) -> None:
    done = subprocess.run(
        _command(tmp_path), capture_output=True, text=True, check=True
    )
    # The job is shorter than the first line's time.
    assert done.stdout == "done\n"


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 0.0, 10.0, 29.0, 31.0, 40.0, 61.0]).__next__
    lines = Lines("split", clock)
    lines.begin()
    lines.expect("read", 1000)
    for _ in range(3):  # At 10 s, 29 s and 31 s.
        lines.report("read", 100)
    lines.expect("work", 900)
    lines.report("work", 300)  # At 40 s: too early for a line.
    lines.report("work", 330)  # At 61 s.
    # 300 rows in the 21 s since the first: 14 rows/s, 700 / 14.3 = 49 s left;
    # then 630 in 21 s: 30 rows/s, 270 / 30 = 9 s left.
    assert capsys.readouterr().out.splitlines() == [
        "split: reading, 300 of 1,000 rows, 14 rows/s, 0:00:49 left",
        "split: working, 630 of 900 rows, 30 rows/s, 0:00:09 left",
    ]


def test_rows_of_unknown_number_have_no_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = Lines("events", iter([0.0, 0.0, 20.0, 40.0]).__next__)
    lines.begin()
    lines.report("read", 100)
    lines.report("read", 100)
    out = capsys.readouterr().out
    assert out == "events: reading, 200 rows, 10 rows/s\n"


def test_rows_beyond_the_cap_are_not_waited_for(tmp_path: Path) -> None:
    """6 + 2 rows in row groups of 4, at most 3 a user: 3 + 2 are left."""
    rows = pa.table(
        {
            "user_id": ["a"] * 6 + ["b"] * 2,
            "query": ["q"] * 8,
            "event_time_us": range(8),
        }
    )
    pq.write_table(rows, tmp_path / "s.parquet", row_group_size=4)
    schema = EventSchema({"searches": tuple(rows.column_names)})
    told: list[tuple[str, str, int]] = []

    class Told:
        def begin(self) -> None:
            told.clear()

        def expect(self, phase: str, rows: int) -> None:
            told.append(("expect", phase, rows))

        def report(self, phase: str, rows: int) -> None:
            told.append(("report", phase, rows))

        def end(self) -> None:
            told.append(("end", "", 0))

    with progress.watching(Told()), run_pipeline(pipeline_options()) as job:
        _ = job.pipeline | GroupByUserShard(
            {"searches": {"all": [str(tmp_path / "s.parquet")]}}, schema, 2, 3
        )
    # Three of the 8 rows are beyond the cap: done as soon as left out.
    sums = Counter[tuple[str, str]]()
    for what, phase, rows_told in told:
        sums[what, phase] += rows_told
    assert sums == {
        ("expect", "read"): 8,
        ("report", "read"): 8,
        ("expect", "work"): 8,
        ("report", "work"): 8,
        ("end", ""): 0,
    }
    assert told[0] == ("expect", "read", 8)
    assert told[-1] == ("end", "", 0)


def test_only_a_job_in_this_process_is_watched() -> None:
    flags = {
        (): True,
        ("--direct_running_mode=multi_processing",): False,
        ("--runner=FlinkRunner",): False,
    }
    with progress_shown("split"):
        assert not progress.is_watched()
        for given, expected in flags.items():
            with progress.told(pipeline_options(given)):
                assert progress.is_watched() == expected
    with progress.told(pipeline_options()):
        assert not progress.is_watched()
