"""Cells of outside logs to the types of the event tables.

Each function takes a whole column and returns one of the same length, null
where a cell cannot be read so.
"""

import polars as pl
import pyarrow as pa

from beam_jobs.sources.mapping import CellType, ColumnMapping
from schemas.events import Column

_TYPES: dict[CellType, pl.DataType] = {
    "integer": pl.Int64(),
    "real": pl.Float64(),
    "text": pl.String(),
    "boolean": pl.Boolean(),
}
_DAY_US = 86_400_000_000
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SECONDS = {"min": 60, "h": 3600}
_TRUE, _FALSE = ["true", "t", "yes", "y", "1"], ["false", "f", "no", "n", "0"]
# Times without a zone, tried in this order after ISO 8601 with one.
_ISO_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)
# Share of a sample's cells that must look like a number for a column of text
# to be one: a few broken cells shall become dead letters, not change a type.
_NUMBER_SHARE = 0.9


def infer_type(values: pl.Series) -> CellType:
    """What a column of text holds, from a sample of it.

    `integer` or `real` where at least 90 % of the cells that are not empty
    are such numbers and none of them begins with a superfluous zero (a code);
    `boolean` where all are true or false.
    """
    if values.dtype.is_numeric():
        return "integer" if values.dtype.is_integer() else "real"
    if values.dtype == pl.Boolean:
        return "boolean"
    if values.dtype != pl.String:
        return "text"
    cells = values.drop_nulls()
    if not cells.len() or cells.str.contains(r"^-?0\d").any():
        return "text"
    for kind in ("integer", "real"):
        if parse_cells(cells, kind).count() >= _NUMBER_SHARE * cells.len():
            return kind
    whole = cells.str.to_lowercase().is_in(["true", "false"]).all()
    return "boolean" if whole else "text"


def parse_cells(values: pl.Series, kind: CellType) -> pl.Series:
    """Raises TypeError for lists and objects."""
    if values.dtype.is_nested():
        raise TypeError("a list is neither a text nor a number")
    if values.dtype == pl.String:
        values = values.str.strip_chars()
        if kind == "boolean":
            return _flag(values).alias(values.name)
    return values.cast(_TYPES[kind], strict=False)


def convert(
    values: pl.Series, column: Column, source: ColumnMapping
) -> pl.Series:
    kind = column.type
    if is_time(column):
        return _time_us(values, source)
    if pa.types.is_list(kind):
        return id_lists(values, source.separator)
    if pa.types.is_boolean(kind):
        return _flag(values)
    if pa.types.is_integer(kind):
        return _whole(values)
    if pa.types.is_floating(kind):
        return _real(values, source)
    return id_texts(values)


def id_texts(values: pl.Series) -> pl.Series:
    """Ids and names; a whole number has no `.0`, NaN is no text."""
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        is_whole = (whole.cast(pl.Float64) == values).fill_null(False)
        text = values.fill_nan(None).cast(pl.String)
        return whole.cast(pl.String).zip_with(is_whole, text)
    if values.dtype.is_nested():
        raise TypeError("a list is no text")
    return values.cast(pl.String)


def _flag(values: pl.Series) -> pl.Series:
    if values.dtype == pl.Boolean:
        return values
    if values.dtype.is_numeric():
        true, false = values == 1, values == 0
    elif values.dtype == pl.String:
        text = values.str.strip_chars().str.to_lowercase()
        true, false = text.is_in(_TRUE), text.is_in(_FALSE)
    else:
        raise TypeError("neither text nor a number")
    known = (true | false).fill_null(False)
    return true.zip_with(known, pl.Series([None], dtype=pl.Boolean))


def _number(values: pl.Series) -> pl.Series:
    if values.dtype == pl.String:
        # Int64 keeps the digits that a float would lose.
        text = values.str.strip_chars()
        whole = text.cast(pl.Int64, strict=False)
        real = text.cast(pl.Float64, strict=False)
        return whole if whole.null_count() <= real.null_count() else real
    if not values.dtype.is_numeric():
        raise TypeError("not a number")
    # Of 64 bits, whatever the file has: the products below need them.
    kind = pl.Int64 if values.dtype.is_integer() else pl.Float64
    return values.cast(kind, strict=False)


