"""The five event tables: columns, types, ranges and validation.

Every source (the simulator, a mapped outside log) delivers these tables;
every job reads only them. Times are UTC microseconds; ids are strings; no
order of rows is assumed.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.errors import InputError

# 2000-01-01 and 2100-01-01 in UTC microseconds. Seconds, milliseconds and
# nanoseconds of any date of this century fall outside, so a wrong unit shows.
EARLIEST_TIME_US = 946_684_800_000_000
LATEST_TIME_US = 4_102_444_800_000_000
# One watch of over two days is a wrong unit, not a patient viewer.
LONGEST_WATCH_S = 172_800.0


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: Arrow type, whether it must exist, and its valid range."""

    name: str
    type: pa.DataType
    required: bool = False
    nullable: bool = True
    minimum: float | None = None
    maximum: float | None = None


def _id(name: str) -> Column:
    return Column(name, pa.string(), required=True, nullable=False)


def _time(name: str, *, nullable: bool = False) -> Column:
    return Column(
        name,
        pa.int64(),
        required=True,
        nullable=nullable,
        minimum=EARLIEST_TIME_US,
        maximum=LATEST_TIME_US,
    )


def _optional(
    name: str,
    kind: pa.DataType,
    low: float | None = None,
    high: float | None = None,
) -> Column:
    return Column(name, kind, minimum=low, maximum=high)


_TEXT, _FLAG, _REAL = pa.string(), pa.bool_(), pa.float64()

TABLES: dict[str, tuple[Column, ...]] = {
    "watches": (
        _id("user_id"),
        _id("video_id"),
        _time("event_time_us"),
        # Null: the log does not say how long. It then counts as ended at once.
        Column("watch_time_s", _REAL, True, True, 0.0, LONGEST_WATCH_S),
        Column("completed", _FLAG, True, False),
        Column("source", _TEXT, True, False),
        # True: the time only encodes the order (a history without dates).
        # Such a watch is context, never a label, a count or a test case.
        _optional("undated", _FLAG),
    ),
    "searches": (
        _id("user_id"),
        Column("query", _TEXT, True, False),
        _time("event_time_us"),
    ),
    "impressions": (
        _id("user_id"),
        _id("video_id"),
        _time("event_time_us"),
        Column("surface", _TEXT, True, False),
        Column("clicked", _FLAG, True, False),
        Column("watch_time_s", _REAL, True, False, 0.0, LONGEST_WATCH_S),
        _optional("request_id", _TEXT),
        _optional("position", pa.int64(), 1, 10_000),
        _optional("liked", _FLAG),
        _optional("dismissed", _FLAG),
        _optional("rating", _REAL),
        _optional("candidate_source", _TEXT),
        _optional("candidate_score", _REAL),
        _optional("propensity", _REAL, 0.0, 1.0),
        _optional("query_video_id", _TEXT),
        _optional("seed_video_id", _TEXT),
    ),
    "videos": (
        _id("video_id"),
        Column("channel_id", _TEXT, True, True),
        Column("topics", pa.list_(pa.string()), True, True),
        _time("upload_time_us", nullable=True),
        Column("duration_s", _REAL, True, True, 0.0, None),
        _optional("language", _TEXT),
        _optional("title", _TEXT),
    ),
    "users": (
        _id("user_id"),
        _optional("region", _TEXT),
        _optional("device", _TEXT),
        _optional("language", _TEXT),
        _optional("gender", _TEXT),
        _optional("age", _REAL, 0.0, 130.0),
        _optional("logged_in", _FLAG),
    ),
}

# Tables whose rows are events in time; the split divides exactly these.
TIMED_TABLES = ("watches", "searches", "impressions")
# One row per key: a second row of the same key is a duplicate.
ENTITY_KEYS = {"videos": "video_id", "users": "user_id"}

ExtraKind = Literal["categorical", "categorical_list", "continuous", "text"]


@dataclasses.dataclass(frozen=True)
class ExtraColumn:
    """A column that a mapping declares beyond the tables above.

    `categorical` and `categorical_list` become ids of the vocabulary `space`
    (default: the column's own name), `continuous` is quantile-normalised,
    `text` is kept for people and is no feature.
    """

    name: str
    kind: ExtraKind
    space: str | None = None
    unit: str | None = None

    @property
    def type(self) -> pa.DataType:
        return {
            "categorical": pa.string(),
            "categorical_list": pa.list_(pa.string()),
            "continuous": pa.float64(),
            "text": pa.string(),
        }[self.kind]


