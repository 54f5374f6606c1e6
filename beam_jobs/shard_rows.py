"""The rows of one event table in a shard: sorted, heavy users capped.

The order is total: whatever order rows come in, the same rows give the same
table. A user's rows beyond the cap are dropped as they come, so that one bot
does not fill a worker's memory.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs import progress
from beam_jobs.runners import count

# Values of the column `part`; `all` marks rows that no split divided.
PART_CODES = {"train": 0, "valid": 1, "test": 2, "all": 0}
PART = "part"
# Rows of one table that may wait in a shard before heavy users are capped: a
# bot's events come from thousands of batches, each capped for itself.
_UNCAPPED_ROWS = 1 << 21


class ShardRows:
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
            rows, users = self._in_order(distinct_users([self.users()]))
            # One more, by which `sorted` still sees that there were more.
            kept, _ = cap_users(self._table, rows, users, self._cap + 1)
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
        rows, users = self._in_order(user_ids)
        beyond = _users_beyond(rows, users, self._cap)
        count(f"{self._table}_capped_users", beyond)
        rows, users = cap_users(self._table, rows, users, self._cap)
        return rows.combine_chunks(), users

    def _in_order(
        self, user_ids: pa.StringArray
    ) -> tuple[pa.Table, np.ndarray]:
        rows = pa.concat_tables(self._pieces).combine_chunks()
        users = _positions(rows.column("user_id"), user_ids)
        order = total_order(rows, users)
        # Files that the split wrote are in order already.
        if np.any(order[1:] < order[:-1]):
            rows, users = rows.take(pa.array(order)), users[order]
        return rows, users


def with_part(rows: pa.Table, part: str) -> pa.Table:
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


def cap_users(
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
    beyond = int(users.size - keep.sum())
    count(f"{table}_over_user_cap", beyond)
    # Nothing is left to do with them.
    progress.report("work", beyond)
    return rows.filter(pa.array(keep)), users[keep]


def _users_beyond(rows: pa.Table, users: np.ndarray, cap: int) -> int:
    """How many users have more than `cap` rows in some part."""
    parts = rows.column(PART).to_numpy().astype(np.int64)
    owners = np.bincount(users * len(PART_CODES) + parts)
    return np.unique(np.flatnonzero(owners > cap) // len(PART_CODES)).size


def distinct_users(columns: Iterable[pa.ChunkedArray]) -> pa.StringArray:
    users = pa.chunked_array([pc.unique(c) for c in columns], pa.string())
    users = pc.unique(users)
    return users.take(pc.array_sort_indices(users))


def _positions(values: pa.ChunkedArray, sorted_ids: pa.Array) -> np.ndarray:
    found = pc.index_in(values.combine_chunks(), value_set=sorted_ids)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)
