"""The columnar shuffle: all events of a user in one place, as Arrow tables.

A batch of events is split by a stable hash of `user_id` and the pieces travel
as Arrow IPC bytes, so the grouping moves a few thousand elements, not one per
event. Each shard is then sorted as a whole into a total order; every later
step works on whole shards with vectorised code. The order of files, row
groups, bundles and rows leaves no trace in a shard.
"""

import dataclasses
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs import progress
from beam_jobs.events import ReadEvents
from beam_jobs.runners import count
from schemas.errors import InputError
from schemas.events import EventSchema
from schemas.hashing import hash_strings, mix

# Values of the column `part`; `all` marks rows that no split divided.
PART_CODES = {"train": 0, "valid": 1, "test": 2, "all": 0}
PART = "part"
# Beam's runners get slow and some refuse elements of tens of megabytes.
MAX_ELEMENT_BYTES = 8 << 20
# One shard's columns in memory. Arrow's 32-bit string offsets end at 2 GiB.
MAX_SHARD_BYTES = 2 << 30


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
        ones; the others are counted as `<table>_over_user_cap`, and the users
        that had them as `<table>_capped_users`. By part, so that held-out
        events never displace training events.
      columns: table -> columns to carry, default all of the schema's.

    Returns:
      PCollection of `UserShard`, each number exactly once, empty ones too.

    Raises:
      InputError: an unreadable file, or a shard too large for memory.
    """

    def __init__(
        self,
        sources: Mapping[str, Mapping[str, Sequence[str]]],
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
        pieces = [
            pipeline
            | f"Read/{table}/{part}" >> ReadEvents(files, self._schemas[table])
            | f"Split/{table}/{part}"
            >> beam.FlatMap(
                split_batch,
                table=table,
                part=part,
                num_shards=self._num_shards,
                cap=self._cap,
            )
            for table, parts in sorted(self._sources.items())
            for part, files in sorted(parts.items())
        ]
        # An empty piece per shard: no shard is missing for want of users.
        numbers = range(self._num_shards)
        pieces.append(
            pipeline
            | "ShardNumbers"
            >> beam.Create([(n, ("", b"")) for n in numbers], reshuffle=False)
        )
        return (
            pieces
            | "AllPieces" >> beam.Flatten()
            | "ByShard" >> beam.GroupByKey()
            | "Sort"
            >> beam.FlatMap(
                _build_and_report, schemas=self._schemas, cap=self._cap
            )
        )


def shard_numbers(
    user_ids: pa.Array | pa.ChunkedArray, num_shards: int
) -> np.ndarray:
    """The shard of each user id, int64 [n]: stable hash mod `num_shards`."""
    hashes = mix(0, hash_strings(user_ids))
    return (hashes % np.uint64(num_shards)).astype(np.int64)


def split_batch(
    rows: pa.Table, *, table: str, part: str, num_shards: int, cap: int
) -> Iterator[tuple[int, tuple[str, bytes]]]:
    """Cuts a batch into (shard, (table, IPC bytes)) of a bounded size.

    The cap on heavy users is applied here first, and to the whole shard
    later: rows beyond it in a batch are beyond it in the shard.
    """
    code = pa.array(np.full(rows.num_rows, PART_CODES[part], np.int8))
    rows = rows.append_column(PART, code).combine_chunks()
    encoded = rows.column("user_id").combine_chunks().dictionary_encode()
    users = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    if users.size and np.bincount(users).max() > cap:
        order = total_order(rows, users)
        rows, users = rows.take(order), users[order]
        # One more, by which the whole shard still sees that there were more.
        rows, users = _cap_users(table, rows, users, cap + 1)
    progress.expect("work", rows.num_rows)
    shards = shard_numbers(rows.column("user_id"), num_shards)
    order = np.argsort(shards, kind="stable")
    rows = rows.take(order)
    ends = np.searchsorted(shards[order], np.arange(num_shards + 1))
    for shard in range(num_shards):
        piece = rows.slice(ends[shard], ends[shard + 1] - ends[shard])
        for data in to_ipc(piece):
            yield shard, (table, data)


def _build_and_report(
    grouped: tuple[int, Iterable[tuple[str, bytes]]],
    *,
    schemas: Mapping[str, pa.Schema],
    cap: int,
) -> Iterator[UserShard]:
    shard = build_shard(grouped, schemas=schemas, cap=cap)
    yield shard
    # Only now the steps that follow are done with it: they are fused.
    progress.report("work", sum(t.num_rows for t in shard.tables.values()))


def build_shard(
    grouped: tuple[int, Iterable[tuple[str, bytes]]],
    *,
    schemas: Mapping[str, pa.Schema],
    cap: int,
) -> UserShard:
    """Joins and sorts the (table, IPC bytes) pieces of one shard."""
    shard, pieces = grouped
    found: dict[str, list[pa.Table]] = {
        table: [schema.append(pa.field(PART, pa.int8())).empty_table()]
        for table, schema in schemas.items()
    }
    total = 0
    for table, data in pieces:
        total += len(data)
        if total > MAX_SHARD_BYTES:
            raise InputError(
                f"User shard {shard} exceeds {MAX_SHARD_BYTES >> 20} MiB; "
                "raise beam.num_shards or lower beam.max_events_per_user."
            )
        if table:
            found[table].append(pa.ipc.open_stream(data).read_all())
    tables = {
        table: pa.concat_tables(found.pop(table)).combine_chunks()
        for table in list(found)
    }
    user_ids = _distinct_users(tables.values())
    codes = {}
    for table, rows in tables.items():
        users = _positions(rows.column("user_id"), user_ids)
        order = total_order(rows, users)
        count(f"{table}_capped_users", _users_beyond(rows, users, cap))
        tables[table], codes[table] = _cap_users(
            table, rows.take(order), users[order], cap
        )
        tables[table] = tables[table].combine_chunks()
        progress.expect("work", tables[table].num_rows - len(order))
    return UserShard(shard, user_ids, tables, codes)


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


def _users_beyond(rows: pa.Table, users: np.ndarray, cap: int) -> int:
    """How many users have more than `cap` rows in some part."""
    parts = rows.column(PART).to_numpy().astype(np.int64)
    owners = np.bincount(users * len(PART_CODES) + parts)
    return np.unique(np.flatnonzero(owners > cap) // len(PART_CODES)).size


def _distinct_users(tables: Iterable[pa.Table]) -> pa.StringArray:
    distinct = [pc.unique(rows.column("user_id")) for rows in tables]
    users = pc.unique(pa.chunked_array(distinct, pa.string()))
    return users.take(pc.array_sort_indices(users))


def _positions(values: pa.ChunkedArray, sorted_ids: pa.Array) -> np.ndarray:
    found = pc.index_in(values.combine_chunks(), value_set=sorted_ids)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def to_ipc(rows: pa.Table) -> Iterator[bytes]:
    """Arrow IPC streams of at most about `MAX_ELEMENT_BYTES` each."""
    if rows.num_rows == 0:
        return
    # `get_total_buffer_size` would count what a slice shares with its parent.
    step = max(1, rows.num_rows * MAX_ELEMENT_BYTES // max(1, rows.nbytes))
    for start in range(0, rows.num_rows, step):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows.slice(start, step).combine_chunks())
        yield sink.getvalue()


def _selected(schema: pa.Schema, names: Sequence[str] | None) -> pa.Schema:
    if names is None:
        return schema
    return pa.schema([schema.field(n) for n in schema.names if n in names])
