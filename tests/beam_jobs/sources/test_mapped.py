import datetime
import gzip
import hashlib
import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from beam_jobs.runners import pipeline_options
from beam_jobs.sources.mapped import load_mapping, run
from schemas.errors import InputError, UsageError
from schemas.events import EventSchema

NOON_S = 1_700_000_000  # 14 November 2023, 22:13:20 UTC
MAPPINGS = Path(__file__).parents[3] / "configs" / "mappings"

WATCHES = {
    "file": "log.csv",
    "columns": {
        "user_id": "user",
        "video_id": "clip",
        "event_time_us": {"column": "time", "unit": "s"},
        "watch_time_s": {"expression": "LEAST(played, length)", "unit": "ms"},
        "completed": {"expression": "played >= 0.5 * length"},
        "source": {"constant": "app"},
    },
}
VIDEOS = {
    "file": "clips.jsonl",
    "columns": {
        "video_id": "id",
        "channel_id": "channel",
        "topics": {"column": "tags", "separator": "|"},
        "upload_time_us": {"column": "uploaded", "format": "iso"},
        "duration_s": {"column": "minutes", "unit": "min"},
    },
    "extras": {"quality": {"kind": "continuous", "column": "score"}},
}
LOG = f"""user,clip,time,played,length
007,v1,{NOON_S},4000,3000
007,v2,{NOON_S + 9},1000,4000
8,v1,{NOON_S + 1},2000,4000
"""
CLIPS = """{"id": "v1", "channel": 5, "tags": "a|b", "score": 1.5}
{"id": "v2", "tags": "", "uploaded": "2023-11-14T22:13:20Z", "minutes": 2}
"""


def _mapping(**tables):
    return load_mapping(
        {"tables": {"watches": WATCHES, "videos": VIDEOS} | tables}
    )


def _changed(table: dict, **changes) -> dict:
    """A table's mapping with some columns changed."""
    return table | {"columns": table["columns"] | changes}


def _run(mapping, root: Path, max_bad_share: float = 0.0, shards: int = 1):
    output = root / "out"
    output.mkdir(exist_ok=True)
    return run(
        mapping,
        str(root),
        str(output),
        shards,
        max_bad_share,
        pipeline_options(),
    )


def _rows(root: Path, table: str) -> list[dict]:
    files = sorted((root / "out").glob(f"{table}-*.parquet"))
    return [row for f in files for row in pq.read_table(f).to_pylist()]


def _digests(root: Path, table: str) -> list[str]:
    files = sorted((root / "out").glob(f"{table}-*.parquet"))
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


@pytest.fixture
def logs(tmp_path) -> Path:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "clips.jsonl").write_text(CLIPS)
    return tmp_path


def test_csv_and_json_lines_by_hand(logs) -> None:
    counts = _run(_mapping(), logs)
    assert counts["watches.good"] == 3
    assert _rows(logs, "watches") == [
        {
            "user_id": "007",  # An id keeps its zeros.
            "video_id": "v1",
            "event_time_us": 1_700_000_000_000_000,
            "watch_time_s": 3.0,  # Least of 4,000 and 3,000 ms.
            "completed": True,
            "source": "app",
        },
        {
            "user_id": "007",
            "video_id": "v2",
            "event_time_us": 1_700_000_009_000_000,
            "watch_time_s": 1.0,
            "completed": False,  # 1,000 < 2,000.
            "source": "app",
        },
        {
            "user_id": "8",
            "video_id": "v1",
            "event_time_us": 1_700_000_001_000_000,
            "watch_time_s": 2.0,
            "completed": True,  # 2,000 >= 2,000.
            "source": "app",
        },
    ]
    assert _rows(logs, "videos") == [
        {
            "video_id": "v1",
            "channel_id": "5",
            "topics": ["a", "b"],
            "upload_time_us": None,
            "duration_s": None,
            "quality": 1.5,
        },
        {
            "video_id": "v2",
            "channel_id": None,
            "topics": None,  # An empty cell is no list.
            "upload_time_us": 1_700_000_000_000_000,
            "duration_s": 120.0,
            "quality": None,
        },
    ]
    # No table of users: they are those of the events.
    assert _rows(logs, "users") == [{"user_id": "007"}, {"user_id": "8"}]
    schema = EventSchema.from_json((logs / "out/schema.json").read_text())
    assert schema == _mapping().event_schema()
    assert schema.extras["videos"][0].kind == "continuous"
    assert not schema.has("impressions")


