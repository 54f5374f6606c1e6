"""The intervals by hand, both protocols."""

import datetime
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.runners import pipeline_options
from beam_jobs.split import run, time_bounds
from schemas.config import SplitConfig
from schemas.errors import InputError
from schemas.events import EventSchema
from schemas.split import SplitBounds

HOUR = 3_600_000_000
# 2022-04-25 00:00 UTC: 19,107 days after 1970-01-01.
DAY_0 = 19_107 * 24 * HOUR


def watches(rows: list[tuple]) -> pa.Table:
    """(user, video, hours after DAY_0, watch time, undated) rows."""
    return pa.table(
        {
            "user_id": [r[0] for r in rows],
            "video_id": [r[1] for r in rows],
            "event_time_us": pa.array([DAY_0 + int(r[2] * HOUR) for r in rows]),
            "watch_time_s": pa.array([r[3] for r in rows], pa.float64()),
            "completed": [True] * len(rows),
            "source": ["home"] * len(rows),
            "undated": pa.array([r[4] for r in rows], pa.bool_()),
        }
    )


def searches(rows: list[tuple]) -> pa.Table:
    return pa.table(
        {
            "user_id": [r[0] for r in rows],
            "query": [r[1] for r in rows],
            "event_time_us": pa.array([DAY_0 + int(r[2] * HOUR) for r in rows]),
        }
    )


def split(
    folder: Path,
    tables: dict[str, pa.Table],
    config: SplitConfig,
    num_shards: int = 2,
    row_group_size: int = 3,
) -> dict[str, int]:
    """Runs the job on files in `folder`; the result is in folder/out."""
    schema = EventSchema.of_tables(tables)
    folder.mkdir(exist_ok=True)
    files = {}
    for name, rows in tables.items():
        path = folder / f"{name}.parquet"
        rows = rows.select(schema.arrow(name).names).cast(schema.arrow(name))
        pq.write_table(rows, path, row_group_size=row_group_size)
        files[name] = [str(path)]
    (folder / "out").mkdir()
    return run(
        files,
        schema,
        config,
        num_shards,
        str(folder / "out"),
        pipeline_options(),
    )


def part(folder: Path, name: str, table: str) -> list[tuple]:
    """(user, video or query, hours) of a part, over its shards."""
    files = sorted((folder / "out" / name).glob(f"{table}-*-of-*.parquet"))
    column = "query" if table == "searches" else "video_id"
    return sorted(
        (r["user_id"], r[column], (r["event_time_us"] - DAY_0) / HOUR)
        for file in files
        for r in pq.read_table(file).to_pylist()
    )


FIVE_DAYS = [
    ("a", "v0", -500.0, 1.0, True),  # Undated: 21 days before all others.
    ("a", "v1", 1.0, 1.0, False),
    ("a", "v2", 71.9, 1.0, None),
    ("b", "v3", 72.0, 1.0, False),
    ("b", "v4", 95.99, 1.0, False),
    ("a", "v5", 96.0, 1.0, False),
    ("a", "v6", 119.0, 1.0, False),
]


def test_time_protocol_by_hand(tmp_path: Path) -> None:
    asked = [("a", "q1", 71.0), ("c", "q2", 72.0), ("a", "q3", 100.0)]
    counts = split(
        tmp_path / "s",
        {
            "watches": watches([*FIVE_DAYS, ("b", "v7", 97.0, 1.0, True)]),
            "searches": searches(asked),
        },
        SplitConfig(test_days=1, valid_days=1),
    )
    # Days 0 to 4 (hours 0 to 119): test is day 4 = [96, 120), validation is
    # day 3 = [72, 96), training days 0 to 2 and whatever has no date.
    folder = tmp_path / "s"
    assert part(folder, "train", "watches") == [
        ("a", "v0", -500.0),
        ("a", "v1", 1.0),
        ("a", "v2", 71.9),
        ("b", "v7", 97.0),
    ]
    assert part(folder, "valid", "watches") == [
        ("b", "v3", 72.0),
        ("b", "v4", 95.99),
    ]
    assert part(folder, "test", "watches") == [
        ("a", "v5", 96.0),
        ("a", "v6", 119.0),
    ]
    assert part(folder, "train", "searches") == [("a", "q1", 71.0)]
    assert part(folder, "valid", "searches") == [("c", "q2", 72.0)]
    assert part(folder, "test", "searches") == [("a", "q3", 100.0)]
    bounds = SplitBounds.read(str(folder / "out" / "split.json"))
    assert bounds == SplitBounds(
        "time", DAY_0, DAY_0 + 72 * HOUR, DAY_0 + 96 * HOUR, 0.0
    )
    test = json.loads((folder / "out" / "test.json").read_text())
    assert test == {"test_end_us": DAY_0 + 120 * HOUR}
    assert counts["train_watches"] == 4
    assert counts["undated_watches"] == 2
    assert counts["after_test_watches"] == 0


