"""Raw records to rows of an event table: filter, compute, convert.

All by polars expressions over whole blocks. A cell that is there but cannot
be converted makes its row bad, with the reason; a whole column that is absent
or of a hopeless type is an error of the input.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import polars as pl
import pyarrow as pa

from beam_jobs.event_rows import RawRows
from beam_jobs.sources.mapped_blocks import NOT_UTF8, Block
from beam_jobs.sources.mapped_cells import (
    convert,
    id_texts,
    is_time,
    noun,
    parse_cells,
)
from beam_jobs.sources.mapping import (
    CellType,
    ColumnMapping,
    TableMapping,
    nearest,
)
from schemas.errors import InputError
from schemas.events import Column, EventSchema

_EXPECTED = {
    "text": "text",
    "integer": "an integer",
    "real": "a number",
    "boolean": "true or false",
}
_ROW = "__row"


@dataclasses.dataclass(frozen=True)
class TableReader:
    """Turns blocks of one kind of file into rows of one event table.

    Attributes:
      table: the event table.
      mapping: its mapping.
      schema: what the log has.
      types: how expressions read the columns of text files.
    """

    table: str
    mapping: TableMapping
    schema: EventSchema
    types: Mapping[str, CellType]

    def rows(self, block: Block, file: str) -> RawRows:
        """Maps one block.

        Raises:
          InputError: a column is missing, or an expression or a type fails
            for the whole block.
        """
        frame = block.frame.with_columns(
            pl.lit(None, pl.String).alias(name)
            for name in self._names() - set(block.frame.columns)
            # A block of JSON lines may lack a key that others have.
            if self.mapping.file_format == "jsonl"
        )
        typed, errors = self._typed(frame)
        if block.garbled is not None:
            errors[block.garbled] = NOT_UTF8
        numbers, not_selected = block.numbers, 0
        records = frame if block.lines is None else block.lines
        if self.mapping.where is not None:
            chosen = self._evaluate(
                typed, "where", pl.sql_expr(self.mapping.where)
            )
            if chosen.dtype != pl.Boolean:
                raise InputError(
                    f"tables.{self.table}.where is {chosen.dtype}, expected "
                    f"true or false: {self.mapping.where}"
                )
            # What could not be read cannot be filtered out either.
            keep = chosen.fill_null(False).to_numpy() | (errors != None)  # noqa: E711
            not_selected = int((~keep).sum())
            mask = pl.Series(keep)
            frame, typed = frame.filter(mask), typed.filter(mask)
            numbers, errors = numbers[keep], errors[keep]
            records = frame if block.lines is None else block.lines[keep]
        columns = {}
        for column in self.schema.columns_of(self.table):
            values, failed = self._convert(column, frame, typed)
            columns[column.name] = values
            if failed is not None and failed.any():
                hit = failed.to_numpy() & (errors == None)  # noqa: E711
                errors[hit] = f"{column.name} is not {noun(column.type)}"
        rows = pl.DataFrame(columns).to_arrow()
        return RawRows(
            rows.cast(self.schema.arrow(self.table)),
            file,
            numbers,
            records,
            errors,
            block.malformed,
            not_selected,
        )

    def check(self, sample: pl.DataFrame, file: str) -> None:
        """Tries the mapping on no rows, so that mistakes show at once.

        Raises:
          InputError: as `rows`; the message names the file.
        """
        expressions = {
            name: source.expression
            for name, source in self._sources().items()
            if source.expression
        }
        if self.mapping.where is not None:
            expressions["where"] = self.mapping.where
        for name, text in expressions.items():
            try:
                roots = pl.sql_expr(text).meta.root_names()
            except pl.exceptions.PolarsError as error:
                raise self._failed(name, text, error) from error
            self._check_present(name, set(roots), sample, file)
        for name, source in self._sources().items():
            if source.column is not None:
                self._check_present(name, {source.column}, sample, file)
        try:
            empty = sample.clear()
            self.rows(Block(empty, np.zeros(0, np.int64)), file)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error

    def _sources(self) -> dict[str, ColumnMapping]:
        return {
            c.name: self.mapping.source_of(c.name)
            for c in self.schema.columns_of(self.table)
        }

    def _names(self) -> set[str]:
        """Columns of the file that the mapping mentions."""
        return mentioned(self.mapping, self.schema, self.table)

    def _check_present(
        self, name: str, used: set[str], sample: pl.DataFrame, file: str
    ) -> None:
        for column in sorted(used - set(sample.columns)):
            raise InputError(
                f"{file} has no column {column!r}, which tables.{self.table}"
                f" needs for {name!r}{nearest(column, sample.columns)} It "
                f"has: {', '.join(sample.columns)}."
            )

    def _typed(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, np.ndarray]:
        """Text columns as the types that expressions expect, and failures."""
        errors = np.full(frame.height, None, dtype=object)
        casts = []
        for name, kind in self.types.items():
            values = frame[name]
            if values.dtype.is_numeric():
                # Blocks of JSON lines may differ in the kind of number.
                if kind == "text":
                    casts.append(id_texts(values))
                continue
            if kind == "text" and values.dtype == pl.String:
                continue
            try:
                cast = parse_cells(values, kind)
            except TypeError:
                cast = _no_cells(values, pl.Null())
            failed = cast.is_null() & values.is_not_null()
            errors[failed.to_numpy()] = f"{name} is not {_EXPECTED[kind]}"
            casts.append(cast)
        return frame.with_columns(casts), errors

    def _evaluate(
        self, frame: pl.DataFrame, name: str, expression: pl.Expr
    ) -> pl.Series:
        """One value per row; an aggregate over rows is refused."""
        try:
            # A row number beside it spreads a constant over all rows.
            values = (
                frame.lazy()
                .select(
                    pl.int_range(pl.len()).alias(_ROW),
                    expression.alias("value"),
                )
                .collect()["value"]
            )
            if not frame.height and expression.meta.root_names():
                rows = frame.select(expression).height
                if rows:
                    raise InputError(
                        f"tables.{self.table}: {name!r} must be computed from"
                        " one row, but its expression is an aggregate over "
                        "rows."
                    )
            return values
        except pl.exceptions.PolarsError as error:
            text = (
                self.mapping.where
                if name == "where"
                else self.mapping.source_of(name).expression or name
            )
            raise self._failed(name, str(text), error) from error

    def _failed(self, name: str, text: str, error: Exception) -> InputError:
        reason = " ".join(str(error).split("\n\n")[0].split())
        return InputError(
            f"tables.{self.table}: the expression of {name!r}, {text!r}, "
            f"fails: {reason.rstrip('.')}. Columns of text files are typed by "
            "`types: {column: integer}`."
        )

    def _convert(
        self, column: Column, frame: pl.DataFrame, typed: pl.DataFrame
    ) -> tuple[pl.Series, pl.Series | None]:
        """A stored column, and which cells were there but did not convert."""
        source = self.mapping.source_of(column.name)
        if source.expression is not None:
            values = self._evaluate(
                typed, column.name, pl.sql_expr(source.expression)
            )
        elif source.column is not None:
            values = frame[source.column]
        else:
            values = pl.Series(
                [source.constant], dtype=None, strict=False
            ).new_from_index(0, frame.height)
        if values.dtype == pl.String and column.nullable:
            values = values.replace("", None)
        if values.dtype == pl.Null:
            kind = pl.Series(pa.nulls(0, column.type)).dtype
            return values.cast(kind).alias(column.name), None
        if values.dtype.is_float() and not pa.types.is_floating(column.type):
            values = values.fill_nan(None)
        try:
            converted = convert(values, column, source)
        except (pl.exceptions.PolarsError, TypeError) as error:
            if frame.height and self.mapping.file_format == "jsonl":
                # These cells, not the column: see `mapped_json`.
                kind = pl.Series(pa.nulls(0, column.type)).dtype
                nothing = _no_cells(values, kind).alias(column.name)
                return nothing, values.is_not_null()
            raise InputError(
                f"tables.{self.table}: {column.name!r} cannot be made from "
                f"values of type {values.dtype}; expected "
                f"{noun(column.type)}"
                f"{' with a `unit`' if is_time(column) else ''}."
            ) from error
        failed = values.is_not_null() & converted.is_null()
        if converted.dtype.is_float() and column.nullable:
            converted = converted.fill_nan(None)
        return converted.alias(column.name), failed


def _no_cells(values: pl.Series, kind: pl.DataType) -> pl.Series:
    return pl.Series(values.name, [None] * len(values), dtype=kind)


def mentioned(
    mapping: TableMapping, schema: EventSchema, table: str
) -> set[str]:
    """Columns of the file that a table's mapping mentions."""
    sources = [mapping.source_of(c.name) for c in schema.columns_of(table)]
    direct = {s.column for s in sources if s.column is not None}
    return direct | in_expressions(mapping, schema, table)


def in_expressions(
    mapping: TableMapping, schema: EventSchema, table: str
) -> set[str]:
    """Columns of the file that expressions and the filter mention."""
    texts = [
        mapping.source_of(c.name).expression for c in schema.columns_of(table)
    ]
    names: set[str] = set()
    for text in (*texts, mapping.where):
        if text:
            try:
                names.update(pl.sql_expr(text).meta.root_names())
            except pl.exceptions.PolarsError as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"tables.{table}: the expression {text!r} cannot be read:"
                    f" {reason}. Names that SQL reserves need double quotes."
                ) from error
    return names
