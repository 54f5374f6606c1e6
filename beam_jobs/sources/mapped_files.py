"""Outside files to blocks of raw records: Parquet, CSV and JSON Lines.

A Parquet file is read by row groups, which many workers share; a text file
(plain or compressed) is one unit of reading and is streamed in blocks. Cells
of a CSV file are text, those of JSON Lines what JSON says, those of Parquet
as declared. All go through Beam's file systems, so `gs://` works.
"""

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from beam_jobs.event_rows import to_polars
from beam_jobs.sources.mapping import FileFormat, nearest
from schemas.errors import InputError

BLOCK_BYTES = 8 << 20
BATCH_ROWS = 1 << 18
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class LogFile:
    """One file: its full path, its name below the root, how to read it."""

    path: str
    name: str
    format: FileFormat
    delimiter: str = ","
    num_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Block:
    """Some records of a file.

    Attributes:
      frame: n records.
      numbers: int64 [n], each record's number in the file, from 1.
      malformed: records that are no row, as (number, reason, text).
      garbled: bool [n], or None: records with bytes that are not UTF-8.
    """

    frame: pl.DataFrame
    numbers: np.ndarray
    malformed: Sequence[tuple[int, str, str]] = ()
    garbled: np.ndarray | None = None


def find_files(
    root: str, patterns: Sequence[str], kind: FileFormat, delimiter: str
) -> list[LogFile]:
    """Lists the files that match, sorted by name.

    Raises:
      InputError: the folder or a file does not exist.
    """
    root = root.rstrip("/")
    found = {}
    for pattern in patterns:
        match = FileSystems.match([FileSystems.join(root, pattern)])[0]
        if not match.metadata_list:
            raise InputError(_not_found(root, pattern))
        found.update({m.path: m for m in match.metadata_list})
    return [
        LogFile(
            path,
            path.removeprefix(root + "/"),
            kind,
            delimiter,
            found[path].size_in_bytes,
        )
        for path in sorted(found)
    ]


def parts_of(file: LogFile) -> list[int]:
    """Numbers of the units in which a file is read."""
    if file.format != "parquet":
        return [0]
    with _parquet(file) as parquet:
        return list(range(parquet.metadata.num_row_groups))


def read_sample(file: LogFile) -> pl.DataFrame:
    """Names and types of a file's columns; of text files the first block.

    Raises:
      InputError: the file cannot be read, or has no columns.
    """
    if file.format == "parquet":
        with _parquet(file) as parquet:
            return to_polars(parquet.schema_arrow.empty_table())
    for block in read_blocks(file, 0):
        if block.frame.width:
            return block.frame
    raise InputError(f"{file.name} is empty; it has no records.")


def read_blocks(file: LogFile, part: int) -> Iterator[Block]:
    """Streams one unit of a file.

    Raises:
      InputError: the file cannot be read.
    """
    read = {
        "parquet": _parquet_blocks,
        "csv": _csv_blocks,
        "jsonl": _jsonl_blocks,
    }[file.format]
    return read(file, part)


def _parquet_blocks(file: LogFile, part: int) -> Iterator[Block]:
    with _parquet(file) as parquet:
        number = 1 + sum(
            parquet.metadata.row_group(g).num_rows for g in range(part)
        )
        try:
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[part]):
                numbers = np.arange(number, number + batch.num_rows)
                number += batch.num_rows
                yield Block(to_polars(pa.Table.from_batches([batch])), numbers)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, error) from error


def _csv_blocks(file: LogFile, part: int) -> Iterator[Block]:
    del part
    malformed: list[tuple[int, str, str]] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        reason = "the row has not the header's number of cells"
        # Rows count from 1 with the header.
        malformed.append((row.number - 1, reason, row.text))
        return "skip"

    names = _csv_header(file)
    try:
        reader = pa_csv.open_csv(
            io.BufferedReader(_Bytes(_open(file))),
            # Threads would leave the invalid rows without a number.
            pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            pa_csv.ParseOptions(
                delimiter=file.delimiter,
                newlines_in_values=True,
                invalid_row_handler=skip,
            ),
            pa_csv.ConvertOptions(
                column_types={name: pa.binary() for name in names},
                strings_can_be_null=False,
            ),
        )
        number, reported = 1, 0
        for batch in reader:
            bad = {n for n, _, _ in malformed}
            numbers: list[int] = []
            while len(numbers) < batch.num_rows:
                if number not in bad:
                    numbers.append(number)
                number += 1
            new, reported = malformed[reported:], len(malformed)
            frame, garbled = _decode(batch)
            yield Block(frame, np.array(numbers, np.int64), new, garbled)
        if number == 1 or reported < len(malformed):
            # Only a header, or invalid rows after the last good one.
            yield Block(
                pl.DataFrame(schema=dict.fromkeys(names, pl.String)),
                np.zeros(0, np.int64),
                malformed[reported:],
            )
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(file, error) from error


