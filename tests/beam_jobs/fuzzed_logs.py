"""Fuzzed log files, and what each record of them must come to.

`write` makes a file of one event table. `verdict` states by plain Python over
the source alone (`csv`, `json`, one rule a kind of cell) what is surely good
or surely bad, and `stands_in` whether a dead letter shows its record.
"""

import csv
import functools
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.events import TABLES

NOON_US = 1_700_000_000_000_000
RECORDS = {
    "watches": 6000,
    "impressions": 5000,
    "searches": 4000,
    "videos": 3000,
    "users": 2000,
}
# One good record a table; `{n}` makes it unique.
GOOD: dict[str, dict[str, Any]] = {
    "watches": {
        "user_id": "u{n}",
        "video_id": "v1",
        "event_time_us": NOON_US,
        "watch_time_s": 12.5,
        "completed": True,
        "source": "search",
    },
    "searches": {
        "user_id": "u{n}",
        "query": 'cats, "dogs"\nand Ünïcode 😀',
        "event_time_us": NOON_US,
    },
    "impressions": {
        "user_id": "u{n}",
        "video_id": "v1",
        "event_time_us": NOON_US,
        "surface": "home",
        "clicked": False,
        "watch_time_s": 0.5,
        "position": 3,
    },
    "videos": {
        "video_id": "v{n}",
        "channel_id": "c1",
        "topics": ["a", "b"],
        "upload_time_us": "2023-11-14T22:13:20Z",
        "duration_s": 61.5,
    },
    "users": {"user_id": "u{n}", "age": 33.5, "logged_in": True},
}
KEYS = {
    "watches": ("user_id", "event_time_us", "video_id"),
    "searches": ("user_id", "event_time_us", "query"),
    "impressions": ("user_id", "event_time_us", "video_id"),
    "videos": ("video_id",),
    "users": ("user_id",),
}
FIXED_CELLS: list[Any] = [
    None,
    "",
    " ",
    "\x00",
    "line\nbreak",
    "tab\tand\rreturn",
    "\u2028\u0085\ufeff",
    "\ufdd0 is no character, \ufdd0ff neither",
    "\ud83d",
    'qu"ote',
    "=cmd|' /C calc'!A0",
    "[looks like a list",
    "{" * 3,
    "yes",
    "NO",
    "true",
    "NaN",
    "1e400",
    "12.50",
    str(NOON_US),
    2**63,
    -(2**63) - 1,
    2**130,
    2**53 + 1,
    NOON_US // 1_000_000,
    NOON_US // 1000,
    NOON_US * 1000,
    -1,
    4_200_000_000_000_000,
    float("nan"),
    float("inf"),
    -0.0,
    5e-324,
    1.5,
    True,
    [],
    [None],
    [["deep"]],
    ["x", 1, 2.0, None, True],
    {},
    {"a": {"b": None}},
]
WORDS = {"true", "t", "yes", "y", "1", "false", "f", "no", "n", "0"}


def verdict(table: str, record: Any) -> bool | None:
    """Whether a record is surely good (or bad), from its cells."""
    if not isinstance(record, dict):
        return False  # No record at all, only text.
    if any(_half(cell) for cell in record.items()):
        return False
    columns = {c.name: c for c in TABLES[table]}
    found = [
        _cell_verdict(columns[name], record.get(name)) for name in GOOD[table]
    ]
    if False in found:
        return False
    return None if None in found else True


def _half(cell: Any) -> bool:
    """Whether there is half a character, or a byte that is no UTF-8."""
    if isinstance(cell, str):
        return bool(re.search("[\ud800-\udfff]", cell))
    if isinstance(cell, dict):
        return any(_half(c) for c in cell.items())
    return isinstance(cell, list | tuple) and any(_half(c) for c in cell)


