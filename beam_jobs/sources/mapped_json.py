"""JSON Lines to blocks of raw records: what a cell means depends on no other.

Readers of whole columns give every cell of a column one type, so that one
number among texts, or one real among whole ids, would change the others. Here
a block whose columns are not of one kind is divided by kinds instead. Slow,
but only for blocks that need it.
"""

import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from beam_jobs.sources.mapped_blocks import NOT_UTF8, Block

BLOCK_BYTES = 8 << 20
_BOM = b"\xef\xbb\xbf"
_NO_OBJECT = "the line is no JSON object"
# An escape of half a character: polars makes NUL of it.
_HALF = re.compile(
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]"
)
_EXACT_REALS = 2.0**53  # Up to here a real has all digits of a whole number.
_DEEPEST = 8
_TYPES = {
    "text": pl.String(),
    "whole": pl.Int64(),
    "real": pl.Float64(),
    "flag": pl.Boolean(),
    "list": pl.List(pl.String),
    # No column can be made of it.
    "nested": pl.Struct({"nested": pl.Boolean}),
}


def json_blocks(stream: Any) -> Iterator[Block]:
    """Parses objects, one a line; blank lines are no records.

    Args:
      stream: a binary stream.

    Returns:
      Blocks whose frames have a column for every key of the block; numbers
      are those of the file's lines.
    """
    number, rest = 1, b""
    while chunk := stream.read(BLOCK_BYTES):
        if number == 1 and not rest:
            chunk = chunk.removeprefix(_BOM)
        chunk = rest + chunk
        end = chunk.rfind(b"\n") + 1
        rest = chunk[end:]
        if end:
            yield from _parse(chunk[:end], number)
            number += chunk.count(b"\n", 0, end)
    if rest.strip():
        yield from _parse(rest, number)


def _parse(data: bytes, first: int) -> Iterator[Block]:
    lines = np.array([*data.split(b"\n"), None], object)[:-1]
    filled = np.array([bool(line.strip()) for line in lines])
    numbers = np.flatnonzero(filled) + first
    lines = lines[filled]
    if not _HALF.search(data):
        try:
            frame = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
            if frame.height == len(lines) and all(map(_is_exact, frame)):
                yield Block(frame, numbers, lines=lines)
                return
        except (pl.exceptions.PolarsError, ValueError, RuntimeError):
            pass
    yield from _by_kinds(lines, numbers)


def _is_exact(values: pl.Series) -> bool:
    """Whether a column's one type has changed no cell."""
    kind = values.dtype
    if kind.is_float():
        return bool((values.abs() < _EXACT_REALS).all())
    if kind == pl.List(pl.String):
        return _is_exact(values.explode())
    if kind == pl.String:
        # What may have been a list or an object.
        return not values.str.contains(r"^[\[{]").any()
    if isinstance(kind, pl.Struct):
        return _depth(kind) <= _DEEPEST
    return (
        kind.is_integer()
        or kind in (pl.Boolean, pl.Null)
        or kind in (pl.List(pl.Int64), pl.List(pl.Null))
    )


def _depth(kind: Any) -> int:
    if isinstance(kind, pl.Struct):
        return 1 + max((_depth(f.dtype) for f in kind.fields), default=0)
    if isinstance(kind, pl.List):
        return 1 + _depth(kind.inner)
    return 0


def _by_kinds(lines: np.ndarray, numbers: np.ndarray) -> Iterator[Block]:
    """Blocks of records that agree in the kind of every cell."""
    malformed = []
    names: dict[str, None] = {}
    groups: list[_Group] = []
    for place, line in enumerate(lines):
        record = _record(line)
        if isinstance(record, str):
            text = line.decode(errors="replace")
            malformed.append((int(numbers[place]), record, text))
            continue
        names.update(dict.fromkeys(record))
        kinds = {n: _kind(v) for n, v in record.items() if v is not None}
        group = next((g for g in groups if g.agrees(kinds)), None)
        if group is None:
            group = _Group()
            groups.append(group)
        group.kinds.update(kinds)
        group.records.append(record)
        group.places.append(place)
    # The largest first: a sample of a file is its first block.
    groups.sort(key=lambda group: -len(group.places))
    for group in groups or [_Group()]:
        at = np.array(group.places, np.int64)
        frame = group.frame(names)
        yield Block(frame, numbers[at], malformed, lines=lines[at])
        malformed = []


@dataclasses.dataclass
class _Group:
    """Records of a block, the kind of each key's values, places of lines."""

    kinds: dict[str, str] = dataclasses.field(default_factory=dict)
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)

    def agrees(self, kinds: Mapping[str, str]) -> bool:
        return all(self.kinds.get(n, kind) == kind for n, kind in kinds.items())

    def frame(self, names: Iterable[str]) -> pl.DataFrame:
        return pl.DataFrame(
            [
                _series(
                    name,
                    self.kinds.get(name),
                    [r.get(name) for r in self.records],
                )
                for name in names
            ]
        )


def _record(line: bytes) -> dict[str, Any] | str:
    """A line's object, or why there is none."""
    try:
        # Of a key that is there twice the first counts, as for polars.
        record = json.loads(
            line.decode(),
            object_pairs_hook=lambda pairs: dict(reversed(pairs)),
        )
        if _HALF.search(line):
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return NOT_UTF8
    except UnicodeEncodeError:
        return "the line has half a character (a lone surrogate)"
    except (ValueError, RecursionError):
        return _NO_OBJECT
    return record if isinstance(record, dict) else _NO_OBJECT


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        # Beyond 64 bits it can still be an id.
        return "whole" if -(2**63) <= value < 2**63 else "text"
    if isinstance(value, float):
        return "real"
    if isinstance(value, list):
        plain = all(v is None or not isinstance(v, list | dict) for v in value)
        return "list" if plain else "nested"
    return "nested"


def _series(name: str, kind: str | None, values: list[Any]) -> pl.Series:
    if kind is None:
        return pl.Series(name, values, dtype=pl.Null)
    if kind == "text":
        values = [_text(v) for v in values]
    elif kind == "list":
        values = [v if v is None else [_text(e) for e in v] for v in values]
    elif kind == "nested":
        values = [v if v is None else {"nested": True} for v in values]
    return pl.Series(name, values, dtype=_TYPES[kind])


def _text(value: Any) -> str | None:
    """As `mapped_cells.id_texts`: a whole number has no `.0`."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value)
