"""Fuzzed logs through the real ingestion: every record is accounted for.

Hypothesis draws small pools of nasty cells, the tables' formats and a seed;
NumPy expands them into 20,000 records, so a run takes seconds and a failure
still shrinks to few cells. What each record must come to: `fuzzed_logs.py`.
"""

import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from beam_jobs.runners import pipeline_options
from beam_jobs.sources import mapped, mapped_files, mapped_json
from schemas.config import BeamConfig
from schemas.errors import InputError
from schemas.events import EventSchema, row_errors
from tests.beam_jobs.fuzzed_logs import (
    GOOD,
    KEYS,
    NOON_US,
    RECORDS,
    stands_in,
    verdict,
    write,
)

TEXTS = st.text(st.characters(exclude_categories=()), max_size=10)
CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2)
    ),
    max_leaves=4,
)
KINDS = ["csv", "jsonl", "parquet"]


# A run takes some seconds: few, and shrinking only when asked for.
@settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    st.integers(0, 2), st.lists(CELLS, max_size=40), st.integers(0, 2**32 - 1)
)
def test_every_fuzzed_record_is_good_or_dead_or_a_duplicate(
    tmp_path_factory: pytest.TempPathFactory,
    first_kind: int,
    cells: list[Any],
    seed: int,
) -> None:
    formats = {
        table: KINDS[(first_kind + place) % 3]
        for place, table in enumerate(RECORDS)
    }
    root = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(seed)
    sources = {
        table: write(root, table, formats[table], cells, rng)
        for table in RECORDS
    }
    with pytest.MonkeyPatch.context() as patch:
        # Many blocks a file; one text is of 1 MiB.
        patch.setattr(mapped_json, "BLOCK_BYTES", 3 << 19)
        patch.setattr(mapped_files, "BLOCK_BYTES", 3 << 19)
        counts = _ingest(root, formats, 1.0)
    letters = _rows(root, "dead_letters")
    schema = EventSchema.from_json((root / "out/schema.json").read_text())
    assert {letter["table"] for letter in letters} <= set(RECORDS)
    for table, records in sources.items():
        mine = [letter for letter in letters if letter["table"] == table]
        good = _table(root, table)
        assert counts[f"{table}.read"] == len(records)
        assert counts[f"{table}.bad"] == len(mine)
        assert counts[f"{table}.good"] == good.num_rows
        assert len(records) == (
            good.num_rows + len(mine) + counts[f"{table}.duplicates"]
        )
        prefix = f"{table}.bad."
        reasons = sum(n for k, n in counts.items() if k.startswith(prefix))
        assert reasons == len(mine)
        assert not any(row_errors(table, good, schema))
        _check_letters(mine, table, formats[table], records)
        _check_good(good, table, records)


@pytest.mark.parametrize("bad", [2, 3])
def test_one_percent_may_be_bad_and_beyond_it_the_reasons_are_named(
    tmp_path: Path, bad: int
) -> None:
    """2 of 200 is exactly the default share, 3 of 200 is beyond it."""
    share = BeamConfig().max_bad_share
    assert share == 0.01
    times = [str(NOON_US)] * (200 - bad) + ["soon", "", ""][:bad]
    rows = [f"u{n},v1,{time},1,1,a" for n, time in enumerate(times)]
    head = ",".join(GOOD["watches"])
    (tmp_path / "watches.csv").write_text("\n".join([head, *rows]))
    (tmp_path / "videos.csv").write_text(
        ",".join(GOOD["videos"]) + "\nv1,c1,a|b,,\n"
    )
    formats = {"watches": "csv", "videos": "csv"}
    if bad == 2:
        counts = _ingest(tmp_path, formats, share)
        assert counts["watches.bad"] == 2
        return
    with pytest.raises(InputError) as caught:
        _ingest(tmp_path, formats, share)
    assert str(caught.value) == (
        "3 of 200 rows of 'watches' are bad, more than the allowed share "
        "0.01: event_time_us is missing (2), event_time_us is not a number "
        "or a time (1). For example watches.csv, row 198: "
        '{"user_id":"u197","video_id":"v1","event_time_us":"soon",'
        '"watch_time_s":"1","completed":"1","source":"a"}. Repair the rows '
        "or raise beam.max_bad_share."
    )


def test_a_json_cell_means_the_same_whatever_its_neighbours_are(
    tmp_path: Path,
) -> None:
    """2^53 + 1 as a real would be 2^53; a list must not become its text."""
    videos = [
        {"video_id": 2**53 + 1, "topics": ["a", "b"], "duration_s": 5},
        {"video_id": 1.5, "topics": "c|d", "duration_s": "6.5"},
        {"video_id": 7.0, "topics": ["e", 1, None]},
        {"video_id": True, "topics": [["f"]]},  # A list of lists: bad.
        {"video_id": ["g"]},  # A list is no id: bad.
        {"video_id": "half \ud83d"},  # Bad.
        {"video_id": "whole 😀", "channel_id": None, "upload_time_us": None},
    ]
    (tmp_path / "videos.jsonl").write_text(
        "".join(json.dumps(video) + "\n" for video in videos)
    )
    (tmp_path / "watches.csv").write_text(
        ",".join(GOOD["watches"]) + f"\nu,v,{NOON_US},1,1,a\n"
    )
    formats = {"watches": "csv", "videos": "jsonl"}
    _ingest(tmp_path, formats, 1.0)
    good = {
        row["video_id"]: (row["topics"], row["duration_s"])
        for row in _rows(tmp_path, "videos")
    }
    assert good == {
        "9007199254740993": (["a", "b"], 5.0),
        "1.5": (["c", "d"], 6.5),
        "7": (["e", "1"], None),
        "whole 😀": (None, None),
    }
    dead = {r["row"]: r["reason"] for r in _rows(tmp_path, "dead_letters")}
    assert dead == {
        4: "topics is not a list of text",
        5: "video_id is not text",
        6: "the line has half a character (a lone surrogate)",
    }


