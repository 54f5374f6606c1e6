"""What a mapping file may say: which of a log's columns mean what.

A mapping turns people's own Parquet, CSV or JSON Lines files into the five
event tables without code. It is YAML, read into the frozen `Mapping` here;
`mapped.py` runs it. In an expression or a filter stands SQL as polars speaks
it, over one row at a time: `LEAST(play_time_ms, duration_ms)`, `CASE WHEN`,
`COALESCE`, `CAST`, arithmetic, comparisons.
"""

import datetime
import difflib
import typing
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.errors import UsageError
from schemas.events import TABLES, Column, EventSchema, ExtraColumn, ExtraKind

TableName = Literal["watches", "searches", "impressions", "videos", "users"]
FileFormat = Literal["parquet", "csv", "jsonl"]
CellType = Literal["integer", "real", "text", "boolean"]
Unit = Literal["s", "ms", "us", "ns", "min", "h"]
# Columns that have a unit: points in time and durations.
TIMED_COLUMNS = (
    "event_time_us",
    "upload_time_us",
    "watch_time_s",
    "duration_s",
)
TABLES_WITH_EXTRAS = ("users", "videos", "impressions")
_SUFFIXES: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_COMPRESSED = (".gz", ".bz2")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnMapping(_Part):
    """Where the values of one column come from.

    A plain text is short for `column`, any other plain value for `constant`.

    Attributes:
      column: a column of the file.
      expression: SQL over the columns of the file.
      constant: one value for all rows; null where a column may be null.
      unit: of a number that is a time or a duration; times count from 1970.
      format: of a time in text: `iso`, or a pattern such as `%d.%m.%Y %H:%M`.
      utc_offset_hours: zone of times that do not name one themselves.
      separator: of a list in text.
    """

    column: str | None = None
    expression: str | None = None
    constant: bool | int | float | str | None = None
    unit: Unit | None = None
    format: str | None = None
    utc_offset_hours: Annotated[float, Field(ge=-14, le=14)] = 0.0
    separator: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"column": value}
        if value is None or isinstance(value, bool | int | float):
            return {"constant": value}
        return value

    @model_validator(mode="after")
    def _check(self) -> "ColumnMapping":
        given = {"column", "expression", "constant"} & self.model_fields_set
        if len(given) != 1:
            raise ValueError(
                "expected exactly one of `column`, `expression` and "
                f"`constant`, got {', '.join(sorted(given)) or 'none'}"
            )
        if self.unit and self.format:
            raise ValueError(
                "`unit` is for numbers and `format` for text; give one"
            )
        return self


class ExtraMapping(_Part):
    """A column beyond the standard ones; a plain text is short for `kind`.

    Attributes:
      kind: `categorical`, `categorical_list`, `continuous` or `text`.
      column, expression: as of `ColumnMapping`; default: the extra's name.
      separator: of a list in text.
      space: vocabulary of its ids; default: the extra's name.
      unit: of a continuous column, for people to read.
    """

    kind: ExtraKind
    column: str | None = None
    expression: str | None = None
    separator: Annotated[str, Field(min_length=1)] | None = None
    space: str | None = None
    unit: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> "ExtraMapping":
        if self.column and self.expression:
            raise ValueError("expected one of `column` and `expression`")
        return self


class _Files(_Part):
    """Files of one kind; names and patterns (`logs/*.csv`) below the root."""

    file: str | tuple[str, ...]
    format: FileFormat | None = None
    # CSV only.
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    # Text files have no types: how an expression shall read a column.
    types: dict[str, CellType] = Field(default_factory=dict)

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.file,) if isinstance(self.file, str) else self.file

    @property
    def file_format(self) -> FileFormat:
        """The declared format, or the one of the name's ending."""
        # `_check_format` has seen that one of the two is there.
        found = self.format or _format_of(self.patterns[0])
        return typing.cast(FileFormat, found)

    @model_validator(mode="after")
    def _check_format(self) -> "_Files":
        if not self.patterns:
            raise ValueError("`file` names no file")
        if self.format is None and _format_of(self.patterns[0]) is None:
            raise ValueError(
                f"the format of {self.patterns[0]!r} is not clear from its "
                "name; set `format` to parquet, csv or jsonl"
            )
        return self


class TableMapping(_Files):
    """One event table: its files, filter and columns.

    Several tables may name the same file.

    Attributes:
      where: SQL filter; rows for which it does not hold are not read.
      columns: standard columns of `schemas/events.py`; one that must exist
        and may be null is null where it is not given.
      extras: declared columns, which become features.
      labels: binary labels of impressions, which become tasks.
    """

    where: str | None = None
    columns: dict[str, ColumnMapping]
    extras: dict[str, ExtraMapping] = Field(default_factory=dict)
    labels: dict[str, ColumnMapping] = Field(default_factory=dict)

    def source_of(self, column: str) -> ColumnMapping:
        """Where a stored column (standard, extra or label) comes from."""
        if column in self.columns:
            return self.columns[column]
        if column in self.extras:
            extra = self.extras[column]
            if extra.expression:
                return ColumnMapping(
                    expression=extra.expression, separator=extra.separator
                )
            return ColumnMapping(
                column=extra.column or column, separator=extra.separator
            )
        if column.startswith("labels."):
            return self.labels[column.removeprefix("labels.")]
        if column == "undated":
            return ColumnMapping(constant=False)
        return ColumnMapping(constant=None)