class _Bytes(io.RawIOBase):
    """A stream that Arrow accepts: Beam's own, of compressed files, have a
    method `closed` where Arrow expects a value.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _csv_header(file: LogFile) -> list[str]:
    with _open(file) as stream:
        start = stream.read(1 << 20)
    try:
        # Just the header: with no rows every column is of type null.
        header = pa_csv.open_csv(
            io.BytesIO(start),
            parse_options=pa_csv.ParseOptions(
                delimiter=file.delimiter,
                newlines_in_values=True,
                invalid_row_handler=lambda row: "skip",
            ),
        ).schema.names
    except pa.ArrowException as error:
        if not start.strip():
            raise InputError(
                f"{file.name} is empty; it has no records."
            ) from error
        raise _unreadable(file, error) from error
    repeated = sorted({n for n in header if header.count(n) > 1})
    if repeated:
        raise InputError(
            f"{file.name} has the column(s) {', '.join(repeated)} twice."
        )
    return list(header)


def _decode(batch: pa.RecordBatch) -> tuple[pl.DataFrame, np.ndarray | None]:
    """Cells as text; an empty cell is null, a wrong byte is marked."""
    columns, garbled = {}, None
    for name, cells in zip(batch.schema.names, batch.columns, strict=True):
        try:
            text = cells.cast(pa.string())
        except pa.ArrowInvalid:
            # Rare, so slow: replace what is not UTF-8 by U+FFFD.
            raw = cells.to_pylist()
            text = pa.array([c.decode(errors="replace") for c in raw])
            wrong = np.array([_is_garbled(c) for c in raw])
            garbled = wrong if garbled is None else garbled | wrong
        series = pl.Series(name, text, dtype=pl.String)
        columns[name] = series.set(series == "", None)
    return pl.DataFrame(columns), garbled


def _is_garbled(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return True
    return False


def _jsonl_blocks(file: LogFile, part: int) -> Iterator[Block]:
    del part
    number, rest = 1, b""
    try:
        with _open(file) as stream:
            while chunk := stream.read(BLOCK_BYTES):
                chunk = rest + chunk
                end = chunk.rfind(b"\n") + 1
                rest = chunk[end:]
                if end:
                    yield _parse_lines(chunk[:end], number)
                    number += chunk.count(b"\n", 0, end)
        if rest.strip():
            yield _parse_lines(rest, number)
    except (OSError, EOFError) as error:
        raise _unreadable(file, error) from error


def _parse_lines(data: bytes, first: int) -> Block:
    """Parses JSON objects, one a line; blank lines are no records."""
    lines = data.split(b"\n")
    numbers = [i for i, line in enumerate(lines, first) if line.strip()]
    try:
        frame = pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
        if frame.height == len(numbers):
            return Block(frame, np.array(numbers, np.int64))
    except (pl.exceptions.PolarsError, ValueError, RuntimeError):
        pass
    # Something in the block is wrong or of mixed types: look line by line.
    good: list[dict[str, Any]] = []
    kept: list[int] = []
    malformed = []
    for number in numbers:
        line = lines[number - first]
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("no object")
        except ValueError:
            text = line.decode(errors="replace")
            malformed.append((number, "the line is no JSON object", text))
            continue
        good.append(record)
        kept.append(number)
    names = list(dict.fromkeys(name for record in good for name in record))
    frame = pl.DataFrame(
        [_series(name, [r.get(name) for r in good]) for name in names]
    )
    return Block(frame, np.array(kept, np.int64), malformed)


def _series(name: str, values: list[Any]) -> pl.Series:
    """Cells of one column; of mixed types they become text."""
    kinds = {type(v) for v in values if v is not None}
    if len(kinds) <= 1 or kinds == {int, float}:
        try:
            return pl.Series(name, values, strict=kinds != {int, float})
        except (pl.exceptions.PolarsError, TypeError, OverflowError):
            pass
    texts = [
        v if v is None or isinstance(v, str) else json.dumps(v) for v in values
    ]
    return pl.Series(name, texts, dtype=pl.String)


def _open(file: LogFile) -> Any:
    try:
        if file.format == "parquet":
            # `auto` would gunzip by the name; Parquet compresses inside.
            return FileSystems.open(file.path, compression_type="uncompressed")
        return FileSystems.open(file.path)
    except Exception as error:
        raise _unreadable(file, error) from error


def _parquet(file: LogFile) -> pq.ParquetFile:
    stream = _open(file)
    try:
        return pq.ParquetFile(pa.PythonFile(stream, mode="r"))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: LogFile, error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    kind = {"parquet": "Parquet", "csv": "CSV", "jsonl": "JSON Lines"}
    return InputError(
        f"{file.path} is no readable {kind[file.format]} file: "
        f"{lines[0].rstrip('.')}. Copy or write it again, or leave it out."
    )


def _not_found(root: str, pattern: str) -> str:
    match = FileSystems.match([FileSystems.join(root, "*")])[0]
    names = sorted(m.path.removeprefix(root + "/") for m in match.metadata_list)
    if not names and not FileSystems.exists(root):
        return (
            f"The input folder {root} does not exist; give the folder of the "
            "logs with --input DIR."
        )
    listed = ", ".join(names[:_LISTED]) + (" ..." if names[_LISTED:] else "")
    return (
        f"{root} has no file {pattern!r}{nearest(pattern, names)} It has: "
        f"{listed or 'no files'}."
    )
