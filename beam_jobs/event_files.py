"""Raw rows to the files of the events stage: validate, group, sort, write.

In: batches of rows of the five event tables, in any order, from any source.
Out, in one folder: `schema.json`, `<table>-SSSSS-of-NNNNN.parquet` and
`dead_letters-SSSSS-of-NNNNN.parquet`. Rows travel as Arrow IPC bytes, keyed
by a stable hash of their user (or video), and each shard is sorted by all its
columns, so files, row order and bundles leave no trace in the bytes.

A bad row goes to the dead letters with its reason and the first KiB of the
raw record. Of rows with one key the smallest is kept and the others counted:
read = good + bad + duplicates, for each table.
"""

import dataclasses
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import progress
from beam_jobs.event_counts import check_counts, complete, shard_path
from beam_jobs.event_rows import (
    DEAD_LETTER_SCHEMA,
    DEAD_LETTERS,
    KEYS,
    Counts,
    RawRows,
    sort_and_deduplicate,
    validate,
)
from beam_jobs.runners import count, run_pipeline
from beam_jobs.user_shards import shard_numbers, to_ipc
from schemas.errors import InputError
from schemas.events import (
    LATEST_TIME_US,
    TIMED_TABLES,
    EventSchema,
)

ROW_GROUP_ROWS = 131_072


@dataclasses.dataclass(frozen=True)
class RawTable:
    """One source of one event table, read in parts by many workers.

    Attributes:
      table: name of the event table.
      parts: tuples of plain values, one per unit of reading.
      read: (part, log_start_us) to batches; it travels to the workers.
        `log_start_us` is None unless `before_log`.
      before_log: the rows are placed before the first event of all other
        sources (a history without dates), so they are read after those.
      num_rows: records to read, where that is known before.
    """

    table: str
    parts: Sequence[tuple[Any, ...]]
    read: Callable[[tuple[Any, ...], int | None], Iterable[RawRows]]
    before_log: bool = False
    num_rows: int | None = None


def run(
    sources: Sequence[RawTable],
    schema: EventSchema,
    output: str,
    num_shards: int,
    max_bad_share: float,
    options: PipelineOptions,
) -> dict[str, int]:
    """Writes the events stage's files with a Beam job.

    Args:
      sources: where the rows come from; a table may have several. Without a
        source of `users`, the users are those of the events.
      schema: what the log has.
      output: an existing folder to fill, on any file system Beam knows.
      num_shards: files per table; the bytes depend on nothing else here.
      max_bad_share: largest share of bad rows per table, in [0, 1].
      options: Beam's.

    Returns:
      Counts `<table>.{read,good,bad,duplicates}` and
      `<table>.bad.<reason>`.

    Raises:
      InputError: unreadable input, columns that do not fit, more bad rows
        than allowed (the commonest reasons are named), or no good row in
        `watches`, `videos` or `users`.
    """
    _check_arguments(sources, schema, num_shards, max_bad_share)
    num_rows = [source.num_rows for source in sources]
    derive_users = schema.has("users") and not any(
        s.table == "users" for s in sources
    )
    keys = [f"{t}/{n}" for t in _tables(schema) for n in range(num_shards)]
    with run_pipeline(options) as job:
        if None not in num_rows:
            progress.expect("read", sum(n or 0 for n in num_rows))
        split = _ReadAndSplit(list(sources), schema, num_shards, derive_users)
        dated = (
            job.pipeline
            | "Parts" >> beam.Create(_parts(sources, False), reshuffle=False)
            | "SpreadParts" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(split).with_outputs("start", main="pieces")
        )
        log_start = dated.start | "LogStart" >> beam.CombineGlobally(_earliest)
        undated = (
            job.pipeline
            | "Undated" >> beam.Create(_parts(sources, True), reshuffle=False)
            | "SpreadUndated" >> beam.Reshuffle()
            | "ReadUndated"
            >> beam.ParDo(
                split, log_start_us=beam.pvalue.AsSingleton(log_start)
            ).with_outputs("start", main="pieces")
        )
        # An empty piece per file: no shard is missing for want of rows.
        empty = job.pipeline | "Files" >> beam.Create(
            [(key, b"") for key in keys], reshuffle=False
        )
        _ = (
            (dated.pieces, undated.pieces, empty)
            | "Pieces" >> beam.Flatten()
            | "ByFile" >> beam.GroupByKey()
            | "Write"
            >> beam.ParDo(_Write(schema, output, num_shards, derive_users))
        )
    _write_text(FileSystems.join(output, "schema.json"), schema.to_json())
    counts = complete(Counts(job.counts), schema)
    check_counts(counts, schema, max_bad_share, output, num_shards)
    return counts


