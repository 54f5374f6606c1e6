"""All events of a user in one place, as Arrow tables.

Every later step works on whole shards with vectorised code. Event files that
are bucketed by user already (as `ingest`, `simulate` and the split write
them) are read shard by shard; others go through the columnar shuffle. Each
shard is sorted as a whole into a total order: the order of files, row groups,
bundles and rows leaves no trace in it.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs import progress
from beam_jobs.column_shuffle import (
    GroupByShard,
    Slice,
    cut_rows,
    from_ipc,
    num_shards_for,
    shard_numbers,
    shards_per_task,
    to_ipc,
)
from beam_jobs.events import ReadEvents, count_rows, read_tables
from beam_jobs.shard_rows import (
    PART_CODES,
    ShardRows,
    cap_users,
    distinct_users,
    total_order,
    with_part,
)
from schemas.buckets import bucket_of
from schemas.errors import InputError
from schemas.events import EventSchema

# One shard's columns in memory. Arrow's 32-bit string offsets end at 2 GiB.
MAX_SHARD_BYTES = 2 << 30

# Table -> part (a key of `PART_CODES`) -> files.
Sources = Mapping[str, Mapping[str, Sequence[str]]]


@dataclasses.dataclass(frozen=True)
class UserShard:
    """The events of some users, whole histories, in a total order.

    Attributes:
      shard: number of the shard, 0 .. num_shards - 1.
      user_ids: string [U], distinct and ascending (by UTF-8 bytes).
      tables: one table per source, one chunk a column, rows ascending by
        (user_id, event_time_us, all other columns in order), so equal times
        follow `video_id` (watches, impressions) or `query` (searches). The
        added column `part` is int8 (see `PART_CODES`).
      user_codes: int64 [n] per table: row's position in `user_ids`, ascending.
    """

    shard: int
    user_ids: pa.StringArray
    tables: dict[str, pa.Table]
    user_codes: dict[str, np.ndarray]

    def arrow(self, table: str, column: str) -> pa.Array:
        """A column as one Arrow array."""
        chunks = self.tables[table].column(column)
        return (
            chunks.combine_chunks()
            if chunks.num_chunks != 1
            else (chunks.chunk(0))
        )

    def numpy(self, table: str, column: str) -> np.ndarray:
        """A column as NumPy; nulls of a float column become NaN."""
        return self.arrow(table, column).to_numpy(zero_copy_only=False)

    def times_us(self, table: str) -> np.ndarray:
        """`event_time_us` of a table, int64 [n]."""
        return self.numpy(table, "event_time_us")

    def has(self, table: str, column: str | None = None) -> bool:
        """Whether the shard carries a table (or a column of it)."""
        rows = self.tables.get(table)
        return rows is not None and (
            column is None or column in rows.column_names
        )


class GroupByUserShard(beam.PTransform):
    """Groups event tables into one `UserShard` per shard number.

    Args:
      sources: table -> part (a key of `PART_CODES`) -> files.
      schema: the log's columns; each shard has every table of `sources`.
      num_shards: number of shards; the result does not depend on anything
        else of how the job runs.
      max_events_per_user: rows kept per user, table and part, the most recent
        ones; the others are counted as `<table>_over_user_cap`. By part, so
        that held-out events never displace training events.
      columns: table -> columns to carry, default all of the schema's.
      only: the shards that are wanted, default all.

    Returns:
      PCollection of `UserShard`, each wanted number exactly once, empty ones
      too.

    Raises:
      InputError: an unreadable file, or a shard too large for memory.
    """

    def __init__(
        self,
        sources: Sources,
        schema: EventSchema,
        num_shards: int,
        max_events_per_user: int,
        columns: Mapping[str, Sequence[str]] | None = None,
        only: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if num_shards < 1 or max_events_per_user < 1:
            raise ValueError(
                "`num_shards` and `max_events_per_user` must be at least 1, "
                f"got {num_shards} and {max_events_per_user}."
            )
        for table, parts in sources.items():
            unknown = sorted(set(parts) - set(PART_CODES))
            if unknown:
                raise ValueError(
                    f"Unknown part(s) {unknown} of table {table!r}; expected "
                    f"{', '.join(PART_CODES)}."
                )
        self._sources = {t: dict(parts) for t, parts in sources.items()}
        self._num_shards = num_shards
        self._cap = max_events_per_user
        self._only = None if only is None else frozenset(only)
        self._schemas = {
            table: _selected(schema.arrow(table), (columns or {}).get(table))
            for table in self._sources
        }

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        if is_bucketed(self._sources, self._num_shards):
            return self._read_shards(pipeline)
        return self._shuffle(pipeline)

    def _read_shards(self, pipeline: beam.Pipeline) -> beam.PCollection:
        numbers = [n for n in range(self._num_shards) if self._is_wanted(n)]
        if progress.is_watched():
            files = _files(self._sources)
            wanted = [f for f in files if bucket_of(f)[0] in numbers]
            num_rows = count_rows(wanted)
            progress.expect("read", num_rows)
            progress.expect("work", num_rows)
        return (
            pipeline
            | "ShardNumbers" >> beam.Create(numbers, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "ReadShard"
            >> beam.FlatMap(
                read_shards,
                sources=self._sources,
                schemas=self._schemas,
                num_shards=self._num_shards,
                cap=self._cap,
            )
        )

    def _shuffle(self, pipeline: beam.Pipeline) -> beam.PCollection:
        batches = {
            f"{table}/{part}": pipeline
            | f"Read/{table}/{part}" >> ReadEvents(files, self._schemas[table])
            | f"Cap/{table}/{part}"
            >> beam.Map(cap_batch, table=table, part=part, cap=self._cap)
            for table, parts in sorted(self._sources.items())
            for part, files in sorted(parts.items())
        }
        num_rows = count_rows(_files(self._sources))
        progress.expect("work", num_rows)
        width = shards_per_task(self._num_shards, num_rows)
        keys = dict.fromkeys(self._sources, "user_id")
        shards = (
            batches
            | "Shuffle" >> GroupByShard(keys, self._num_shards, width)
            | "Sort"
            >> beam.FlatMap(
                build_shards,
                num_shards=self._num_shards,
                width=width,
                schemas=self._schemas,
                cap=self._cap,
            )
        )
        if self._only is None:
            return shards
        return shards | "Only" >> beam.Filter(
            lambda shard: self._is_wanted(shard.shard)
        )

    def _is_wanted(self, number: int) -> bool:
        return self._only is None or number in self._only


def num_shards_of(sources: Sources, wanted: int | None) -> int:
    """The number of shards of a job: as wanted, or as its files suggest.

    Files that are bucketed by user stay as they are; else it follows from the
    number of rows (`num_shards_for`).
    """
    if wanted is not None:
        return wanted
    files = _files(sources)
    numbers = {bucket_of(path)[1] for path in files}
    if len(numbers) == 1 and (found := numbers.pop()):
        return found
    return num_shards_for(count_rows(files))


def _files(sources: Sources) -> list[str]:
    return [f for parts in sources.values() for p in parts.values() for f in p]


def is_bucketed(sources: Sources, num_shards: int) -> bool:
    """Whether each part's files are one per shard of users, by their names.

    `read_shards` checks that what is in them is so.
    """
    expected = [(shard, num_shards) for shard in range(num_shards)]
    return all(
        sorted(map(bucket_of, files)) == expected
        for parts in sources.values()
        for files in parts.values()
    )


def read_shards(
    shard: int,
    *,
    sources: Sources,
    schemas: Mapping[str, pa.Schema],
    num_shards: int,
    cap: int,
) -> Iterator[UserShard]:
    """Reads one shard from files that are bucketed by user.

    Raises:
      InputError: a file has a user of another shard.
    """
    rows: dict[str, ShardRows] = {}
    for table, parts in sources.items():
        rows[table] = ShardRows(table, schemas[table], cap)
        for part, files in parts.items():
            # The files are one per shard, so sorted by number.
            path = sorted(files)[shard]
            found = read_tables([path], schemas[table])
            users = pc.unique(found.column("user_id"))
            if np.any(shard_numbers(users, num_shards) != shard):
                raise InputError(
                    f"{path} has users of other shards, although its name "
                    f"says that it is bucketed by user into {num_shards}. "
                    "Run the stage that wrote it again, or rename it."
                )
            progress.report("read", found.num_rows)
            rows[table].add(with_part(found, part))
    yield from _worked_on(_sorted_shard(shard, rows))


def split_batch(
    rows: pa.Table, *, table: str, part: str, num_shards: int, cap: int
) -> Iterator[tuple[int, tuple[str, bytes]]]:
    """Cuts rows into the (shard, (table, IPC bytes)) of a shuffle at once."""
    table, rows = cap_batch(rows, table=table, part=part, cap=cap)
    shards = shard_numbers(rows.column("user_id"), num_shards)
    for shard, piece in cut_rows(rows, shards):
        for data in to_ipc(piece):
            yield shard, (table, data)


def cap_batch(
    rows: pa.Table, *, table: str, part: str, cap: int
) -> tuple[str, pa.Table]:
    """A batch as (table, rows with their part), without heavy users' excess.

    The whole shard is capped later: rows beyond the cap in a batch are beyond
    it in the shard.
    """
    rows = with_part(rows, part)
    encoded = rows.column("user_id").combine_chunks().dictionary_encode()
    users = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if users.size and np.bincount(users).max() > cap:
        order = total_order(rows, users)
        # One more, by which the whole shard still sees that there were more.
        rows, _ = cap_users(table, rows.take(order), users[order], cap + 1)
    return table, rows


def build_shard(
    grouped: tuple[int, Iterable[Slice]],
    *,
    schemas: Mapping[str, pa.Schema],
    cap: int,
) -> UserShard:
    """Joins and sorts the slices of one shard."""
    shard, slices = grouped
    return _sorted_shard(shard, _joined_slices(slices, schemas, cap))


def build_shards(
    grouped: tuple[int, Iterable[Slice]],
    *,
    num_shards: int,
    width: int,
    schemas: Mapping[str, pa.Schema],
    cap: int,
) -> Iterator[UserShard]:
    """Joins and sorts the slices of a group of shards; yields each of them.

    Thin shards cost little together: they are sorted as one, by (shard, user,
    ...), and are then views of its rows.
    """
    group, slices = grouped
    first = group * width
    rows = _joined_slices(slices, schemas, cap)
    if width == 1:
        yield from _worked_on(_sorted_shard(first, rows))
        return
    together = _sorted_shard(first, rows, num_shards)
    of_users = shard_numbers(together.user_ids, num_shards)
    numbers = np.arange(first, min(first + width, num_shards) + 1)
    users = np.searchsorted(of_users, numbers)
    bounds = {
        table: np.searchsorted(codes, users)
        for table, codes in together.user_codes.items()
    }
    for i, shard in enumerate(numbers[:-1]):
        tables, codes = {}, {}
        for table, found in together.tables.items():
            start, end = bounds[table][i : i + 2]
            tables[table] = found.slice(start, end - start)
            codes[table] = together.user_codes[table][start:end] - users[i]
        ids = together.user_ids.slice(users[i], users[i + 1] - users[i])
        yield from _worked_on(UserShard(int(shard), ids, tables, codes))


def _worked_on(shard: UserShard) -> Iterator[UserShard]:
    yield shard
    # Only now the steps that follow are done with it: they are fused.
    progress.report("work", sum(t.num_rows for t in shard.tables.values()))


def _joined_slices(
    slices: Iterable[Slice], schemas: Mapping[str, pa.Schema], cap: int
) -> dict[str, "ShardRows"]:
    rows = {t: ShardRows(t, schema, cap) for t, schema in schemas.items()}
    for table, data in slices:
        if table:
            rows[table].add(from_ipc(data))
    return rows


def _sorted_shard(
    shard: int, tables: Mapping[str, ShardRows], num_shards: int = 1
) -> UserShard:
    """Sorts tables by (shard of `num_shards`, user, time, ...)."""
    if sum(rows.num_bytes for rows in tables.values()) > MAX_SHARD_BYTES:
        raise InputError(
            f"User shard {shard} exceeds {MAX_SHARD_BYTES >> 20} MiB; "
            "raise beam.num_shards or lower beam.max_events_per_user."
        )
    user_ids = distinct_users(rows.users() for rows in tables.values())
    if num_shards > 1:
        order = np.argsort(shard_numbers(user_ids, num_shards), kind="stable")
        user_ids = user_ids.take(pa.array(order))
    found, codes = {}, {}
    for table, rows in tables.items():
        found[table], codes[table] = rows.sorted(user_ids)
    return UserShard(shard, user_ids, found, codes)


def _selected(schema: pa.Schema, names: Sequence[str] | None) -> pa.Schema:
    if names is None:
        return schema
    return pa.schema([schema.field(n) for n in schema.names if n in names])