def test_days_begin_at_the_offset() -> None:
    # UTC+8: the local day begins at 16:00 UTC. Hours 15.9 and 16 of DAY_0
    # are 25 and 26 April there; hour 100 is 29 April, 12:00.
    bounds, test_end = time_bounds(
        DAY_0 + int(15.9 * HOUR),
        DAY_0 + 100 * HOUR,
        SplitConfig(utc_offset_hours=8),
    )
    assert bounds.log_start_us == DAY_0 - 8 * HOUR
    assert bounds.train_end_us == DAY_0 + (3 * 24 - 8) * HOUR
    assert bounds.valid_end_us == DAY_0 + (4 * 24 - 8) * HOUR
    assert test_end == DAY_0 + (5 * 24 - 8) * HOUR
    later, _ = time_bounds(
        DAY_0 + 16 * HOUR, DAY_0 + 100 * HOUR, SplitConfig(utc_offset_hours=8)
    )
    assert later.log_start_us == DAY_0 + 16 * HOUR


def test_given_test_start_drops_what_follows(tmp_path: Path) -> None:
    config = SplitConfig(test_start=datetime.date(2022, 4, 28))
    # Test is day 3, validation day 2; day 4 is in no part.
    counts = split(tmp_path / "s", {"watches": watches(FIVE_DAYS)}, config)
    folder = tmp_path / "s"
    assert [r[1] for r in part(folder, "train", "watches")] == ["v0", "v1"]
    assert [r[1] for r in part(folder, "valid", "watches")] == ["v2"]
    assert [r[1] for r in part(folder, "test", "watches")] == ["v3", "v4"]
    assert counts["after_test_watches"] == 2