def test_formats_and_pieces_of_files_give_the_same_bytes(logs) -> None:
    _run(_mapping(), logs, shards=2)
    expected = _digests(logs, "watches")
    lines = LOG.splitlines(keepends=True)
    # Two CSV files, one compressed, rows in another order.
    (logs / "part1.csv").write_text(lines[0] + lines[3])
    with gzip.open(logs / "part2.csv.gz", "wt") as stream:
        stream.write(lines[0] + lines[2] + lines[1])
    watches = WATCHES | {"file": "part*", "format": "csv"}
    _run(_mapping(watches=watches), logs, shards=2)
    assert _digests(logs, "watches") == expected
    # Parquet with a row group per row; numbers are numbers there.
    frame = pl.read_csv(logs / "log.csv", schema_overrides={"user": pl.String})
    frame.reverse().write_parquet(logs / "log.parquet", row_group_size=1)
    watches = WATCHES | {"file": "log.parquet"}
    _run(_mapping(watches=watches), logs, shards=2)
    assert _digests(logs, "watches") == expected
    frame.write_ndjson(logs / "log.jsonl")
    watches = WATCHES | {"file": "log.jsonl"}
    _run(_mapping(watches=watches), logs, shards=2)
    assert _digests(logs, "watches") == expected


def test_broken_records_are_dead_letters_with_file_and_row(logs) -> None:
    many = "".join(f"u{n},v1,{NOON_S + n},3000,3000\n" for n in range(95))
    # Rows 1 to 98 are good: the three of the log, then 95.
    broken = (
        f"9,v1,{NOON_S},long,3000\n"  # 99: an expression's column.
        "9,v1\n"  # 100: cells are missing.
        f"9,v1,{NOON_S}000,3000,3000\n"  # 101: milliseconds.
        ",v1,1,3000,3000\n"  # 102: no user.
    ).encode()
    garbled = b"9,\xff,%d,3000,3000\n" % NOON_S  # 103: not UTF-8.
    (logs / "log.csv").write_bytes((LOG + many).encode() + broken + garbled)
    clips = CLIPS + '{"id": "v3"\n[1]\n{"id": "v4", "minutes": "two"}\n'
    (logs / "clips.jsonl").write_text(clips)
    counts = _run(_mapping(), logs, max_bad_share=1.0)
    assert counts["watches.read"] == 103
    assert counts["watches.good"] == 98
    assert counts["watches.bad"] == 5
    found = {
        (r["file"], r["row"]): r["reason"] for r in _rows(logs, "dead_letters")
    }
    late = found.pop(("log.csv", 101))
    assert late.startswith("event_time_us is above")
    assert found == {
        ("log.csv", 99): "played is not an integer",
        ("log.csv", 100): "the row has not the header's number of cells",
        ("log.csv", 102): "user_id is missing",
        ("log.csv", 103): "the record is not UTF-8",
        ("clips.jsonl", 3): "the line is no JSON object",
        ("clips.jsonl", 4): "the line is no JSON object",
        ("clips.jsonl", 5): "duration_s is not a number",
    }
    records = {
        (r["file"], r["row"]): r["record"] for r in _rows(logs, "dead_letters")
    }
    assert records["log.csv", 100] == "9,v1"
    assert json.loads(records["log.csv", 99])["played"] == "long"


def test_a_filter_selects_rows_but_never_hides_broken_ones(logs) -> None:
    watches = WATCHES | {
        "where": "played > 1000",
        "types": {"played": "integer"},
    }
    (logs / "log.csv").write_text(LOG + f"9,v1,{NOON_S},?,3000\n")
    counts = _run(_mapping(watches=watches), logs, max_bad_share=0.5)
    # Of four rows one has 1,000 ms, and of one it is not known.
    assert counts["watches.not_selected"] == 1
    assert counts["watches.read"] == 3
    assert counts["watches.bad.played is not an integer"] == 1
    assert counts["watches.good"] == 2


@pytest.mark.parametrize(
    ("cell", "source"),
    [
        (str(NOON_S), {"unit": "s"}),
        (f"{NOON_S}.0", {"unit": "s"}),
        (f"{NOON_S}000", {"unit": "ms"}),
        (f"{NOON_S}000000", {"unit": "us"}),
        (f"{NOON_S}000000999", {"unit": "ns"}),
        ("2023-11-14T22:13:20Z", {}),
        ("2023-11-14 23:13:20+01:00", {"format": "iso"}),
        ("2023-11-14 22:13:20", {"format": "iso"}),
        # The zone of a text wins over the one declared for the others.
        ("2023-11-14T22:13:20Z", {"utc_offset_hours": 8}),
        ("2023-11-15 06:13:20", {"utc_offset_hours": 8}),
        ("14.11.2023 22.13.20", {"format": "%d.%m.%Y %H.%M.%S"}),
    ],
)
def test_times_in_all_units_are_the_same_microsecond(cell, source) -> None:
    from beam_jobs.sources.mapped_cells import convert
    from beam_jobs.sources.mapping import ColumnMapping
    from schemas.events import TABLES

    column = next(c for c in TABLES["watches"] if c.name == "event_time_us")
    mapping = ColumnMapping(column="t", **source)
    cells = pl.Series("t", [cell, None, "soon"])
    times_us = convert(cells, column, mapping).to_list()
    assert times_us == [1_700_000_000_000_000, None, None]


