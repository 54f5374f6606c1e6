import functools
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from beam_jobs.event_files import RawTable, run, write_simulated
from beam_jobs.event_rows import RawRows, sort_and_deduplicate, validate
from beam_jobs.runners import pipeline_options
from schemas.errors import InputError
from schemas.events import EventSchema

NOON_US = 1_700_000_000_000_000  # 14 November 2023
WATCH_TYPES = pa.schema(
    [
        ("user_id", pa.string()),
        ("video_id", pa.string()),
        ("event_time_us", pa.int64()),
        ("watch_time_s", pa.float64()),
        ("completed", pa.bool_()),
        ("source", pa.string()),
    ]
)
VIDEO_TYPES = pa.schema(
    [
        ("video_id", pa.string()),
        ("channel_id", pa.string()),
        ("topics", pa.list_(pa.string())),
        ("upload_time_us", pa.int64()),
        ("duration_s", pa.float64()),
    ]
)
SCHEMA = EventSchema(
    {
        "watches": tuple(WATCH_TYPES.names),
        "videos": tuple(VIDEO_TYPES.names),
        "users": ("user_id",),
    }
)


def _watches(*rows: tuple) -> pa.Table:
    """Rows of (user, video, seconds after noon, watch time)."""
    return pa.Table.from_pylist(
        [
            {
                "user_id": user,
                "video_id": video,
                "event_time_us": NOON_US + seconds * 1_000_000,
                "watch_time_s": watch_time,
                "completed": True,
                "source": "search",
            }
            for user, video, seconds, watch_time in rows
        ],
        schema=WATCH_TYPES,
    )


def _videos(*names: str) -> pa.Table:
    return pa.Table.from_pylist(
        [{"video_id": n, "topics": ["a"]} for n in names], schema=VIDEO_TYPES
    )


def _read_part(tables, part, log_start_us):
    """A source whose parts are numbers of tables in memory."""
    rows = tables[part[0]]
    yield RawRows(rows, f"part{part[0]}", np.arange(1, rows.num_rows + 1))


def _source(table: str, *tables: pa.Table, **more) -> RawTable:
    read = functools.partial(_read_part, tables)
    return RawTable(table, [(n,) for n in range(len(tables))], read, **more)


def _run(sources, output: Path, max_bad_share=1.0, schema=SCHEMA):
    output.mkdir(exist_ok=True)
    return run(
        sources, schema, str(output), 2, max_bad_share, pipeline_options()
    )


def _read(folder: Path, table: str) -> list[dict]:
    files = sorted(folder.glob(f"{table}-*.parquet"))
    return [row for f in files for row in pq.read_table(f).to_pylist()]


def _digests(folder: Path) -> dict[str, str]:
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.iterdir())
        if f.is_file() and not f.name.startswith("dead_letters")
    }


def test_rows_are_good_bad_or_repeated_and_every_one_is_counted(
    tmp_path,
) -> None:
    watches = _watches(
        ("b", "v1", 5, 2.0),
        ("a", "v2", 9, 4.0),
        ("a", "v1", 3, 7.0),
        ("a", "v1", 3, 6.0),  # The same event: the smaller row is kept.
        ("a", "v1", 4, 6.0),
        ("a", "", 4, 6.0),
        ("c", "v1", 1, -1.0),
    )
    counts = _run(
        [_source("watches", watches), _source("videos", _videos("v1", "v2"))],
        tmp_path,
    )
    assert counts == {
        "watches.read": 7,
        "watches.good": 4,
        "watches.bad": 2,
        "watches.bad.video_id is empty": 1,
        "watches.bad.watch_time_s is below 0": 1,
        "watches.duplicates": 1,
        "videos.read": 2,
        "videos.good": 2,
        "videos.bad": 0,
        "videos.duplicates": 0,
        # Users a and b; c has no good event.
        "users.read": 2,
        "users.good": 2,
        "users.bad": 0,
        "users.duplicates": 0,
    }
    rows = [
        (r["user_id"], r["event_time_us"] - NOON_US, r["watch_time_s"])
        for r in _read(tmp_path, "watches")
    ]
    assert sorted(rows) == [
        ("a", 3_000_000, 6.0),
        ("a", 4_000_000, 6.0),
        ("a", 9_000_000, 4.0),
        ("b", 5_000_000, 2.0),
    ]
    # Users stay together and in the order of time.
    assert [r for r in rows if r[0] == "a"] == sorted(
        r for r in rows if r[0] == "a"
    )
    assert {r["user_id"] for r in _read(tmp_path, "users")} == {"a", "b"}
    letters = _read(tmp_path, "dead_letters")
    assert {(r["row"], r["reason"], r["file"]) for r in letters} == {
        (6, "video_id is empty", "part0"),
        (7, "watch_time_s is below 0", "part0"),
    }
    records = {r["row"]: json.loads(r["record"]) for r in letters}
    assert records[7]["user_id"] == "c"
    assert records[7]["watch_time_s"] == -1.0
    stored = EventSchema.from_json((tmp_path / "schema.json").read_text())
    assert stored == SCHEMA


