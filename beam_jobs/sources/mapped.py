"""People's own logs: files and a mapping to the events stage.

`mapping.py` says what a mapping may hold, `mapped_files.py` reads files,
`mapped_columns.py` turns records into rows, and `event_files.py` validates
and writes them. Names, types and expressions are tried on each file before
the job starts, so that a mistake costs seconds.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import event_files, progress
from beam_jobs.event_files import RawTable
from beam_jobs.event_rows import RawRows
from beam_jobs.sources.mapped_cells import infer_type
from beam_jobs.sources.mapped_columns import TableReader, in_expressions
from beam_jobs.sources.mapped_files import (
    LogFile,
    find_files,
    num_rows_of,
    parts_of,
    read_blocks,
    read_sample,
)
from beam_jobs.sources.mapped_history import history_table
from beam_jobs.sources.mapping import CellType, Mapping, load_mapping
from schemas.errors import InputError

__all__ = ["load_mapping", "run"]


def run(
    mapping: Mapping,
    root: str,
    output: str,
    num_shards: int | None,
    max_bad_share: float,
    options: PipelineOptions,
) -> dict[str, int]:
    """Writes the events stage's files from a log's own files.

    Args:
      mapping: of `load_mapping`; its `root` is not looked at.
      root: folder of the log's files, on any file system Beam knows.
      output, num_shards, max_bad_share, options: as of `event_files.run`.

    Returns:
      The counts of `event_files.run`, and `<table>.not_selected`: the rows
      that a `where` left out.

    Raises:
      InputError: a missing folder or file, an unreadable or empty file, a
        missing column, a type or an expression that does not fit, or what
        `event_files.run` raises.
    """
    sources = [_table_source(mapping, table, root) for table in mapping.tables]
    schema = mapping.event_schema()
    if mapping.undated_history is not None:
        sources.append(history_table(mapping.undated_history, schema, root))
    return event_files.run(
        sources, schema, output, num_shards, max_bad_share, options
    )


@dataclasses.dataclass(frozen=True)
class _Read:
    """Reads the parts of one table's files; travels to the workers."""

    files: tuple[LogFile, ...]
    reader: TableReader

    def __call__(
        self, part: tuple[Any, ...], log_start_us: int | None
    ) -> Iterator[RawRows]:
        del log_start_us
        number, unit = part
        file = self.files[number]
        for block in read_blocks(file, unit):
            yield self.reader.rows(block, file.name)
            progress.report("read", block.num_records)


def _table_source(mapping: Mapping, table: str, root: str) -> RawTable:
    schema = mapping.event_schema()
    mapped = mapping.tables[table]  # type: ignore[index]
    files = find_files(
        root, mapped.patterns, mapped.file_format, mapped.delimiter
    )
    samples = [read_sample(file) for file in files]
    types: dict[str, CellType] = {}
    if mapped.file_format != "parquet":
        used = in_expressions(mapped, schema, table)
        typical = next((s for s in samples if s.height), None)
        if typical is None:
            raise InputError(f"{files[0].name} is empty; it has no records.")
        types = {
            name: mapped.types.get(name) or infer_type(typical[name])
            for name in sorted(used & set(typical.columns))
        }
    reader = TableReader(table, mapped, schema, types)
    for file, sample in zip(files, samples, strict=True):
        reader.check(sample, file.name)
    parts = [(n, p) for n, f in enumerate(files) for p in parts_of(f)]
    if not parts:
        raise InputError(f"{files[0].name} is empty; it has no records.")
    return RawTable(
        table,
        parts,
        _Read(tuple(files), reader),
        num_bytes=sum(file.num_bytes for file in files),
        num_rows=num_rows_of(files),
    )
