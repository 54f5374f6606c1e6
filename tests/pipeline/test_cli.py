"""Wrong use and bad input: one clear line, an exit code, nothing written."""

import logging
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.config import load_config
from pipeline.event_stage import make_events
from pipeline.run import Run, saved_config
from schemas.artifacts import ArtifactStore
from schemas.config import Config

NOON_US = 1_700_000_000_000_000
MAPPING = """
name: test
tables:
  watches:
    file: watches.csv
    columns:
      user_id: user
      video_id: video
      event_time_us: {column: at, unit: UNIT}
      watch_time_s: seconds
      completed: {expression: seconds > 60}
      source: {constant: search}
  videos:
    file: videos.csv
    columns:
      video_id: video
      channel_id: channel
      duration_s: length
"""


def _fails(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Runs a command that must fail; returns exit code and its one line."""
    # What the libraries log goes to the same place, as without pytest.
    to_stderr = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(to_stderr)
    try:
        code = main(arguments)
    finally:
        logging.getLogger().removeHandler(to_stderr)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("watchnext: ")]
    assert len(ours) == 1, said
    return code, ours[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--config", "no-such.yaml"], "no-such.yaml"),
        (["prepare", "--set", "beam.num_shard=3"], "'beam.num_shards'"),
        (["prepare"], "no completed 'events'; run `watchnext simulate"),
        (["train", "retrieval"], "no completed 'events'"),
        (["ingest"], "--mapping FILE"),
    ],
)
def test_wrong_use_exits_with_2(arguments, message, tmp_path, capsys) -> None:
    workdir = tmp_path / "work"
    code, line = _fails([*arguments, "--workdir", str(workdir)], capsys)
    assert code == 2
    assert message in line
    assert not workdir.exists()


def test_an_unknown_command_or_option_exits_with_2(capsys) -> None:
    assert main(["recomend"]) == 2
    assert "recomend" in capsys.readouterr().err
    assert main(["recommend", "--workdir", "x", "--users", "a"]) == 2
    assert "--users" in capsys.readouterr().err


def _logs(folder: Path, watches: str, unit: str = "s") -> list[str]:
    """Writes a mapping with its logs; returns the command that maps them."""
    (folder / "watches.csv").write_text(watches)
    (folder / "videos.csv").write_text("video,channel,length\nv,c,100\nw,c,9\n")
    (folder / "m.yaml").write_text(MAPPING.replace("UNIT", unit))
    return [
        "ingest",
        "--mapping",
        str(folder / "m.yaml"),
        "--input",
        str(folder),
        "--workdir",
        str(folder / "work"),
        "--set",
        "beam.num_shards=2",
    ]


HEADER = "user,video,at,seconds\n"


@pytest.mark.parametrize(
    ("watches", "unit", "message"),
    [
        (HEADER, "s", "watches"),  # an empty table
        ("user,video,seconds\na,v,1\n", "s", "'at'"),  # a missing column
        (HEADER + "a,v,soon,1\nb,v,later,1\n", "s", "at"),  # a wrong type
        (
            HEADER + "a,v,NaN,1\nb,w,NaN,1\n",
            "s",
            "event_time_us is not a number",
        ),
        # Seconds said to be milliseconds: all in 1970.
        (HEADER + "a,v,1700000000,1\n", "ms", "unit"),
    ],
)
def test_bad_logs_exit_with_1(watches, unit, message, tmp_path, capsys) -> None:
    code, line = _fails(_logs(tmp_path, watches, unit), capsys)
    assert code == 1
    assert message in line
    events = tmp_path / "work" / "events"
    assert not events.exists() or list(events.iterdir()) == []


def test_a_missing_log_names_the_file(tmp_path, capsys) -> None:
    command = _logs(tmp_path, HEADER + "a,v,1700000000,1\n")
    (tmp_path / "videos.csv").unlink()
    code, line = _fails(command, capsys)
    assert code == 1
    assert "videos.csv" in line
    command[command.index("--input") + 1] = str(tmp_path / "nowhere")
    code, line = _fails(command, capsys)
    assert code == 1
    assert "nowhere" in line


def test_good_logs_become_events(tmp_path, capsys) -> None:
    rows = "a,v,1700000000,61\na,w,1700000100,5\na,v,1700000000,61\n"
    assert main(_logs(tmp_path, HEADER + rows)) == 0
    assert "watches: 1 duplicates, 2 good" in capsys.readouterr().out
    # A run goes on with them, whatever else its configuration says.
    store = ArtifactStore(str(tmp_path / "work"))
    (ingested,) = store.versions("events")
    assert make_events(Run(Config(), store)).path == ingested.path
    saved = load_config(saved_config(store.workdir), [])
    assert saved.source.mapping == str(tmp_path / "m.yaml")
    assert make_events(Run(saved, store)).path == ingested.path
    files = (tmp_path / "work" / "events").glob("*/watches-*.parquet")
    found = pa.concat_tables(pq.read_table(f) for f in files)
    assert found.sort_by("event_time_us").to_pylist() == [
        {
            "user_id": "a",
            "video_id": video,
            "event_time_us": NOON_US + shift,
            "watch_time_s": seconds,
            "completed": completed,
            "source": "search",
        }
        for video, shift, seconds, completed in [
            ("v", 0, 61.0, True),
            ("w", 100_000_000, 5.0, False),
        ]
    ]


def test_events_of_another_mapping_are_not_gone_on_with(
    tmp_path, capsys
) -> None:
    assert main(_logs(tmp_path, HEADER + "a,v,1700000000,61\n")) == 0
    mapping = tmp_path / "m.yaml"
    mapping.write_text(mapping.read_text().replace("> 60", "> 30"))
    workdir = ["--workdir", str(tmp_path / "work")]
    code, line = _fails(["run", *workdir], capsys)
    assert code == 2
    assert "--input DIR" in line
    code, line = _fails(["run", *workdir, "--set", "beam.num_shards=3"], capsys)
    assert code == 2


def test_a_log_without_impressions_has_no_ranking(tmp_path, capsys) -> None:
    rows = "a,v,1700000000,61\n"
    assert main(_logs(tmp_path, HEADER + rows)) == 0
    capsys.readouterr()
    workdir = str(tmp_path / "work")
    code, line = _fails(["train", "ranking", "--workdir", workdir], capsys)
    assert code == 2
    assert "no impressions" in line