def write_simulated(
    tables: Mapping[str, pa.Table],
    truth: Mapping[str, pa.Table],
    output: str,
    num_shards: int,
    max_bad_share: float = 0.0,
) -> dict[str, int]:
    """Writes tables in memory by the same rules, without a Beam job.

    Args:
      tables: all event tables of the log.
      truth: what produced them, written to `truth/<name>.parquet` as it is.
      output, num_shards, max_bad_share: as of `run`.

    Returns:
      The same counts as `run`.

    Raises:
      InputError: as `run`.
    """
    schema = EventSchema.of_tables(tables)
    _check_arguments((), schema, num_shards, max_bad_share)
    counts, dead = Counts(), [DEAD_LETTER_SCHEMA.empty_table()]
    for table, rows in tables.items():
        numbers = np.arange(1, rows.num_rows + 1)
        raw = RawRows(rows.combine_chunks(), table, numbers)
        good, letters, found = validate(table, raw, schema)
        counts += found
        dead.append(letters)
        shards = shard_numbers(good.column(KEYS[table][0]), num_shards)
        for shard, piece in _cut(good, shards, num_shards):
            path = shard_path(output, table, shard, num_shards)
            counts += _write_shard(path, table, [piece], schema)
    letters = pa.concat_tables(dead)
    for shard, piece in _cut(
        letters, _letter_shards(letters, num_shards), num_shards
    ):
        path = shard_path(output, DEAD_LETTERS, shard, num_shards)
        _write_shard(path, DEAD_LETTERS, [piece], schema)
    FileSystems.mkdirs(FileSystems.join(output, "truth"))
    for name, rows in truth.items():
        write_parquet(
            FileSystems.join(output, "truth", f"{name}.parquet"), rows
        )
    _write_text(FileSystems.join(output, "schema.json"), schema.to_json())
    complete_counts = complete(counts, schema)
    check_counts(complete_counts, schema, max_bad_share, output, num_shards)
    return complete_counts