@pytest.mark.parametrize(
    ("last_hour", "config", "message"),
    [
        (47.0, SplitConfig(), r"2 day\(s\); 1 test and 1 validation"),
        (95.0, SplitConfig(test_days=2, valid_days=2), r"4 day\(s\)"),
        (
            95.0,
            SplitConfig(test_start=datetime.date(2022, 4, 26)),
            "no day to train on",
        ),
        (
            95.0,
            SplitConfig(test_start=datetime.date(2022, 4, 29)),
            "outside the log, which has events from 2022-04-25 to 2022-04-28",
        ),
        (
            95.0,
            SplitConfig(test_start=datetime.date(2022, 4, 24)),
            "outside the log",
        ),
    ],
)
def test_impossible_intervals(
    last_hour: float, config: SplitConfig, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        time_bounds(DAY_0, DAY_0 + int(last_hour * HOUR), config)


def test_shortest_log_that_can_be_split() -> None:
    # Three days for one each; test_start on the third day is the default.
    end = DAY_0 + 48 * HOUR
    default = time_bounds(DAY_0, end, SplitConfig())
    given = SplitConfig(test_start=datetime.date(2022, 4, 27))
    assert time_bounds(DAY_0, end, given) == default


def test_no_test_watch_is_an_input_error(tmp_path: Path) -> None:
    # The last day has a search but no watch.
    tables = {
        "watches": watches(FIVE_DAYS[:5]),
        "searches": searches([("a", "q", 100.0)]),
    }
    with pytest.raises(InputError, match="no dated watch in: test"):
        split(tmp_path / "s", tables, SplitConfig())


def test_last_watch_by_hand(tmp_path: Path) -> None:
    rows = [
        ("a", "w1", 1.0, None, None),
        ("a", "w3", 5.0, None, None),  # Ties with w2: the video decides.
        ("a", "w2", 5.0, None, None),
        ("a", "w0", -9.0, None, True),  # Undated: neither counts nor moves.
        ("b", "x1", 2.0, None, None),  # Two dated watches: all train.
        ("b", "x2", 3.0, None, None),
        ("b", "x0", -9.0, None, True),
        ("c", "y1", 1.0, 60.0, None),
        ("c", "y2", 2.0, 60.0, None),
        ("c", "y3", 4.0, 60.0, None),
        ("c", "y4", 8.0, 60.0, None),
    ]
    asked = [
        ("a", "q1", 4.99),
        ("a", "q2", 5.0),  # At the time of both held-out watches: test.
        ("c", "q3", 3.0),
        ("c", "q4", 4.0),
        ("c", "q5", 8.0),
        ("b", "q6", 99.0),
    ]
    split(
        tmp_path / "s",
        {"watches": watches(rows), "searches": searches(asked)},
        SplitConfig(protocol="last_watch"),
    )
    folder = tmp_path / "s"
    videos = {
        name: [r[1] for r in part(folder, name, "watches")]
        for name in ("train", "valid", "test")
    }
    assert videos == {
        "train": ["w0", "w1", "x0", "x1", "x2", "y1", "y2"],
        "valid": ["w2", "y3"],
        "test": ["w3", "y4"],
    }
    queries = {
        name: sorted(r[1] for r in part(folder, name, "searches"))
        for name in ("train", "valid", "test")
    }
    assert queries == {
        "train": ["q1", "q3", "q6"],
        "valid": ["q4"],
        "test": ["q2", "q5"],
    }
    # Training ends one past its last end: b's x2 at hour 3 (c's y2 ends one
    # minute after hour 2); validation a's w2 at hour 5 (y3: 4 h 1 min).
    bounds = SplitBounds.read(str(folder / "out" / "split.json"))
    assert bounds == SplitBounds(
        "last_watch",
        DAY_0 + 1 * HOUR,
        DAY_0 + 3 * HOUR + 1,
        DAY_0 + 5 * HOUR + 1,
        0.0,
    )
    test = json.loads((folder / "out" / "test.json").read_text())
    # y4 at hour 8 and one minute.
    assert test == {"test_end_us": DAY_0 + 8 * HOUR + 60_000_000 + 1}


def test_last_watch_needs_three_watches(tmp_path: Path) -> None:
    rows = [("a", "v", t, None, None) for t in (1.0, 2.0)]
    with pytest.raises(InputError, match="No user has three dated watches"):
        split(
            tmp_path / "s",
            {"watches": watches(rows)},
            SplitConfig(protocol="last_watch"),
        )


def hashes(folder: Path, *names: str) -> dict[str, str]:
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()
        for name in names
        for f in sorted((folder / name).rglob("*"))
        if f.is_file()
    }


@pytest.mark.parametrize("protocol", ["time", "last_watch"])
def test_row_order_leaves_no_trace(tmp_path: Path, protocol: str) -> None:
    rows = [
        (f"u{i % 5}", f"v{i % 4}", float(i % 119), 1.0, False)
        for i in range(150)
    ]
    config = SplitConfig(protocol=protocol)
    split(tmp_path / "one", {"watches": watches(rows)}, config)
    split(
        tmp_path / "two",
        {"watches": watches(rows[::-1])},
        config,
        row_group_size=150,
    )
    one = hashes(tmp_path / "one" / "out", ".")
    assert one == hashes(tmp_path / "two" / "out", ".")
    assert len(one) == 2 * 3 + 2


def test_test_events_leave_no_trace_in_training(tmp_path: Path) -> None:
    garbage = [
        (u, f"{v}-other", h + 0.5, 3.0, x) if h >= 96 else (u, v, h, w, x)
        for u, v, h, w, x in FIVE_DAYS
    ]
    split(tmp_path / "one", {"watches": watches(FIVE_DAYS)}, SplitConfig())
    split(tmp_path / "two", {"watches": watches(garbage)}, SplitConfig())
    names = ("train", "valid")
    one = hashes(tmp_path / "one" / "out", *names)
    assert one == hashes(tmp_path / "two" / "out", *names)
    bounds = [
        (tmp_path / n / "out" / "split.json").read_bytes()
        for n in ("one", "two")
    ]
    assert bounds[0] == bounds[1]
    tests = [hashes(tmp_path / n / "out", "test") for n in ("one", "two")]
    assert tests[0] != tests[1]
