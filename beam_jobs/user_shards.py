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

from beam_jobs.column_shuffle import (
    GroupByShard,
    Slice,
    cut_rows,
    from_ipc,
    num_shards_for,
    shard_numbers,
    to_ipc,
)
from beam_jobs.events import ReadEvents, count_rows, read_tables
from beam_jobs.runners import count
from schemas.buckets import bucket_of
from schemas.errors import InputError
from schemas.events import EventSchema

# Values of the column `part`; `all` marks rows that no split divided.
PART_CODES = {"train": 0, "valid": 1, "test": 2, "all": 0}
PART = "part"
# One shard's columns in memory. Arrow's 32-bit string offsets end at 2 GiB.
MAX_SHARD_BYTES = 2 << 30
# Rows of one table that may wait in a shard before heavy users are capped: a
# bot's events come from thousands of batches, each capped for itself.
_UNCAPPED_ROWS = 1 << 21

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

    Returns:
      PCollection of `UserShard`, each number exactly once, empty ones too.

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
        self._schemas = {
            table: _selected(schema.arrow(table), (columns or {}).get(table))
            for table in self._sources
        }

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection:
        if is_bucketed(self._sources, self._num_shards):
            return self._read_shards(pipeline)
        return self._shuffle(pipeline)

    def _read_shards(self, pipeline: beam.Pipeline) -> beam.PCollection:
        numbers = range(self._num_shards)
        return (
            pipeline
            | "ShardNumbers" >> beam.Create(numbers, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "ReadShard"
            >> beam.Map(
                read_shard,
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
        keys = dict.fromkeys(self._sources, "user_id")
        return (
            batches
            | "Shuffle" >> GroupByShard(keys, self._num_shards)
            | "Sort"
            >> beam.Map(build_shard, schemas=self._schemas, cap=self._cap)
        )


def num_shards_of(sources: Sources, wanted: int | None) -> int:
    """The number of shards of a job: as wanted, or as its files suggest.

    Files that are bucketed by user stay as they are; else it follows from the
    number of rows (`num_shards_for`).
    """
    if wanted is not None:
        return wanted
    files = [f for parts in sources.values() for p in parts.values() for f in p]
    numbers = {bucket_of(path)[1] for path in files}
    if len(numbers) == 1 and (found := numbers.pop()):
        return found
    return num_shards_for(count_rows(files))


def is_bucketed(sources: Sources, num_shards: int) -> bool:
    """Whether each part's files are one per shard of users, by their names.

    `read_shard` checks that what is in them is so.
    """
    expected = [(shard, num_shards) for shard in range(num_shards)]
    return all(
        sorted(map(bucket_of, files)) == expected
        for parts in sources.values()
        for files in parts.values()
    )


def read_shard(
    shard: int,
    *,
    sources: Sources,
    schemas: Mapping[str, pa.Schema],
    num_shards: int,
    cap: int,
) -> UserShard:
    """Reads one shard from files that are bucketed by user.

    Raises:
      InputError: a file has a user of another shard.
    """
    rows: dict[str, _ShardRows] = {}
    for table, parts in sources.items():
        rows[table] = _ShardRows(table, schemas[table], cap)
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
            rows[table].add(_with_part(found, part))
    return _sorted_shard(shard, rows)


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
    rows = _with_part(rows, part)
    encoded = rows.column("user_id").combine_chunks().dictionary_encode()
    users = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if users.size and np.bincount(users).max() > cap:
        order = total_order(rows, users)
        rows, _ = _cap_users(table, rows.take(order), users[order], cap)
    return table, rows


def build_shard(
    grouped: tuple[int, Iterable[Slice]],
    *,
    schemas: Mapping[str, pa.Schema],
    cap: int,
) -> UserShard:
    """Joins and sorts the slices of one shard."""
    shard, slices = grouped
    rows = {t: _ShardRows(t, schema, cap) for t, schema in schemas.items()}
    for table, data in slices:
        if table:
            rows[table].add(from_ipc(data))
    return _sorted_shard(shard, rows)


class _ShardRows:
    """Rows of one table of a shard: no more than the cap on users keeps."""

    def __init__(self, table: str, schema: pa.Schema, cap: int) -> None:
        self._table, self._cap = table, cap
        schema = schema.append(pa.field(PART, pa.int8()))
        self._pieces = [schema.empty_table()]
        self._num_rows, self._limit = 0, _UNCAPPED_ROWS
        self.num_bytes = 0

    def add(self, rows: pa.Table) -> None:
        self._pieces.append(rows)
        self._num_rows += rows.num_rows
        self.num_bytes += rows.nbytes
        if self._num_rows > self._limit:
            kept, _ = self.sorted(_distinct_users([self.users()]))
            self._pieces, self._num_rows = [kept], kept.num_rows
            self.num_bytes = kept.nbytes
            # Twice what was kept: each row is sorted twice on average.
            self._limit = max(_UNCAPPED_ROWS, 2 * kept.num_rows)

    def users(self) -> pa.ChunkedArray:
        """The users of the rows so far, repeated."""
        chunks = [c for p in self._pieces for c in p.column("user_id").chunks]
        return pa.chunked_array(chunks, pa.string())

    def sorted(self, user_ids: pa.StringArray) -> tuple[pa.Table, np.ndarray]:
        """The capped rows in total order, and each one's user."""
        rows = self._joined()
        users = _positions(rows.column("user_id"), user_ids)
        order = total_order(rows, users)
        # Files that the split wrote are in order already.
        if np.any(order[1:] < order[:-1]):
            rows, users = rows.take(pa.array(order)), users[order]
        rows, users = _cap_users(self._table, rows, users, self._cap)
        return rows.combine_chunks(), users

    def _joined(self) -> pa.Table:
        return pa.concat_tables(self._pieces).combine_chunks()


def _sorted_shard(shard: int, tables: Mapping[str, _ShardRows]) -> UserShard:
    if sum(rows.num_bytes for rows in tables.values()) > MAX_SHARD_BYTES:
        raise InputError(
            f"User shard {shard} exceeds {MAX_SHARD_BYTES >> 20} MiB; "
            "raise beam.num_shards or lower beam.max_events_per_user."
        )
    user_ids = _distinct_users(rows.users() for rows in tables.values())
    found, codes = {}, {}
    for table, rows in tables.items():
        found[table], codes[table] = rows.sorted(user_ids)
    return UserShard(shard, user_ids, found, codes)


def _with_part(rows: pa.Table, part: str) -> pa.Table:
    code = pa.array(np.full(rows.num_rows, PART_CODES[part], np.int8))
    return rows.append_column(PART, code).combine_chunks()


def total_order(rows: pa.Table, users: np.ndarray) -> np.ndarray:
    """Indices that sort rows by (user, time, every other column in order).

    Rows that are still equal are the same in every column, so it does not
    matter which comes first.
    """
    timed = "event_time_us" in rows.column_names
    times = (
        rows.column("event_time_us").to_numpy()
        if timed
        else np.zeros(rows.num_rows, np.int64)
    )
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    # Only rows equal in user and time need the slower comparison by columns.
    equal = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    tied = np.zeros(rows.num_rows, bool)
    tied[1:] |= equal
    tied[:-1] |= equal
    places = np.flatnonzero(tied)
    if places.size:
        group = np.cumsum(np.concatenate(([True], ~equal)))[places]
        order[places] = order[places][
            _tie_order(rows.take(order[places]), group)
        ]
    return order


def _tie_order(rows: pa.Table, group: np.ndarray) -> np.ndarray:
    keys = {"": pa.array(group)}
    for name in rows.column_names:
        if name in ("user_id", "event_time_us"):
            continue
        values = rows.column(name)
        if pa.types.is_list(values.type):
            # Unit separator: no text of a log has it inside a term.
            values = pc.binary_join(values, "\x1f")
        elif pa.types.is_boolean(values.type):
            values = values.cast(pa.int8())
        keys[name] = values
    by = [(name, "ascending") for name in keys]
    return pc.sort_indices(pa.table(keys), sort_keys=by).to_numpy()


def _cap_users(
    table: str, rows: pa.Table, users: np.ndarray, cap: int
) -> tuple[pa.Table, np.ndarray]:
    """Keeps the last `cap` rows of each (user, part); rows are in order."""
    if users.size == 0 or np.bincount(users).max() <= cap:
        # Zero is counted too: the same counters, however the rows came.
        count(f"{table}_over_user_cap", 0)
        return rows, users
    parts = rows.column(PART).to_numpy().astype(np.int64)
    owner = users * len(PART_CODES) + parts
    by_owner = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[by_owner], owner[by_owner], side="right")
    keep = np.zeros(users.size, bool)
    keep[by_owner] = ends - np.arange(users.size) <= cap
    count(f"{table}_over_user_cap", users.size - keep.sum())
    return rows.filter(pa.array(keep)), users[keep]


def _distinct_users(columns: Iterable[pa.ChunkedArray]) -> pa.StringArray:
    users = pa.chunked_array([pc.unique(c) for c in columns], pa.string())
    users = pc.unique(users)
    return users.take(pc.array_sort_indices(users))


def _positions(values: pa.ChunkedArray, sorted_ids: pa.Array) -> np.ndarray:
    found = pc.index_in(values.combine_chunks(), value_set=sorted_ids)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def _selected(schema: pa.Schema, names: Sequence[str] | None) -> pa.Schema:
    if names is None:
        return schema
    return pa.schema([schema.field(n) for n in schema.names if n in names])