@dataclasses.dataclass(frozen=True)
class EventSchema:
    """What one log has: columns present, extra columns, extra labels.

    Attributes:
      columns: names of the standard columns present, per table; a table that
        the log lacks (no searches, no impressions) is not a key.
      extras: declared extra columns per table; only `users`, `videos` and
        `impressions` may have them.
      labels: names of extra binary labels; column `labels.<name>` (nullable
        bool) of `impressions`.
    """

    columns: Mapping[str, tuple[str, ...]]
    extras: Mapping[str, tuple[ExtraColumn, ...]] = dataclasses.field(
        default_factory=dict
    )
    labels: tuple[str, ...] = ()

    def has(self, table: str, column: str | None = None) -> bool:
        """Whether the log has a table (or a standard column of it)."""
        names = self.columns.get(table)
        return names is not None and (column is None or column in names)

    def extras_of(self, table: str) -> tuple[ExtraColumn, ...]:
        return tuple(self.extras.get(table, ()))

    def columns_of(self, table: str) -> tuple[Column, ...]:
        """All columns of a table in stored order, extras and labels last."""
        names = self.columns[table]
        standard = [c for c in TABLES[table] if c.name in names]
        extra = [Column(e.name, e.type) for e in self.extras_of(table)]
        labels = (
            [Column(f"labels.{name}", pa.bool_()) for name in self.labels]
            if table == "impressions"
            else []
        )
        return (*standard, *extra, *labels)

    def arrow(self, table: str) -> pa.Schema:
        """The Arrow schema of a table's Parquet files."""
        return pa.schema([(c.name, c.type) for c in self.columns_of(table)])

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "EventSchema":
        raw = json.loads(text)
        return cls(
            columns={k: tuple(v) for k, v in raw["columns"].items()},
            extras={
                table: tuple(ExtraColumn(**e) for e in extras)
                for table, extras in raw["extras"].items()
            },
            labels=tuple(raw["labels"]),
        )

    @classmethod
    def of_tables(
        cls,
        tables: Mapping[str, pa.Table],
        extras: Mapping[str, tuple[ExtraColumn, ...]] | None = None,
        labels: tuple[str, ...] = (),
    ) -> "EventSchema":
        """Reads off which standard columns a source's tables have.

        Raises:
          InputError: an unknown table, a required column missing, or a
            column that is neither standard nor declared.
        """
        extras = dict(extras or {})
        columns: dict[str, tuple[str, ...]] = {}
        for table, rows in tables.items():
            if table not in TABLES:
                raise InputError(
                    f"Unknown event table {table!r}; expected one of "
                    f"{', '.join(TABLES)}."
                )
            names = set(rows.column_names)
            standard = [c.name for c in TABLES[table] if c.name in names]
            missing = [
                c.name
                for c in TABLES[table]
                if c.required and c.name not in names
            ]
            if missing:
                raise InputError(
                    f"Table {table!r} lacks the required column(s) "
                    f"{', '.join(missing)}; it has "
                    f"{', '.join(rows.column_names)}."
                )
            declared = {e.name for e in extras.get(table, ())}
            if table == "impressions":
                declared |= {f"labels.{name}" for name in labels}
            unknown = names - set(standard) - declared
            if unknown:
                raise InputError(
                    f"Table {table!r} has undeclared column(s) "
                    f"{', '.join(sorted(unknown))}; declare them as extra "
                    "columns or leave them out."
                )
            columns[table] = tuple(standard)
        return cls(columns, extras, labels)


def check_columns(
    table: str, rows: pa.Table | pa.RecordBatch, schema: EventSchema
) -> None:
    """Checks names and Arrow types, which concern a whole file.

    Raises:
      InputError: naming table, column, expected and received type.
    """
    for column in schema.columns_of(table):
        if column.name not in rows.schema.names:
            raise InputError(
                f"Table {table!r} lacks the column {column.name!r}; it has "
                f"{', '.join(rows.schema.names)}."
            )
        received = rows.schema.field(column.name).type
        if received != column.type:
            raise InputError(
                f"Column {table}.{column.name} has type {received}, expected "
                f"{column.type}."
            )


def row_errors(
    table: str, rows: pa.Table | pa.RecordBatch, schema: EventSchema
) -> np.ndarray:
    """Finds rows that break the table's rules, vectorised.

    Args:
      table: a name of `TABLES`.
      rows: rows whose columns `check_columns` accepts, in any order.
      schema: what the log has.

    Returns:
      object [n]: the first reason why a row is bad, or None where it is good.
    """
    reasons = np.full(rows.num_rows, None, dtype=object)
    for column in schema.columns_of(table):
        values = rows.column(column.name)
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        for reason, bad in _column_errors(column, values):
            hit = bad.to_numpy(zero_copy_only=False).astype(bool)
            reasons[hit & (reasons == None)] = reason  # noqa: E711
    return reasons


def _column_errors(
    column: Column, values: pa.Array
) -> list[tuple[str, pa.Array]]:
    name, errors = column.name, []
    is_null = pc.is_null(values)
    if not column.nullable:
        errors.append((f"{name} is missing", is_null))
    if pa.types.is_string(column.type) and not column.nullable:
        empty = pc.fill_null(pc.equal(values, ""), False)
        errors.append((f"{name} is empty", empty))
    if pa.types.is_floating(column.type):
        nan = pc.fill_null(pc.is_nan(values), False)
        errors.append((f"{name} is NaN", nan))
        errors.append(
            (f"{name} is infinite", pc.fill_null(pc.is_inf(values), False))
        )
    unit = " (UTC microseconds expected)" if name.endswith("time_us") else ""
    if column.minimum is not None:
        low = pc.fill_null(pc.less(values, column.minimum), False)
        errors.append((f"{name} is below {column.minimum:g}{unit}", low))
    if column.maximum is not None:
        high = pc.fill_null(pc.greater(values, column.maximum), False)
        errors.append((f"{name} is above {column.maximum:g}{unit}", high))
    return errors