def write_parquet(path: str, rows: pa.Table) -> None:
    """Writes a file under another name first: a retry never half-writes."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with FileSystems.create(
        temporary, compression_type="uncompressed"
    ) as stream:
        pq.write_table(
            rows.combine_chunks(),
            pa.PythonFile(stream, mode="w"),
            row_group_size=ROW_GROUP_ROWS,
            compression="zstd",
        )
    FileSystems.rename([temporary], [path])


class _ReadAndSplit(beam.DoFn):
    """(source, part) to (table/shard, IPC bytes); first times to `start`."""

    def __init__(
        self,
        sources: Sequence[RawTable],
        schema: EventSchema,
        num_shards: int,
        derive_users: bool,
    ) -> None:
        super().__init__()
        self._sources = sources
        self._schema = schema
        self._num_shards = num_shards
        self._derive_users = derive_users

    def process(
        self,
        element: tuple[int, tuple[Any, ...]],
        log_start_us: int | None = None,
    ) -> Iterator[Any]:
        number, part = element
        source = self._sources[number]
        if source.before_log and log_start_us == LATEST_TIME_US:
            raise InputError(
                "An undated history is placed before the log's first event, "
                "but no event has a good time. Check the times' units."
            )
        for raw in source.read(part, log_start_us):
            rows, letters, counts = validate(source.table, raw, self._schema)
            for name, amount in counts.items():
                count(name, amount)
            yield from self._pieces(source.table, rows)
            yield from self._letters(letters)
            if source.table in TIMED_TABLES and rows.num_rows:
                first = pc.min(rows.column("event_time_us")).as_py()
                yield beam.pvalue.TaggedOutput("start", first)
                if self._derive_users:
                    users = pc.unique(rows.column("user_id"))
                    yield from self._pieces(
                        "users", pa.table({"user_id": users})
                    )

    def _pieces(
        self, table: str, rows: pa.Table
    ) -> Iterator[tuple[str, bytes]]:
        shards = shard_numbers(rows.column(KEYS[table][0]), self._num_shards)
        progress.expect("work", rows.num_rows)
        for shard, piece in _cut(rows, shards, self._num_shards):
            for data in to_ipc(piece):
                yield f"{table}/{shard}", data

    def _letters(self, letters: pa.Table) -> Iterator[tuple[str, bytes]]:
        shards = _letter_shards(letters, self._num_shards)
        for shard, piece in _cut(letters, shards, self._num_shards):
            for data in to_ipc(piece):
                yield f"{DEAD_LETTERS}/{shard}", data


class _Write(beam.DoFn):
    """(table/shard, IPC bytes of all pieces) to one file."""

    def __init__(
        self,
        schema: EventSchema,
        output: str,
        num_shards: int,
        derive_users: bool,
    ) -> None:
        super().__init__()
        self._schema = schema
        self._output = output
        self._num_shards = num_shards
        self._derive_users = derive_users

    def process(self, element: tuple[str, Iterable[bytes]]) -> None:
        key, pieces = element
        table, shard = key.split("/")
        tables = [pa.ipc.open_stream(p).read_all() for p in pieces if p]
        path = shard_path(self._output, table, int(shard), self._num_shards)
        counts = _write_shard(path, table, tables, self._schema)
        if table != DEAD_LETTERS:
            progress.report("work", sum(t.num_rows for t in tables))
        if self._derive_users and table == "users":
            # One row a user and batch is how they were found: no duplicates.
            good = counts["users.good"]
            counts = Counts({"users.read": good, "users.good": good})
        for name, amount in counts.items():
            count(name, amount)


def _write_shard(
    path: str, table: str, tables: Sequence[pa.Table], schema: EventSchema
) -> Counts:
    letters = table == DEAD_LETTERS
    kind = DEAD_LETTER_SCHEMA if letters else schema.arrow(table)
    rows = pa.concat_tables([kind.empty_table(), *tables])
    rows, duplicates = sort_and_deduplicate(table, rows)
    write_parquet(path, rows)
    if letters:
        return Counts()
    return Counts(
        {f"{table}.good": rows.num_rows, f"{table}.duplicates": duplicates}
    )


def _letter_shards(letters: pa.Table, num_shards: int) -> np.ndarray:
    return shard_numbers(letters.column("record"), num_shards)


def _cut(
    rows: pa.Table, shards: np.ndarray, num_shards: int
) -> Iterator[tuple[int, pa.Table]]:
    """Yields every shard's rows, in their order; also those of no rows."""
    order = np.argsort(shards, kind="stable")
    rows = rows.take(order)
    ends = np.searchsorted(shards[order], np.arange(num_shards + 1))
    for shard in range(num_shards):
        yield shard, rows.slice(ends[shard], ends[shard + 1] - ends[shard])


def _earliest(times_us: Iterable[int]) -> int:
    return min(times_us, default=LATEST_TIME_US)


def _parts(
    sources: Sequence[RawTable], before_log: bool
) -> list[tuple[int, tuple[Any, ...]]]:
    return [
        (number, part)
        for number, source in enumerate(sources)
        for part in source.parts
        if source.before_log == before_log
    ]


def _tables(schema: EventSchema) -> list[str]:
    return [*schema.columns, DEAD_LETTERS]


def _write_text(path: str, text: str) -> None:
    with FileSystems.create(path, compression_type="uncompressed") as stream:
        stream.write(text.encode())


def _check_arguments(
    sources: Sequence[RawTable],
    schema: EventSchema,
    num_shards: int,
    max_bad_share: float,
) -> None:
    if num_shards < 1:
        raise ValueError(f"`num_shards` must be at least 1, got {num_shards}.")
    if not 0.0 <= max_bad_share <= 1.0:
        raise ValueError(
            f"`max_bad_share` must be in [0, 1], got {max_bad_share}."
        )
    unknown = {s.table for s in sources} - set(schema.columns)
    if unknown:
        raise ValueError(
            f"Sources of {sorted(unknown)}, but the schema has only "
            f"{', '.join(schema.columns)}."
        )
