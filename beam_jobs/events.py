"""Event files to Arrow batches: the only reader of Parquet in the jobs.

In: Parquet files of one event table. Out: one Arrow table per row group, so
that a file of any size is read in pieces and by several workers.
"""

from collections.abc import Iterator, Sequence
from concurrent import futures

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from beam_jobs import progress
from schemas.errors import InputError


class ReadEvents(beam.PTransform):
    """Reads the row groups of Parquet files, in no order.

    Args:
      files: full paths, on any file system Beam knows.
      columns: an Arrow schema to read; files must have these names and types.
        Other columns of a file are not read.

    Returns:
      PCollection of `pa.Table`, one per row group.

    Raises:
      InputError: a missing or corrupt file, or a column absent or of another
        type; the message names the path.
    """

    def __init__(self, files: Sequence[str], columns: pa.Schema) -> None:
        super().__init__()
        self._files = list(files)
        self._columns = columns

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        if progress.is_watched():
            progress.expect("read", count_rows(self._files))
        return (
            pipeline
            | "Files" >> beam.Create(sorted(self._files), reshuffle=False)
            | "RowGroups" >> beam.FlatMap(row_groups)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.Map(_read_and_report, columns=self._columns)
        )


def row_groups(path: str) -> Iterator[tuple[str, int]]:
    """Yields (path, number) of each row group of a file that has rows."""
    with _open(path) as file:
        for group in range(file.metadata.num_row_groups):
            if file.metadata.row_group(group).num_rows:
                yield path, group


def read_row_group(place: tuple[str, int], columns: pa.Schema) -> pa.Table:
    """Reads one (path, row group), only the given columns, in their order."""
    path, group = place
    with _open(path) as file:
        _check(path, file.schema_arrow, columns)
        try:
            table = file.read_row_group(group, columns=columns.names)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error
    return table.select(columns.names).cast(columns)


def _read_and_report(place: tuple[str, int], columns: pa.Schema) -> pa.Table:
    table = read_row_group(place, columns)
    progress.report("read", table.num_rows)
    return table


def read_tables(files: Sequence[str], columns: pa.Schema) -> pa.Table:
    """Reads whole files into memory: for the small tables, outside Beam."""
    tables = [
        read_row_group(place, columns)
        for path in sorted(files)
        for place in row_groups(path)
    ]
    return pa.concat_tables([columns.empty_table(), *tables]).combine_chunks()


def count_rows(files: Sequence[str]) -> int:
    """Rows of files, by their footers."""

    def rows(path: str) -> int:
        with _open(path) as file:
            return int(file.metadata.num_rows)

    # Far away a footer takes tens of milliseconds, and a log has thousands.
    with futures.ThreadPoolExecutor(32) as pool:
        return sum(pool.map(rows, files))


def last_event_us(files: Sequence[str]) -> int:
    """The largest `event_time_us` of files, by their footers; 0 without rows.

    Raises:
      InputError: a file without statistics of that column.
    """

    def last(path: str) -> int:
        with _open(path) as file:
            column = file.schema_arrow.get_field_index("event_time_us")
            groups = [
                file.metadata.row_group(i).column(column).statistics
                for i in range(file.metadata.num_row_groups)
                if file.metadata.row_group(i).num_rows
            ]
        if any(found is None or not found.has_min_max for found in groups):
            raise InputError(
                f"{path} has no statistics of event_time_us. Write it with "
                "them, or say --as-of."
            )
        return max((int(found.max) for found in groups), default=0)

    with futures.ThreadPoolExecutor(32) as pool:
        return max(pool.map(last, files), default=0)


def _open(path: str) -> pq.ParquetFile:
    try:
        # `auto` would gunzip by the file's name; Parquet compresses inside.
        stream = FileSystems.open(path, compression_type="uncompressed")
    except Exception as error:
        raise InputError(
            f"{path} cannot be opened: {_one_line(error)}. Run the stage "
            "that wrote it again."
        ) from error
    try:
        return pq.ParquetFile(pa.PythonFile(stream, mode="r"))
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _check(path: str, received: pa.Schema, expected: pa.Schema) -> None:
    for field in expected:
        if field.name not in received.names:
            raise InputError(
                f"{path} lacks the column {field.name!r}; it has "
                f"{', '.join(received.names)}."
            )
        kind = received.field(field.name).type
        if kind != field.type:
            raise InputError(
                f"{path}: column {field.name!r} has type {kind}, expected "
                f"{field.type}."
            )


def _unreadable(path: str, error: Exception) -> InputError:
    return InputError(
        f"{path} is no readable Parquet file: {_one_line(error)}. Run the "
        "stage that wrote it again."
    )


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