def _cell_verdict(column: Any, cell: Any) -> bool | None:
    kind, name = column.type, column.name
    missing = cell is None or cell == ""
    missing |= isinstance(cell, float) and math.isnan(cell)
    if missing:
        # A real that may not be null must not be NaN either.
        return bool(column.nullable)
    if isinstance(cell, dict):
        return False
    if isinstance(cell, list):
        nested = any(isinstance(e, list | dict) for e in cell)
        return pa.types.is_list(kind) and not nested
    if pa.types.is_list(kind):
        return not isinstance(cell, bool)
    if pa.types.is_string(kind):
        return True
    if pa.types.is_boolean(kind):
        if isinstance(cell, str):
            return cell.strip().lower() in WORDS if cell.isascii() else None
        return cell in (0, 1)
    if name == "upload_time_us":
        if not isinstance(cell, str):
            return False
        return True if cell == GOOD["videos"][name] else None
    return _number_verdict(column, cell)


def _number_verdict(column: Any, cell: Any) -> bool | None:
    if isinstance(cell, bool):
        return False
    if isinstance(cell, str):
        if not re.fullmatch(r"-?\d{1,18}|-?\d{1,9}\.\d{1,6}", cell):
            try:
                float(cell)
            except ValueError:
                return False
            return None
        cell = float(cell) if "." in cell else int(cell)
    if math.isinf(cell) or abs(cell) >= 2**63:
        return False if math.isinf(cell) or column.maximum is not None else None
    if pa.types.is_integer(column.type) and cell != int(cell):
        # A time is rounded; a count is not.
        return None if column.name.endswith("_us") else False
    low, high = column.minimum, column.maximum
    return (low is None or cell >= low) and (high is None or cell <= high)


def stands_in(record: str, form: str, source: Any) -> bool:
    """Whether a dead letter's text is that of the record of its row."""
    if form == "jsonl":
        line = source if isinstance(source, str) else source.line
        raw = line.encode("utf-8", "surrogateescape")
        return bool(raw.decode(errors="replace").startswith(record))
    if isinstance(source, dict):
        whole = len(record.encode()) < 1000
        shown = json.loads(record) if whole else None
        return not whole or all(
            _same(shown[name], cell) for name, cell in source.items()
        )
    cells = next(csv.reader(io.StringIO(record, newline=""))) or [""]
    expected = [_shown(c) for c in source]
    return cells[:-1] == expected[: len(cells) - 1] and (
        expected[len(cells) - 1].startswith(cells[-1])
    )


def _same(shown: Any, cell: Any) -> bool:
    if isinstance(cell, float):
        return shown is None or shown == cell
    if isinstance(cell, list):
        return len(shown) == len(cell)
    if not isinstance(cell, str):
        return bool(shown == cell)
    # Half a character is three wrong bytes of a Parquet file, or one of CSV.
    raw = cell.encode("utf-8", "surrogatepass").decode(errors="replace")
    return shown in (raw, _shown(cell)) or (shown is None and not cell)


def _shown(text: str) -> str:
    """Text of `surrogateescape` with U+FFFD for each wrong byte."""
    return re.sub("[\udc80-\udcff]", "\ufffd", text)


class _Line(dict[str, Any]):
    """A JSON object and the line it stands in."""

    line = ""


def write(
    root: Path,
    table: str,
    form: str,
    cells: list[Any],
    rng: np.random.Generator,
) -> dict[int, Any]:
    """Writes a table's file; returns what stands in each row of it."""
    records = _records(table, [*FIXED_CELLS, *cells], rng)
    path = root / f"{table}.{form}"
    if form == "parquet":
        return _write_parquet(path, table, records)
    names = list(GOOD[table])
    lines = [
        _csv_line([r.get(name) for name in names])
        if form == "csv"
        else json.dumps(r, ensure_ascii=bool(rng.random() < 0.5))
        for r in records
    ]
    raw = [line.encode("utf-8", "surrogatepass") for line in lines]
    for place in np.flatnonzero(rng.random(len(raw)) < 0.05):
        raw[place] = _mangled(raw[place], rng)
    head = [",".join(names).encode()] if form == "csv" else []
    data = b"\n".join(head + raw)
    path.write_bytes(data)
    text = data.decode("utf-8", "surrogateescape")
    return _csv_records(text, names) if form == "csv" else _json_records(text)


