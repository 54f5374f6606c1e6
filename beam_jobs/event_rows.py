"""Rows of one event table: validate, keep the bad ones apart, sort.

In: a batch of rows from any source. Out: good rows in stored order of
columns, and dead letters with a reason and the first KiB of the raw record.
"""

import collections
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from schemas.events import ENTITY_KEYS, EventSchema, check_columns, row_errors

# Two rows of one key are the same event, logged twice.
KEYS = {
    "watches": ("user_id", "event_time_us", "video_id"),
    "searches": ("user_id", "event_time_us", "query"),
    "impressions": ("user_id", "event_time_us", "video_id"),
    **{table: (key,) for table, key in ENTITY_KEYS.items()},
}
DEAD_LETTERS = "dead_letters"
DEAD_LETTER_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("reason", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("record", pa.string()),
    ]
)
MAX_RECORD_BYTES = 1024
# Up to here, about the year 9999, polars can write a date or time.
_CALENDAR = {
    "day": 2_932_896,
    "ms": 253_402_300_799_000,
    "us": 253_402_300_799_000_000,
    "ns": 2**63 - 1,
}

Counts = collections.Counter[str]


@dataclasses.dataclass(frozen=True)
class RawRows:
    """A batch of rows of one event table, not validated yet.

    Attributes:
      rows: n rows; names and types of `EventSchema.arrow(table)`.
      file: the file's name below the folder of the logs.
      numbers: int64 [n], the number of each row in its file, from 1.
      records: the n raw records, for dead letters: their cells, or the bytes
        of their lines; default `rows`.
      errors: object [n], why a row could not be converted, else None.
      malformed: records that could not be parsed into a row at all, as
        (row number, reason, text).
      not_selected: rows that a filter left out; they count as not read.
    """

    rows: pa.Table
    file: str
    numbers: np.ndarray
    records: pl.DataFrame | np.ndarray | None = None
    errors: np.ndarray | None = None
    malformed: Sequence[tuple[int, str, str]] = ()
    not_selected: int = 0


def validate(
    table: str, raw: RawRows, schema: EventSchema
) -> tuple[pa.Table, pa.Table, Counts]:
    """Separates good rows from dead letters.

    Returns:
      Good rows in stored column order, dead letters, and the counts
      `<table>.read`, `<table>.bad` and `<table>.bad.<reason>`.

    Raises:
      InputError: a column is absent or has another type.
    """
    check_columns(table, raw.rows, schema)
    rows = _without_empty_request(raw.rows.select(schema.arrow(table).names))
    reasons = row_errors(table, rows, schema)
    if raw.errors is not None:
        # Why a cell could not be converted says more than that it is null.
        converted = _is_none(raw.errors)
        reasons = np.where(converted, reasons, raw.errors)
    is_bad = ~_is_none(reasons)
    records = raw.records
    if records is None:
        records = to_polars(raw.rows)
    letters = _dead_letters(table, raw, records, reasons, is_bad)
    counts = Counts({f"{table}.read": rows.num_rows + len(raw.malformed)})
    counts[f"{table}.bad"] = letters.num_rows
    for reason in letters.column("reason").value_counts().to_pylist():
        counts[f"{table}.bad.{reason['values']}"] = reason["counts"]
    if raw.not_selected:
        counts[f"{table}.not_selected"] = raw.not_selected
    return rows.filter(pa.array(~is_bad)), letters, counts


def sort_and_deduplicate(table: str, rows: pa.Table) -> tuple[pa.Table, int]:
    """Sorts rows by key, then all other columns; keeps the first of a key.

    Returns:
      The rows kept, of the same schema, and how many duplicates were dropped.
    """
    # -0.0 equals 0.0 in the order but not in the bytes. (x + 0.0 would do, but
    # polars simplifies it away.)
    reals = pl.selectors.float()
    frame = to_polars(rows).with_columns(
        pl.when(reals == 0.0).then(0.0).otherwise(reals).name.keep()
    )
    if table == DEAD_LETTERS:
        return _to_arrow(
            frame.sort("table", "file", "row", pl.all()), rows.schema
        ), 0
    key = KEYS[table]
    others = [name for name in frame.columns if name not in key]
    frame = frame.sort([*key, *others])
    repeated = pl.all_horizontal(pl.col(k) == pl.col(k).shift(1) for k in key)
    kept = frame.filter(~repeated.fill_null(False))
    return _to_arrow(kept, rows.schema), frame.height - kept.height


def _dead_letters(
    table: str,
    raw: RawRows,
    records: pl.DataFrame | np.ndarray,
    reasons: np.ndarray,
    is_bad: np.ndarray,
) -> pa.Table:
    bad = np.flatnonzero(is_bad)
    if isinstance(records, pl.DataFrame):
        texts = _json_texts(records[bad])
    else:
        texts = [line.decode(errors="replace") for line in records[bad]]
    numbers = [*raw.numbers[bad].tolist(), *(m[0] for m in raw.malformed)]
    texts += [text for _, _, text in raw.malformed]
    return pa.table(
        [
            [table] * len(texts),
            [*reasons[bad], *(reason for _, reason, _ in raw.malformed)],
            [raw.file] * len(texts),
            numbers,
            [_first_bytes(text) for text in texts],
        ],
        schema=DEAD_LETTER_SCHEMA,
    )


def _json_texts(records: pl.DataFrame) -> list[str]:
    if not records.height:
        return []
    packed = pl.struct(_json_safe(values) for values in records)
    texts = records.select(packed.struct.json_encode().alias("record"))
    return texts["record"].to_list()


def _json_safe(values: pl.Series) -> pl.Series:
    """A column that polars can write as JSON; it panics at some others."""
    kind = values.dtype
    if kind.is_temporal():
        # Of a year that no calendar has: the number is all there is to say.
        limit = _CALENDAR[_unit(kind)]
        in_range = values.to_physical().is_between(-limit, limit)
        return values if in_range.all() else values.to_physical()
    if kind != pl.Binary and not kind.is_nested():
        return values
    if kind == pl.List(pl.String) or kind == pl.List(pl.Int64):
        return values
    plain = values.to_physical().to_list()
    if kind == pl.Binary:
        texts = [v if v is None else _plain(v) for v in plain]
    else:
        texts = [
            v if v is None else json.dumps(v, default=_plain) for v in plain
        ]
    return pl.Series(values.name, texts, dtype=pl.String)


def _unit(kind: pl.DataType) -> str:
    return str(getattr(kind, "time_unit", "day" if kind == pl.Date else "ns"))


def _plain(value: Any) -> Any:
    """What JSON has no form for, as text."""
    if isinstance(value, pl.Series):
        return value.to_list()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def _first_bytes(text: str) -> str:
    """At most a KiB of UTF-8, not cut within a character."""
    return text.encode()[:MAX_RECORD_BYTES].decode(errors="ignore")


def to_polars(rows: pa.Table) -> pl.DataFrame:
    """The same table for polars, without a copy where that is possible."""
    return cast(pl.DataFrame, pl.from_arrow(rows))


def _without_empty_request(rows: pa.Table) -> pa.Table:
    """A `request_id` of "" names no request; it would join all of a user's."""
    if "request_id" not in rows.column_names:
        return rows
    names = rows.column("request_id")
    named = pc.if_else(pc.equal(names, ""), None, names)
    place = rows.column_names.index("request_id")
    return rows.set_column(place, "request_id", named)


def _is_none(values: np.ndarray) -> np.ndarray:
    """Which elements are None, bool [n]."""
    return np.asarray(values == None, bool)  # noqa: E711


def _to_arrow(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    return frame.to_arrow().cast(schema).combine_chunks()
