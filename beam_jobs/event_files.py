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

import collections
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
from beam_jobs.column_shuffle import (
    GroupByShard,
    Slice,
    cut_rows,
    from_ipc,
    num_shards_for,
    shard_numbers,
)
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
from schemas.errors import InputError
from schemas.events import (
    LATEST_TIME_US,
    TIMED_TABLES,
    EventSchema,
)

ROW_GROUP_ROWS = 131_072
# Of outside logs: some 60 as text, some 15 as Parquet.
_BYTES_PER_EVENT = 32
# Column whose hash decides on the file of a row.
_SHARD_KEYS = {
    **{table: key[0] for table, key in KEYS.items()},
    DEAD_LETTERS: "record",
}


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
      num_bytes: size of what is read, which suggests the number of files.
      num_rows: records to read, where that is known before.
    """

    table: str
    parts: Sequence[tuple[Any, ...]]
    read: Callable[[tuple[Any, ...], int | None], Iterable[RawRows]]
    before_log: bool = False
    num_bytes: int = 0
    num_rows: int | None = None


def run(
    sources: Sequence[RawTable],
    schema: EventSchema,
    output: str,
    num_shards: int | None,
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
        None: by the size of the sources.
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
    if num_shards is None:
        num_bytes = sum(source.num_bytes for source in sources)
        num_shards = num_shards_for(num_bytes // _BYTES_PER_EVENT)
    _check_arguments(sources, schema, num_shards, max_bad_share)
    num_rows = [source.num_rows for source in sources]
    derive_users = schema.has("users") and not any(
        s.table == "users" for s in sources
    )
    with run_pipeline(options) as job:
        if None not in num_rows:
            progress.expect("read", sum(n or 0 for n in num_rows))
        read = _Read(list(sources), schema, derive_users)
        dated = (
            job.pipeline
            | "Parts" >> beam.Create(_parts(sources, False), reshuffle=False)
            | "SpreadParts" >> beam.Reshuffle()
            | "Read" >> beam.ParDo(read).with_outputs("start", main="rows")
        )
        log_start = dated.start | "LogStart" >> beam.CombineGlobally(_earliest)
        undated = (
            job.pipeline
            | "Undated" >> beam.Create(_parts(sources, True), reshuffle=False)
            | "SpreadUndated" >> beam.Reshuffle()
            | "ReadUndated"
            >> beam.ParDo(
                read, log_start_us=beam.pvalue.AsSingleton(log_start)
            ).with_outputs("start", main="rows")
        )
        _ = (
            {"dated": dated.rows, "undated": undated.rows}
            | "Shuffle" >> GroupByShard(_SHARD_KEYS, num_shards)
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
    num_shards: int | None,
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
    if num_shards is None:
        num_shards = num_shards_for(sum(t.num_rows for t in tables.values()))
    _check_arguments((), schema, num_shards, max_bad_share)
    counts, dead = Counts(), [DEAD_LETTER_SCHEMA.empty_table()]
    for table, rows in tables.items():
        numbers = np.arange(1, rows.num_rows + 1)
        raw = RawRows(rows.combine_chunks(), table, numbers)
        good, letters, found = validate(table, raw, schema)
        counts += found
        dead.append(letters)
        counts += _write_table(output, table, good, num_shards, schema)
    letters = pa.concat_tables(dead)
    _write_table(output, DEAD_LETTERS, letters, num_shards, schema)
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


class _Read(beam.DoFn):
    """(source, part) to (table, rows); first times to `start`."""

    def __init__(
        self,
        sources: Sequence[RawTable],
        schema: EventSchema,
        derive_users: bool,
    ) -> None:
        super().__init__()
        self._sources = sources
        self._schema = schema
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
            progress.expect("work", rows.num_rows)
            yield source.table, rows
            yield DEAD_LETTERS, letters
            if source.table in TIMED_TABLES and rows.num_rows:
                first = pc.min(rows.column("event_time_us")).as_py()
                yield beam.pvalue.TaggedOutput("start", first)
                if self._derive_users:
                    users = pc.unique(rows.column("user_id"))
                    yield "users", pa.table({"user_id": users})


class _Write(beam.DoFn):
    """All slices of a shard to its files, one per table."""

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

    def process(self, element: tuple[int, Iterable[Slice]]) -> None:
        shard, slices = element
        found = collections.defaultdict(list)
        for table, data in slices:
            found[table].append(data)
        for table in _tables(self._schema):
            path = shard_path(self._output, table, shard, self._num_shards)
            # One table in memory at a time.
            rows = [from_ipc(data) for data in found.pop(table, ())]
            progress.report("work", sum(t.num_rows for t in rows))
            counts = _write_shard(path, table, rows, self._schema)
            if self._derive_users and table == "users":
                # One row a user and batch is how they were found: no
                # duplicates.
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


def _write_table(
    output: str,
    table: str,
    rows: pa.Table,
    num_shards: int,
    schema: EventSchema,
) -> Counts:
    """Writes all files of a table in memory, also those without rows."""
    shards = shard_numbers(rows.column(_SHARD_KEYS[table]), num_shards)
    pieces = dict(cut_rows(rows, shards))
    counts = Counts()
    for shard in range(num_shards):
        path = shard_path(output, table, shard, num_shards)
        found = [pieces[shard]] if shard in pieces else []
        counts += _write_shard(path, table, found, schema)
    return counts


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