ROW = st.tuples(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from(["v1", "v2", ""]),
    st.integers(0, 2),
    st.sampled_from([None, 0.0, -0.0, 1.5, -1.0, 1e9]),
)


# A run of the job takes half a second: few examples, and no shrinking.
@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(st.lists(ROW, min_size=8, max_size=25), st.randoms())
def test_order_and_files_leave_no_trace_in_the_bytes(
    tmp_path_factory, rows, random
) -> None:
    rows = [("a", "v1", 0, 1.0), *rows]  # At least one is good.
    shuffled = random.sample(rows, len(rows))
    cut = random.randrange(len(rows) + 1)
    one = tmp_path_factory.mktemp("one")
    two = tmp_path_factory.mktemp("two")
    counts = _run(
        [
            _source("watches", _watches(*rows)),
            _source("videos", _videos("v1", "v2", "v1")),
        ],
        one,
    )
    again = _run(
        [
            _source("videos", _videos("v2", "v1"), _videos("v1")),
            _source(
                "watches",
                _watches(*shuffled[:cut]),
                _watches(*shuffled[cut:]),
            ),
        ],
        two,
    )
    assert _digests(one) == _digests(two)
    # An oracle of plain Python for the counts.
    good = [
        r for r in rows if r[1] and (r[3] is None or 0.0 <= r[3] <= 172_800.0)
    ]
    distinct = {r[:3] for r in good}
    for found in (counts, again):
        found = Counter(found)
        assert found["watches.read"] == len(rows)
        assert found["watches.bad"] == len(rows) - len(good)
        assert found["watches.good"] == len(distinct)
        assert found["watches.duplicates"] == len(good) - len(distinct)
    # Nulls are the smallest, so of equal keys the unknown time is kept.
    smallest = {
        key: min(-1.0 if r[3] is None else r[3] for r in good if r[:3] == key)
        for key in distinct
    }
    kept = {
        (
            r["user_id"],
            r["video_id"],
            (r["event_time_us"] - NOON_US) // 1_000_000,
        ): -1.0 if r["watch_time_s"] is None else r["watch_time_s"]
        for r in _read(one, "watches")
    }
    assert kept == smallest


def test_in_memory_and_beam_write_the_same_bytes(tmp_path) -> None:
    tables = {
        "watches": _watches(("b", "v", 1, 1.0), ("a", "v", 1, None)),
        "videos": _videos("w", "v", "v"),
        "users": pa.table({"user_id": ["b", "a"]}),
    }
    memory, beam = tmp_path / "memory", tmp_path / "beam"
    memory.mkdir()
    truth = {"video_truth": pa.table({"video_id": ["v"], "share": [0.5]})}
    counts = write_simulated(tables, truth, str(memory), 2)
    assert counts == _run([_source(t, r) for t, r in tables.items()], beam)
    assert counts["videos.duplicates"] == 1
    kept = pq.read_table(memory / "truth" / "video_truth.parquet")
    assert kept.equals(truth["video_truth"])
    (memory / "truth" / "video_truth.parquet").unlink()
    (memory / "truth").rmdir()
    assert _digests(memory) == _digests(beam)
    assert len(list(memory.glob("dead_letters-*"))) == 2


def test_the_simulator_is_validated_too(tmp_path) -> None:
    tables = {
        "watches": _watches(("a", "v", 1, 1.0), ("a", "v", 2, -4.0)),
        "videos": _videos("v"),
    }
    with pytest.raises(InputError, match="1 of 2 rows of 'watches' are bad"):
        write_simulated(tables, {}, str(tmp_path), 1)


def test_too_many_bad_rows_fail_and_the_reasons_are_named(tmp_path) -> None:
    good = [("a", "v1", n, 1.0) for n in range(8)]
    watches = _watches(*good, ("a", "", 1, 1.0), ("x", "", 1, 1.0))
    sources = [_source("watches", watches), _source("videos", _videos("v"))]
    # 2 of 10 is exactly the allowed share.
    assert _run(sources, tmp_path, 0.2)["watches.bad"] == 2
    with pytest.raises(InputError) as caught:
        _run(sources, tmp_path, 0.19)
    message = str(caught.value)
    assert "2 of 10 rows of 'watches' are bad" in message
    assert "video_id is empty (2)" in message
    assert "part0, row 9" in message
    assert "max_bad_share" in message
    assert "\n" not in message