class UndatedHistory(_Files):
    """Watches before the log whose order is known, but not their times.

    One row per user. The watches get times one second apart that end just
    before the log starts: the i-th of n at log_start - (n - i) s, i from 0.
    They have `undated` = true, no watch time, and are `completed` where the
    video is also in the user's list `completed`; ids of that list that were
    not watched within `watched` are not used, for they have no place in the
    order.

    Attributes:
      user_id: column of the user's id.
      watched: column of video ids, the oldest first.
      completed: column of the ids of completed watches; without it all
        watches count as completed.
      separator: of lists in text.
      source: the watches' `source`.
      log_start: default: the first event of the other tables.
    """

    user_id: str
    watched: str
    completed: str | None = None
    separator: Annotated[str, Field(min_length=1)] | None = None
    source: str = "history"
    log_start: datetime.datetime | None = None


class Mapping(_Part):
    """A whole mapping file; see `load_mapping`.

    Attributes:
      root: folder of the logs; whoever reads the file decides on it.
      tables: the event tables; `watches` and `videos` must be there, and
        without `users` the users are those of the events.
      undated_history: watches from before the log.
    """

    name: str = "log"
    root: str | None = None
    tables: dict[TableName, TableMapping]
    undated_history: UndatedHistory | None = None

    @model_validator(mode="after")
    def _check(self) -> "Mapping":
        for table, mapping in self.tables.items():
            _check_table(table, mapping)
        for table in ("watches", "videos"):
            if table not in self.tables:
                raise ValueError(
                    f"`tables` must have {table!r}; it has "
                    f"{', '.join(self.tables) or 'none'}"
                )
        return self

    def event_schema(self) -> EventSchema:
        """What the log will have: columns, extras and labels."""
        columns: dict[str, tuple[str, ...]] = {}
        for table, standard in TABLES.items():
            if table not in self.tables and table != "users":
                continue
            mapped = self.tables.get(table)  # type: ignore[call-overload]
            names = set(mapped.columns) if mapped else set()
            if table == "watches" and self.undated_history:
                names.add("undated")
            columns[table] = tuple(
                c.name for c in standard if c.required or c.name in names
            )
        return EventSchema(
            columns,
            {
                table: tuple(
                    ExtraColumn(name, extra.kind, extra.space, extra.unit)
                    for name, extra in mapping.extras.items()
                )
                for table, mapping in self.tables.items()
                if mapping.extras
            },
            tuple(self.tables["impressions"].labels)
            if "impressions" in self.tables
            else (),
        )


def load_mapping(content: str | dict[str, Any]) -> Mapping:
    """Checks a mapping's content.

    Args:
      content: YAML text, or what it holds.

    Raises:
      UsageError: not YAML, an unknown key (the nearest known one is named),
        or a value that does not fit.
    """
    if isinstance(content, str):
        try:
            content = yaml.safe_load(content)
        except yaml.YAMLError as error:
            detail = " ".join(str(error).split())
            raise UsageError(f"The mapping is not valid YAML: {detail}") from (
                error
            )
    if not isinstance(content, dict):
        raise UsageError(
            "A mapping must hold keys such as `tables:`, got "
            f"{type(content).__name__}."
        )
    try:
        return Mapping.model_validate(content)
    except pydantic.ValidationError as error:
        message = _explain(error)
        end = "" if message.endswith(("?", ".")) else "."
        raise UsageError(f"Mapping: {message}{end}") from error


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` with the known name most like this one."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"; did you mean {found[0]!r}?" if found else "."


def _check_table(table: str, mapping: TableMapping) -> None:
    standard: dict[str, Column] = {c.name: c for c in TABLES[table]}
    for name, source in mapping.columns.items():
        if name not in standard or name == "undated":
            raise ValueError(
                f"unknown column {name!r} in tables.{table}.columns"
                f"{nearest(name, set(standard) - {'undated'})} Declare "
                "further columns under `extras`"
            )
        if source.unit and name not in TIMED_COLUMNS:
            raise ValueError(
                f"tables.{table}.columns.{name} has no unit; only "
                f"{', '.join(TIMED_COLUMNS)} have"
            )
    missing = [
        c.name
        for c in TABLES[table]
        if c.required and not c.nullable and c.name not in mapping.columns
    ]
    if missing:
        raise ValueError(
            f"tables.{table}.columns lacks {', '.join(missing)}; it has "
            f"{', '.join(mapping.columns) or 'none'}"
        )
    if mapping.extras and table not in TABLES_WITH_EXTRAS:
        raise ValueError(
            f"tables.{table} cannot have `extras`; only "
            f"{', '.join(TABLES_WITH_EXTRAS)} can"
        )
    clash = sorted(set(mapping.extras) & set(standard))
    if clash:
        raise ValueError(
            f"tables.{table}.extras has the standard column(s) "
            f"{', '.join(clash)}; map them under `columns`"
        )
    if mapping.labels and table != "impressions":
        raise ValueError(
            f"tables.{table} cannot have `labels`; only impressions can"
        )


def _format_of(name: str) -> FileFormat | None:
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    dot = name.rfind(".")
    return _SUFFIXES.get(name[dot:].lower()) if dot >= 0 else None


def _explain(error: pydantic.ValidationError) -> str:
    # A misspelt key also shows as a missing one: name the spelling first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"] if part != "[key]"]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        return f"unknown key {where!r}{nearest(path[-1], known)}"
    if first["type"] == "literal_error" and first["loc"][-1] == "[key]":
        return f"unknown key {where!r}{nearest(path[-1], TABLES)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _known_keys(path: typing.Sequence[str]) -> list[str]:
    """Field names of the model that stands at a path of the file."""
    model: Any = Mapping
    for part in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = _model_in(model.model_fields[part].annotation)
        else:  # The values of a dictionary, by any key.
            model = _model_in(typing.get_args(model)[1])
    return list(getattr(model, "model_fields", ()))


def _model_in(annotation: Any) -> Any:
    """The model, or the dictionary of models, within an annotation."""
    if typing.get_origin(annotation) is dict:
        return annotation
    for inner in (annotation, *typing.get_args(annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return annotation