def test_csv_with_nul_and_wrong_bytes_keeps_its_cells_apart(
    tmp_path: Path,
) -> None:
    """Arrow overlooks delimiters after a NUL, and fails at a wrong byte."""
    ok = f"u,v1,{NOON_US},1,1,search".encode()
    rows = [ok.replace(b"u", b"u%d" % n, 1) for n in range(300)]
    rows[100] = rows[100].replace(b"search", b"\x00a\x00")
    rows[200] = b"\xff"
    rows[201] = rows[201].replace(b"v1", b"v\xff1")
    head = ",".join(GOOD["watches"]).encode()
    (tmp_path / "watches.csv").write_bytes(b"\n".join([head, *rows]))
    (tmp_path / "videos.csv").write_text(
        ",".join(GOOD["videos"]) + "\nv1,c1,a|b,,\n"
    )
    counts = _ingest(tmp_path, {"watches": "csv", "videos": "csv"}, 0.01)
    assert counts["watches.good"] == 298
    sources = {r["user_id"]: r["source"] for r in _rows(tmp_path, "watches")}
    assert sources["u100"] == "\x00a\x00"
    letters = sorted(
        (r["row"], r["reason"], r["record"][:30])
        for r in _rows(tmp_path, "dead_letters")
    )
    assert letters == [
        (201, "the record is not UTF-8", "\ufffd"),
        (202, "the record is not UTF-8", '{"user_id":"u201","video_id":"'),
    ]


def test_a_date_that_no_calendar_has_is_a_dead_letter(tmp_path: Path) -> None:
    """The last date of 32 bits is 2^31 days after 1970, year 5881580."""
    days = pa.array([19_675, 2**31 - 1], pa.int32()).cast(pa.date32())
    videos = pa.table(
        {
            "video_id": ["a", "b"],
            "channel_id": ["c", "c"],
            "topics": [["x"], None],
            "upload_time_us": days,
            "duration_s": pa.array(
                [decimal.Decimal("1.5"), None], pa.decimal256(50, 3)
            ),
            "blob": [b"\xff", b"\xff"],
        }
    )
    pq.write_table(videos, tmp_path / "videos.parquet")
    (tmp_path / "watches.csv").write_text(
        ",".join(GOOD["watches"]) + f"\nu,v,{NOON_US},1,1,a\n"
    )
    formats = {"watches": "csv", "videos": "parquet"}
    counts = _ingest(tmp_path, formats, 0.5)
    assert counts["videos.good"] == counts["videos.bad"] == 1
    (good,) = _rows(tmp_path, "videos")
    assert good["duration_s"] == 1.5
    # 19,675 days x 86,400 s: 14 November 2023.
    assert good["upload_time_us"] == 19_675 * 86_400 * 1_000_000
    (letter,) = _rows(tmp_path, "dead_letters")
    assert letter["row"] == 2
    assert letter["reason"].startswith("upload_time_us is above")
    assert json.loads(letter["record"])["blob"] == "\ufffd"


def _check_letters(
    letters: list[dict[str, Any]],
    table: str,
    form: str,
    records: dict[int, Any],
) -> None:
    for letter in letters:
        assert letter["reason"]
        assert letter["file"] == f"{table}.{form}"
        assert len(letter["record"].encode()) <= 1024
        assert stands_in(letter["record"], form, records[letter["row"]])
    dead = {letter["row"] for letter in letters}
    assert len(dead) == len(letters)
    for row, record in records.items():
        expected = verdict(table, record)
        if expected is not None:
            assert (row not in dead) == expected, (row, record)


def _check_good(good: pa.Table, table: str, records: dict[int, Any]) -> None:
    """What is surely good is there, its key unchanged."""
    key = KEYS[table]
    found = set(zip(*(good.column(k).to_pylist() for k in key), strict=True))
    checked = 0
    for record in records.values():
        if verdict(table, record):
            expected = [record[k] for k in key]
            if all(type(v) in (str, int) for v in expected):
                time = key.index("event_time_us") if len(key) == 3 else None
                assert (
                    tuple(
                        int(v) if place == time else str(v)
                        for place, v in enumerate(expected)
                    )
                    in found
                )
                checked += 1
    assert checked > 0.4 * len(records)


def _ingest(
    root: Path, formats: dict[str, str], max_bad_share: float
) -> dict[str, int]:
    units: dict[str, Any] = {
        "event_time_us": {"column": "event_time_us", "unit": "us"},
        "upload_time_us": {"column": "upload_time_us", "format": "iso"},
        "topics": {"column": "topics", "separator": "|"},
    }
    tables = {
        table: {
            "file": f"{table}.{form}",
            "columns": {n: units.get(n, n) for n in GOOD[table]},
        }
        for table, form in formats.items()
    }
    (root / "out").mkdir(exist_ok=True)
    return mapped.run(
        mapped.load_mapping({"tables": tables}),
        str(root),
        str(root / "out"),
        3,
        max_bad_share,
        pipeline_options(),
    )


def _table(root: Path, table: str) -> pa.Table:
    files = sorted((root / "out").glob(f"{table}-*.parquet"))
    return pa.concat_tables(pq.read_table(f) for f in files)


def _rows(root: Path, table: str) -> list[dict[str, Any]]:
    return list(_table(root, table).to_pylist())