def _records(
    table: str, cells: list[Any], rng: np.random.Generator
) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    names = list(GOOD[table])
    for n, chance in enumerate(rng.random(RECORDS[table])):
        record = {
            k: v.format(n=n) if isinstance(v, str) else v
            for k, v in GOOD[table].items()
        }
        if chance < 0.3:
            for name in rng.choice(names, rng.integers(1, 3)):
                record[name] = cells[rng.integers(len(cells))]
        elif chance < 0.33 and made:
            record = dict(made[rng.integers(len(made))])
        elif chance < 0.35:
            del record[names[rng.integers(len(names))]]
        elif chance < 0.37:
            record["unknown"] = cells[rng.integers(len(cells))]
        made.append(record)
    made[len(made) // 2][names[0]] = "é" * (1 << 19)  # 1 MiB.
    return made


def _csv_line(cells: list[Any]) -> str:
    out = io.StringIO()
    texts = ["|".join(map(str, c)) if isinstance(c, list) else c for c in cells]
    csv.writer(out, lineterminator="\n").writerow(texts)
    return out.getvalue().removesuffix("\n")


def _mangled(line: bytes, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(line) + 1))
    return [
        line[:at],
        line[:at] + b"\xff" + line[at:],
        line[:at] + b'"' + line[at:],
        line[:at] + b"," + line[at:],
        line[:at] + b"\x00" + line[at:],
        line[:at] + line[at + 1 :],
        line + b"\n",
        b"\n  \n" + line,
        line + b"\r",
        line + line,
        b"[1, 2]",
        b"\xff\xfe",
        b"",
    ][rng.integers(13)]


def _csv_records(text: str, names: list[str]) -> dict[int, Any]:
    csv.field_size_limit(1 << 24)
    rows = [r for r in csv.reader(io.StringIO(text, newline="")) if r][1:]
    return {
        n: dict(zip(names, row, strict=True)) if len(row) == len(names) else row
        for n, row in enumerate(rows, 1)
    }


def _json_records(text: str) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip(" \t\r"):
            continue
        found[n] = line
        try:
            pairs = json.loads(line, object_pairs_hook=_first_of_each)
        except ValueError:
            continue
        if isinstance(pairs, dict) and not _half(line):
            found[n] = _Line(pairs)
            found[n].line = line
    return found


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _write_parquet(
    path: Path, table: str, records: list[dict[str, Any]]
) -> dict[int, Any]:
    """Text columns may hold bytes that are no UTF-8: nothing checks them."""
    columns = {c.name: c.type for c in TABLES[table]}
    arrays: dict[str, pa.Array] = {}
    kept: list[dict[str, Any]] = [{} for _ in records]
    for name in GOOD[table]:
        kind = columns[name]
        fit = functools.partial(_fitted, kind=kind, name=name)
        values = [fit(record.get(name)) for record in records]
        for record, value in zip(kept, values, strict=True):
            record[name] = value
        if pa.types.is_list(kind) or not isinstance(fit("x"), str):
            number = pa.int64() if pa.types.is_integer(kind) else kind
            arrays[name] = pa.array(values, number)
        else:
            raw = [
                v if v is None else v.encode("utf-8", "surrogatepass")
                for v in values
            ]
            arrays[name] = pa.array(raw, pa.binary()).view(pa.string())
    size = len(records)
    # Columns that nothing asks for, and polars does not like.
    arrays["blob"] = pa.array([b"\xff\x00"] * size)
    arrays["day"] = pa.array([2**31 - 1] * size, pa.int32()).cast(pa.date32())
    pq.write_table(pa.table(arrays), path, row_group_size=700)
    return dict(enumerate(kept, 1))


def _fitted(cell: Any, kind: pa.DataType, name: str) -> Any:
    """A cell that a typed column can hold; null if it cannot."""
    if pa.types.is_list(kind):
        plain = isinstance(cell, list) and not _half(cell)
        return (
            [v if isinstance(v, str) else None for v in cell]
            if (plain)
            else None
        )
    if pa.types.is_integer(kind) and name != "upload_time_us":
        whole = isinstance(cell, int) and not isinstance(cell, bool)
        return cell if whole and abs(cell) < 2**63 else None
    if pa.types.is_floating(kind):
        real = isinstance(cell, int | float) and not isinstance(cell, bool)
        return float(cell) if real and abs(cell) < 1e300 else None
    if cell is None or isinstance(cell, str):
        return cell
    return str(cell)
