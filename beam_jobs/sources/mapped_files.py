"""Outside files to blocks of raw records: Parquet, CSV and JSON Lines.

A Parquet file is read by row groups, which many workers share; a text file
(plain or compressed) is one unit of reading and is streamed in blocks. Cells
of a CSV file are text, those of JSON Lines what JSON says, those of Parquet
as declared. All go through Beam's file systems, so `gs://` works.
"""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from beam_jobs.event_rows import to_polars
from beam_jobs.sources.mapped_blocks import (
    NOT_UTF8,
    Block,
    MarkingStream,
    checked_texts,
    unmark,
)
from beam_jobs.sources.mapped_json import json_blocks
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


def num_rows_of(files: Sequence[LogFile]) -> int | None:
    """Records of Parquet files; of text files nobody knows before."""
    if any(file.format != "parquet" for file in files):
        return None
    total = 0
    for file in files:
        with _parquet(file) as parquet:
            total += parquet.metadata.num_rows
    return total


def read_sample(file: LogFile) -> pl.DataFrame:
    """Names and types of a file's columns; of text files the first block.

    Raises:
      InputError: the file cannot be read, or has no columns.
    """
    if file.format == "parquet":
        with _parquet(file) as parquet:
            return _frame(parquet.schema_arrow.empty_table())
    for block in read_blocks(file, 0):
        if block.frame.width:
            return block.frame
    raise InputError(f"{file.name} is empty; it has no records.")


def read_blocks(file: LogFile, part: int) -> Iterator[Block]:
    """Streams one unit of a file.

    Raises:
      InputError: the file cannot be read.
    """
    if file.format == "parquet":
        return _parquet_blocks(file, part)
    return _csv_blocks(file) if file.format == "csv" else _json_blocks(file)


def _parquet_blocks(file: LogFile, part: int) -> Iterator[Block]:
    with _parquet(file) as parquet:
        number = 1 + sum(
            parquet.metadata.row_group(g).num_rows for g in range(part)
        )
        try:
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[part]):
                numbers = np.arange(number, number + batch.num_rows)
                number += batch.num_rows
                batch, garbled = checked_texts(batch)
                rows = pa.Table.from_batches([batch])
                yield Block(_frame(rows), numbers, garbled=garbled)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, error) from error


def _frame(rows: pa.Table) -> pl.DataFrame:
    for number, field in enumerate(rows.schema):
        if pa.types.is_decimal256(field.type):  # Unknown to polars.
            texts = rows.column(number).cast(pa.string())
            rows = rows.set_column(number, field.name, texts)
    return to_polars(rows)


def _json_blocks(file: LogFile) -> Iterator[Block]:
    try:
        with _open(file) as stream:
            yield from json_blocks(stream)
    except (OSError, EOFError) as error:
        raise _unreadable(file, error) from error


def _csv_blocks(file: LogFile) -> Iterator[Block]:
    malformed: list[tuple[int, str, str]] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        text, garbled = unmark(row.text)
        reason = "the row has not the header's number of cells"
        # Rows count from 1 with the header.
        malformed.append(
            (row.number - 1, NOT_UTF8 if garbled else reason, text)
        )
        return "skip"

    names = _csv_header(file)
    stream = MarkingStream(_open(file))
    try:
        # Closed also where a reader of blocks stops early.
        with pa_csv.open_csv(
            io.BufferedReader(stream),
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
        ) as reader:
            number, reported = 1, 0
            bad: set[int] = set()
            for batch in reader:
                new, reported = malformed[reported:], len(malformed)
                bad.update(n for n, _, _ in new)
                numbers: list[int] = []
                while len(numbers) < batch.num_rows:
                    if number not in bad:
                        numbers.append(number)
                    number += 1
                frame, garbled = _decode(batch, stream.marked)
                yield Block(frame, np.array(numbers, np.int64), new, garbled)
        if number == 1 or reported < len(malformed):
            # Only a header, or invalid rows after the last good one.
            yield Block(
                pl.DataFrame(schema=dict.fromkeys(names, pl.String)),
                np.zeros(0, np.int64),
                malformed[reported:],
            )
    except (pa.ArrowException, OSError, EOFError) as error:
        if "straddling object" in str(error):
            raise InputError(
                f"{file.path} has a record of more than "
                f"{BLOCK_BYTES >> 20} MiB, probably from a quote that is "
                "never closed. Repair that record."
            ) from error
        raise _unreadable(file, error) from error


def _csv_header(file: LogFile) -> list[str]:
    with _open(file) as stream:
        start = stream.read(1 << 20)
    try:
        # Just the header: with no rows every column is of type null.
        header = pa_csv.open_csv(
            MarkingStream(io.BytesIO(start)),
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


def _decode(
    batch: pa.RecordBatch, marked: bool
) -> tuple[pl.DataFrame, np.ndarray | None]:
    """Cells as text; an empty cell is null, a wrong byte is marked."""
    columns, garbled = {}, None
    for name, cells in zip(batch.schema.names, batch.columns, strict=True):
        text = cells.cast(pa.string())
        if marked:  # Rare, so slow.
            found = [unmark(cell) for cell in text.to_pylist()]
            text = pa.array([cell for cell, _ in found], pa.string())
            wrong = np.array([is_wrong for _, is_wrong in found], bool)
            garbled = wrong if garbled is None else garbled | wrong
        series = pl.Series(name, text, dtype=pl.String)
        columns[name] = series.set(series == "", None)
    return pl.DataFrame(columns), garbled


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