def test_a_wrong_unit_is_suspected_where_every_row_fails(tmp_path) -> None:
    watches = _watches(("a", "v", 1, 1.0))
    column = watches.column_names.index("event_time_us")
    seconds = watches.set_column(
        column, "event_time_us", pa.array([NOON_US // 1_000_000])
    )
    sources = [_source("watches", seconds), _source("videos", _videos("v"))]
    with pytest.raises(InputError, match="unit of that time is probably"):
        _run(sources, tmp_path, 0.5)
    # One good row more: it is not the unit.
    mixed = pa.concat_tables([seconds, watches])
    with pytest.raises(InputError) as caught:
        _run([_source("watches", mixed), sources[1]], tmp_path, 0.4)
    assert "unit of that time" not in str(caught.value)


@pytest.mark.parametrize("table", ["watches", "videos"])
def test_a_table_that_must_have_rows(tmp_path, table) -> None:
    sources = {
        "watches": _source("watches", _watches(("a", "v", 1, 1.0))),
        "videos": _source("videos", _videos("v")),
    }
    empty = {"watches": WATCH_TYPES, "videos": VIDEO_TYPES}[table]
    sources[table] = _source(table, empty.empty_table())
    with pytest.raises(InputError, match=f"'{table}' has no good row: 0 read"):
        _run(list(sources.values()), tmp_path)


def test_a_history_before_the_log_learns_when_the_log_starts(
    tmp_path,
) -> None:
    def read(part, log_start_us):
        rows = _watches((f"start {log_start_us}", "v", -9, None))
        yield RawRows(rows, "h", np.array([1]))

    # The bad row is earlier, but no event: it does not start the log.
    dated = _watches(("a", "v", 7, 1.0), ("a", "v", 3, 1.0), ("", "v", 1, 1.0))
    _run(
        [
            RawTable("watches", [(0,)], read, before_log=True),
            _source("watches", dated),
            _source("videos", _videos("v")),
        ],
        tmp_path,
    )
    users = {r["user_id"] for r in _read(tmp_path, "watches")}
    assert users == {"a", f"start {NOON_US + 3_000_000}"}


def test_a_column_of_another_type_is_an_error_of_the_input(tmp_path) -> None:
    watches = _watches(("a", "v", 1, 1.0))
    wrong = watches.set_column(0, "user_id", pa.array([7]))
    sources = [_source("watches", wrong), _source("videos", _videos("v"))]
    with pytest.raises(
        InputError, match=r"watches\.user_id has type int64, expected string"
    ) as caught:
        _run(sources, tmp_path)
    assert "while running" not in str(caught.value)


def test_a_raw_record_is_cut_to_a_kibibyte_between_characters() -> None:
    # {"user_id":"x is 13 bytes, then two bytes a letter: 505 fit, 1 is left.
    long = _watches(("x" + "é" * 2000, "", 1, 1.0))
    raw = RawRows(long, "f", np.array([1]))
    _, letters, _ = validate("watches", raw, SCHEMA)
    (record,) = letters.column("record").to_pylist()
    assert record == '{"user_id":"x' + "é" * 505


def test_negative_zero_does_not_show_which_row_came_first() -> None:
    # -0.0 and 0.0 are equal in order; whichever is kept must be one byte form.
    rows = _watches(("a", "v", 1, -0.0), ("a", "v", 1, 0.0))
    kept, duplicates = sort_and_deduplicate("watches", rows)
    assert duplicates == 1
    assert not np.signbit(kept.column("watch_time_s")[0].as_py())


def test_wrong_arguments_are_refused(tmp_path) -> None:
    sources = [_source("watches", _watches(("a", "v", 1, 1.0)))]
    with pytest.raises(ValueError, match="max_bad_share"):
        _run(sources, tmp_path, 1.5)
    with pytest.raises(ValueError, match="searches"):
        _run([_source("searches", WATCH_TYPES.empty_table())], tmp_path)


def test_an_empty_request_id_names_no_request() -> None:
    names = ("user_id", "video_id", "event_time_us", "surface", "clicked")
    schema = EventSchema(
        {"impressions": (*names, "watch_time_s", "request_id")}
    )
    rows = pa.table(
        [
            ["u"] * 3,
            ["a", "b", "c"],
            [1_600_000_000_000_000] * 3,
            ["home"] * 3,
            [False] * 3,
            [0.0] * 3,
            ["", "r", None],
        ],
        schema=schema.arrow("impressions"),
    )
    raw = RawRows(rows, "log", np.arange(1, 4))
    good, _, counts = validate("impressions", raw, schema)
    assert good.column("request_id").to_pylist() == [None, "r", None]
    assert counts["impressions.bad"] == 0