def test_a_time_that_would_overflow_is_out_of_range(logs) -> None:
    # 18,448,444,073,710 s * 1e6 = 2^64 + 1.7e15: 64 bits would wrap around to
    # a good time of 2023.
    text = LOG.replace(str(NOON_S), "18448444073710", 1)
    (logs / "log.csv").write_text(text)
    counts = _run(_mapping(), logs, max_bad_share=0.5)
    assert counts["watches.bad"] == 1
    (letter,) = _rows(logs, "dead_letters")
    assert letter["reason"].startswith("event_time_us is above")


def test_nan_is_null_where_a_value_may_be_missing(logs) -> None:
    nan = float("nan")
    pl.DataFrame(
        {"id": [3.0, 4.0], "score": [nan, 2.0], "seconds": [1.0, nan]}
    ).write_parquet(logs / "clips.parquet")
    videos = {
        "file": "clips.parquet",
        "columns": {"video_id": "id", "duration_s": "seconds"},
        "extras": {
            "score": "continuous",
            "code": {"kind": "categorical", "column": "score"},
        },
    }
    _run(_mapping(videos=videos), logs)
    got = [
        (r["video_id"], r["duration_s"], r["score"], r["code"])
        for r in _rows(logs, "videos")
    ]
    # A whole number in a real column is an id without ".0".
    assert got == [("3", 1.0, None, None), ("4", None, 2.0, "2")]


def test_an_undated_history_is_placed_in_order_before_the_log(logs) -> None:
    pl.DataFrame(
        {
            "user": ["8", "m", "n"],
            "seen": [["v3", "v1", "v2"], ["v1"], []],
            "whole": [["v1", "v9"], [], ["v1"]],
        }
    ).write_parquet(logs / "past.parquet")
    content = {
        "tables": {"watches": WATCHES, "videos": VIDEOS},
        "undated_history": {
            "file": "past.parquet",
            "user_id": "user",
            "watched": "seen",
            "completed": "whole",
        },
    }
    counts = _run(load_mapping(content), logs)
    assert counts["watches.good"] == 7
    rows = [r for r in _rows(logs, "watches") if r["undated"]]
    got = [
        (
            r["user_id"],
            r["video_id"],
            r["event_time_us"] // 1_000_000 - NOON_S,
            r["completed"],
            r["watch_time_s"],
            r["source"],
        )
        for r in rows
    ]
    # The log starts at noon; three watches, one second apart, end before it.
    assert got == [
        ("8", "v3", -3, False, None, "history"),
        ("8", "v1", -2, True, None, "history"),
        ("8", "v2", -1, False, None, "history"),
        ("m", "v1", -1, False, None, "history"),
    ]
    content["undated_history"]["log_start"] = datetime.datetime(
        2023, 11, 14, 22, 0, tzinfo=datetime.UTC
    )
    _run(load_mapping(content), logs)
    times = [
        r["event_time_us"] // 1_000_000 - NOON_S
        for r in _rows(logs, "watches")
        if r["undated"]
    ]
    assert times == [-803, -802, -801, -801]  # 13 min 20 s = 800 s earlier.