def _whole(values: pl.Series) -> pl.Series:
    number = _number(values)
    whole = number.cast(pl.Int64, strict=False)
    same = (whole == number).fill_null(False)
    return whole.zip_with(same, pl.Series([None], dtype=pl.Int64))


def _real(values: pl.Series, source: ColumnMapping) -> pl.Series:
    number = _number(values).cast(pl.Float64)
    if source.unit in _PER_SECOND:
        return number / _PER_SECOND[source.unit]
    return number * _SECONDS.get(source.unit or "", 1)


def _time_us(values: pl.Series, source: ColumnMapping) -> pl.Series:
    offset_us = round(source.utc_offset_hours * 3_600_000_000)
    if values.dtype == pl.Date:
        # Not by a cast, which panics at years that no calendar has.
        days = values.to_physical().cast(pl.Int64)
        limit = 2**62 // _DAY_US
        return days.clip(-limit, limit) * _DAY_US - offset_us
    if isinstance(values.dtype, pl.Datetime):
        local = values.dtype.time_zone is None
        time_us = values.dt.epoch("us")
        return time_us - offset_us if local else time_us
    if source.unit is None:
        if values.dtype != pl.String:
            raise TypeError("a number without unit")
        return _parse_times(values, source.format or "iso", offset_us)
    return _scaled(_number(values), source.unit)


def _scaled(number: pl.Series, unit: str) -> pl.Series:
    """Microseconds; what would overflow stays out of every valid range."""
    if unit == "ns":
        return (number // 1000).cast(pl.Int64, strict=False)
    factor = (
        10**6 // _PER_SECOND[unit]
        if unit in _PER_SECOND
        else (_SECONDS[unit] * 10**6)
    )
    limit = 2**62 // factor
    number = number.clip(-limit, limit)
    if number.dtype.is_float():
        number = (number * factor).round()
        return number.cast(pl.Int64, strict=False)
    return number.cast(pl.Int64) * factor


def _parse_times(values: pl.Series, form: str, offset_us: int) -> pl.Series:
    text = pl.col("text").str.strip_chars()

    def parse(pattern: str, zoned: bool) -> pl.Expr:
        parsed = text.str.to_datetime(
            pattern,
            time_unit="us",
            time_zone="UTC" if zoned else None,
            strict=False,
        )
        time_us = parsed.dt.epoch("us")
        return time_us if zoned else time_us - offset_us

    if form == "iso":
        tries = [parse("%+", True), *(parse(f, False) for f in _ISO_FORMATS)]
    else:
        tries = [parse(form, "%z" in form or "%:z" in form or "%#z" in form)]
    frame = values.alias("text").to_frame()
    return frame.select(pl.coalesce(tries).alias("time"))["time"]


def id_lists(values: pl.Series, separator: str | None) -> pl.Series:
    """Lists of text without empty terms; text is split at the separator."""
    if values.dtype == pl.String:
        lists = (
            values.str.split(separator)
            if separator
            else (values.reshape((-1, 1)).arr.to_list())
        )
    elif isinstance(values.dtype, pl.List):
        lists = values.cast(pl.List(pl.String))
    elif values.dtype.is_numeric():
        lists = id_texts(values).reshape((-1, 1)).arr.to_list()
    else:
        raise TypeError("neither text nor a list")
    term = pl.element().str.strip_chars()
    lists = lists.list.eval(term.filter(term.is_not_null() & (term != "")))
    # A cell that is null has no list, rather than an empty one.
    return lists.zip_with(
        values.is_not_null(), pl.Series([None], dtype=lists.dtype)
    )


def is_time(column: Column) -> bool:
    return column.name in ("event_time_us", "upload_time_us")


def noun(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "true or false"
    if pa.types.is_list(kind):
        return "a list of text"
    if pa.types.is_string(kind):
        return "text"
    return "a number or a time" if pa.types.is_integer(kind) else "a number"