def _watches_with(**changes):
    return _mapping(watches=_changed(WATCHES, **changes))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            lambda: _watches_with(user_id="usr"),
            "log.csv has no column 'usr', which tables.watches needs for "
            "'user_id'; did you mean 'user'? It has: user, clip, time",
        ),
        (
            lambda: _watches_with(completed={"expression": "plaid > 1"}),
            "no column 'plaid', which tables.watches needs for 'completed'; "
            "did you mean 'played'?",
        ),
        (
            lambda: _watches_with(completed={"expression": "played >"}),
            "the expression 'played >' cannot be read",
        ),
        (
            lambda: _watches_with(completed={"expression": "clip > 3"}),
            "the expression of 'completed', 'clip > 3', fails",
        ),
        (
            lambda: _watches_with(watch_time_s={"expression": "MAX(played)"}),
            "aggregate over rows",
        ),
        (
            lambda: _mapping(watches=WATCHES | {"file": "lag.csv"}),
            "has no file 'lag.csv'; did you mean 'log.csv'?",
        ),
        (
            lambda: _mapping(watches=WATCHES | {"where": "played"}),
            "where is Int64, expected true or false",
        ),
        (
            lambda: _mapping(watches=WATCHES | {"file": "empty.csv"}),
            "empty.csv is empty",
        ),
        (
            lambda: _mapping(watches=WATCHES | {"file": "header.csv"}),
            "header.csv is empty",
        ),
        (
            lambda: _mapping(watches=WATCHES | {"file": "bad.parquet"}),
            "bad.parquet is no readable Parquet file",
        ),
        (
            lambda: _watches_with(
                event_time_us={"column": "time", "unit": "ms"}
            ),
            "the unit of that time is probably wrong",
        ),
    ],
)
def test_what_is_wrong_with_the_input_is_one_clear_line(
    logs, mapping, message
) -> None:
    (logs / "empty.csv").write_text("")
    (logs / "header.csv").write_text(LOG.splitlines()[0] + "\n")
    (logs / "bad.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    with pytest.raises(InputError) as caught:
        _run(mapping(), logs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_corrupt_page_and_a_missing_folder(logs) -> None:
    frame = pl.DataFrame({"user": [f"user {n}" for n in range(5000)]})
    frame = frame.with_columns(
        clip=pl.lit("v1"), time=NOON_S, played=1, length=1
    )
    frame.write_parquet(logs / "log.parquet")
    data = bytearray((logs / "log.parquet").read_bytes())
    data[4:2000] = b"\x00" * 1996  # The footer is whole.
    (logs / "log.parquet").write_bytes(data)
    mapping = _mapping(watches=WATCHES | {"file": "log.parquet"})
    with pytest.raises(InputError, match=r"log\.parquet is no readable"):
        _run(mapping, logs)
    with pytest.raises(InputError, match="nowhere does not exist; give"):
        run(
            _mapping(),
            str(logs / "nowhere"),
            str(logs),
            1,
            0.0,
            pipeline_options(),
        )


def test_a_parquet_number_needs_a_unit(logs) -> None:
    pl.read_csv(logs / "log.csv").write_parquet(logs / "log.parquet")
    watches = _changed(WATCHES, event_time_us="time")
    mapping = _mapping(watches=watches | {"file": "log.parquet"})
    with pytest.raises(InputError, match="with a `unit`"):
        _run(mapping, logs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tabels": {}}, "unknown key 'tabels'; did you mean 'tables'?"),
        (
            {"tables": {"watches": WATCHES | {"wher": "x"}}},
            "unknown key 'tables.watches.wher'; did you mean 'where'?",
        ),
        (
            {"tables": {"watchs": WATCHES}},
            "unknown key 'tables.watchs'; did you mean 'watches'?",
        ),
        (
            {"tables": {"watches": _changed(WATCHES, usr_id="u")}},
            "unknown column 'usr_id' in tables.watches.columns; did you mean"
            " 'user_id'?",
        ),
        (
            {"tables": {"watches": _changed(WATCHES, user_id={"colum": "u"})}},
            "unknown key 'tables.watches.columns.user_id.colum'; did you "
            "mean 'column'?",
        ),
        (
            {
                "tables": {
                    "watches": _changed(
                        WATCHES, source={"constant": "a", "column": "b"}
                    )
                }
            },
            "exactly one of `column`, `expression` and `constant`",
        ),
        ({"tables": {"watches": WATCHES}}, "must have 'videos'"),
        (
            {
                "tables": {
                    "watches": WATCHES,
                    "videos": {"file": "v.csv", "columns": {}},
                }
            },
            "tables.videos.columns lacks video_id",
        ),
        (
            {"tables": {"watches": WATCHES | {"file": "log.xls"}}},
            "set `format` to parquet, csv or jsonl",
        ),
    ],
)
def test_a_wrong_mapping_names_the_nearest_key(change, message) -> None:
    with pytest.raises(UsageError) as caught:
        load_mapping(change)
    assert message in str(caught.value)


def _load_shipped(name: str):
    content = yaml.safe_load((MAPPINGS / f"{name}.yaml").read_text())
    assert content["root"].startswith("${WATCHNEXT_DATA}/")
    return load_mapping(content)


def _ingest(name: str, root: Path, output: Path) -> dict[str, int]:
    return run(
        _load_shipped(name), str(root), str(output), 3, 0.0, pipeline_options()
    )


def test_movielens_keeps_the_true_order_of_every_user(
    real_logs, tmp_path
) -> None:
    root = real_logs / "movielens_1m"
    counts = _ingest("movielens-1m", root, tmp_path)
    assert counts["watches.good"] == counts["watches.read"] == 999_611
    assert counts["users.good"] == 6_040
    assert counts["videos.good"] == 3_883
    ratings = pl.read_parquet(root / "ratings.parquet")
    expected = ratings.sort(
        pl.col("user_id").cast(pl.String), "seq_pos"
    ).select(
        user_id=pl.col("user_id").cast(pl.String),
        video_id=pl.col("movie_id").cast(pl.String),
    )
    watches = pl.read_parquet(tmp_path / "watches-*.parquet").sort(
        "user_id", "event_time_us"
    )
    assert watches.select("user_id", "video_id").equals(expected)
    # Order by time alone is total: no two watches of a user share a time.
    assert watches.select("user_id", "event_time_us").is_unique().all()
    assert watches["completed"].all()
    videos = pl.read_parquet(tmp_path / "videos-*.parquet")
    story = videos.row(by_predicate=pl.col("video_id") == "1", named=True)
    assert story["title"] == "Toy Story (1995)"
    assert story["topics"] == ["Animation", "Children's", "Comedy"]


def test_kuairand_agrees_with_plain_arithmetic(real_logs, tmp_path) -> None:
    root = real_logs / "kuairand_pure"
    counts = _ingest("kuairand", root, tmp_path)
    log = pl.read_parquet(root / "log_standard.parquet")
    key = ["user_id", "video_id", "time_ms"]
    clicked = log.filter(pl.col("is_click") == 1)
    past = pl.read_parquet(root / "user_history_until_apr24.parquet")
    undated = past["watch_seq"].list.len().sum()
    assert counts["impressions.read"] == log.height
    assert counts["impressions.good"] == log.unique(key).height
    assert counts["impressions.duplicates"] == 5_039
    assert counts["watches.not_selected"] == log.height - clicked.height
    assert counts["watches.good"] == clicked.unique(key).height + undated
    assert counts["users.good"] == 27_285
    assert counts["videos.good"] == 7_583
    assert sum(n for name, n in counts.items() if ".bad" in name) == 0
    impressions = pl.read_parquet(tmp_path / "impressions-*.parquet")
    # Rows of one key differ at most in what was counted after it: of their
    # watch times one is kept.
    truth = (
        log.select(
            user_id=pl.col("user_id").cast(pl.String),
            video_id=pl.col("video_id").cast(pl.String),
            event_time_us=pl.col("time_ms") * 1000,
            s=pl.min_horizontal("play_time_ms", "duration_ms") / 1000,
        )
        .group_by("user_id", "video_id", "event_time_us")
        .agg("s")
    )
    both = impressions.join(
        truth, on=["user_id", "video_id", "event_time_us"], how="inner"
    )
    assert both.height == impressions.height == truth.height
    assert both.select(pl.col("watch_time_s").is_in(pl.col("s")).all()).item()
    watches = pl.read_parquet(tmp_path / "watches-*.parquet")
    history = watches.filter("undated").sort("user_id", "event_time_us")
    assert history["event_time_us"].max() < log["time_ms"].min() * 1000
    expected = (
        past.select(
            pl.col("user_id").cast(pl.String),
            watch_seq=pl.col("watch_seq").cast(pl.List(pl.String)),
        )
        .filter(pl.col("watch_seq").list.len() > 0)
        .sort("user_id")
    )
    lists = history.group_by("user_id", maintain_order=True).agg("video_id")
    assert lists["video_id"].to_list() == expected["watch_seq"].to_list()
    # User 1 of the file: 6 of the 9 watched were watched for long.
    one = history.filter(pl.col("user_id") == "1")
    assert one["completed"].to_list() == [
        True,
        False,
        False,
        True,
        True,
        True,
        False,
        True,
        True,
    ]
    users = pl.read_parquet(tmp_path / "users-*.parquet")
    assert users["onehot_feat4"].null_count() == 874
    assert "4" in set(users["onehot_feat4"])
    videos = pl.read_parquet(tmp_path / "videos-*.parquet")
    # Midnight of 9 April 2022 in UTC+8 is 16:00 of the 8th in UTC.
    first = datetime.datetime(2022, 4, 8, 16, tzinfo=datetime.UTC)
    assert videos["upload_time_us"].min() == first.timestamp() * 1e6
