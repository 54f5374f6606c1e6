"""What a user had done before a moment: the raw request, rebuilt from a log.

For an anchor (user, time t) only events strictly before t exist. A watch is
in the history from its start; its watch time, and whether it was completed,
are known once it has been spent (start + watch time <= t). What comes out are
the very tensors that serving receives (`schemas/requests.py`), for many anchors
at once: positions by one binary search over (user, time) keys, values by
gathers.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.user_shards import UserShard
from schemas.requests import RawInput

# Inputs that `RawRequests` fills beside `user_*`; the rest of a request
# (candidates, surface, the video being watched) is no history.
_HISTORIES = {
    "watch": ("watches", "watch_history_"),
    "impression": ("impressions", "impression_history_"),
    "search": ("searches", "search_"),
}
# What is NaN while a watch goes on.
_KNOWN_AT_END = ("watch_history_watch_time_s", "watch_history_completed")


class TimeIndex:
    """Finds the events of a user before a time, many at once.

    Args:
      sorted_user_codes: int64 [n], ascending.
      sorted_times: int64 [n], ascending within a user.
    """

    def __init__(
        self, sorted_user_codes: np.ndarray, sorted_times: np.ndarray
    ) -> None:
        self._codes = np.asarray(sorted_user_codes, np.int64)
        # Times become ranks, so that (user, rank) fits one integer: a
        # microsecond alone takes 52 of the 63 bits.
        self._times, ranks = np.unique(sorted_times, return_inverse=True)
        self._base = np.int64(self._times.size + 1)
        self._keys = self._codes * self._base + ranks

    def before(
        self, users: np.ndarray, times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of each anchor's user strictly before its time.

        Returns:
          start, end: int64 [A]; rows start .. end - 1, oldest first.
        """
        users = np.asarray(users, np.int64)
        start = np.searchsorted(self._keys, users * self._base)
        # The rank of the first time >= t: keys below it are strictly before.
        rank = np.searchsorted(self._times, times, side="left")
        end = np.searchsorted(self._keys, users * self._base + rank)
        return start.astype(np.int64), end.astype(np.int64)

    def recent(
        self, users: np.ndarray, times: np.ndarray, length: int
    ) -> np.ndarray:
        """The last `length` rows before each anchor, see `recent_indices`."""
        start, end = self.before(users, times)
        index = end[:, None] - 1 - np.arange(length)
        index[index < start[:, None]] = -1
        return index


def recent_indices(
    sorted_user_codes: np.ndarray,
    sorted_times: np.ndarray,
    anchor_users: np.ndarray,
    anchor_times: np.ndarray,
    length: int,
) -> np.ndarray:
    """Rows of the most recent events strictly before each anchor.

    Args:
      sorted_user_codes, sorted_times: int64 [n], ascending by (user, time).
      anchor_users, anchor_times: int64 [A], in any order.
      length: how many rows at most.

    Returns:
      int64 [A, length], most recent first, -1 where there is none.
    """
    index = TimeIndex(sorted_user_codes, sorted_times)
    return index.recent(anchor_users, anchor_times, length)


class RawRequests:
    """Builds raw requests of one shard; indexes it once, then answers.

    Args:
      shard: the users' events.
      inputs: which tensors to fill; those that are no history and no user
        column (candidates, surface, ...) are skipped.
    """

    def __init__(self, shard: UserShard, inputs: Sequence[RawInput]) -> None:
        self._shard = shard
        self._inputs = [i for i in inputs if _is_filled(i)]
        self._indexes = {
            axis: TimeIndex(shard.user_codes[table], shard.times_us(table))
            for axis, (table, _) in _HISTORIES.items()
            if any(i.axis == axis for i in self._inputs)
        }
        self._columns = {i.name: self._column(i) for i in self._inputs}
        if any(i.name.startswith("user_") for i in self._inputs):
            self._user_rows = _rows_of_users(shard)
        if "watch" in self._indexes:
            self._watch_end_us = watch_end_us(shard)

    def __call__(
        self, user_codes: np.ndarray, times_us: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The request of each anchor.

        Args:
          user_codes: int64 [A], positions in `shard.user_ids`.
          times_us: int64 [A], request times.

        Returns:
          name -> [A, ...] of the input's dtype and shape; strings are object
          arrays of bytes.
        """
        times_us = np.asarray(times_us, np.int64)
        recent = {
            axis: index.recent(
                user_codes,
                times_us,
                next(i.length or 0 for i in self._inputs if i.axis == axis),
            )
            for axis, index in self._indexes.items()
        }
        request: dict[str, np.ndarray] = {}
        for raw in self._inputs:
            if raw.name == "request_time_us":
                request[raw.name] = times_us
            elif raw.axis == "request":
                rows = self._user_rows[user_codes]
                request[raw.name] = self._columns[raw.name][rows]
            else:
                rows = recent[raw.axis]
                values = self._columns[raw.name][rows]
                if raw.name in _KNOWN_AT_END:
                    going_on = self._watch_end_us[rows] > times_us[:, None]
                    values[going_on] = np.nan
                request[raw.name] = values
        return request

    def _column(self, raw: RawInput) -> np.ndarray:
        """A source column, its last row the absent value (index -1)."""
        if raw.name == "request_time_us":
            return np.zeros(1, np.int64)
        return with_absent(self._shard.arrow(*_source(raw)), raw)


def raw_request(
    shard: UserShard,
    user_codes: np.ndarray,
    times_us: np.ndarray,
    inputs: Sequence[RawInput],
) -> dict[str, np.ndarray]:
    """One call of `RawRequests`; for many chunks keep the object instead."""
    return RawRequests(shard, inputs)(user_codes, times_us)


def with_absent(values: pa.Array, raw: RawInput) -> np.ndarray:
    """An Arrow column as a raw input's values, plus one absent row at the end.

    Gathering row -1 then gives the absent value.

    Args:
      values: [n]; string, bool ("true" / "false"), number, or list of string.
      raw: the input that the column fills.

    Returns:
      [n + 1] or, for a list, [n + 1, raw.inner] (further entries are cut) of
      the input's NumPy dtype. Nulls are absent.
    """
    if raw.inner:
        return _padded_lists(values, raw.inner)
    if raw.dtype == "string":
        if pa.types.is_boolean(values.type):
            names = pa.array(["false", "true"])
            values = names.take(values.cast(pa.int8()))
        return np.append(string_objects(values), b"")
    out: np.ndarray = np.full(len(values) + 1, raw.absent, raw.numpy_dtype)
    if raw.dtype == "int64":
        out[:-1] = values.fill_null(0).to_numpy(zero_copy_only=False)
    else:
        out[:-1] = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return out


def string_objects(values: pa.Array) -> np.ndarray:
    """Strings as an object array of UTF-8 bytes [n], null as b"".

    Each distinct string is made once: rows share the object.
    """
    encoded = values.cast(pa.binary()).fill_null(b"").dictionary_encode()
    distinct = np.empty(len(encoded.dictionary), object)
    distinct[:] = encoded.dictionary.to_pylist()
    return distinct[encoded.indices.to_numpy(zero_copy_only=False)]


def watch_end_us(shard: UserShard) -> np.ndarray:
    """When each watch has been spent, int64 [n + 1] (last row: 0).

    Start plus watch time, to the nearest microsecond; a watch of unknown
    length counts as ended at once.
    """
    start = shard.times_us("watches")
    spent_s = np.nan_to_num(shard.numpy("watches", "watch_time_s"))
    ends = start + np.rint(spent_s * 1e6).astype(np.int64)
    return np.append(ends, 0)


def request_times(
    shard: UserShard,
) -> tuple[np.ndarray, np.ndarray]:
    """The request of each impression and the time its context is cut at.

    Impressions of one user and `request_id` are one request, cut at their
    smallest time. Without a request id (no column, or null) those of one user
    and time are one. A row with a `request_cut_us` (see `user_state`) stands
    for earlier rows of its request, whose smallest time that is.

    Returns:
      keys: int64 [n], 0 .. R - 1, ascending by (user, cut time, request id).
      cuts_us: int64 [n], the cut of the row's request.
    """
    users = shard.user_codes["impressions"]
    times = shard.times_us("impressions")
    if shard.has("impressions", "request_cut_us"):
        known = shard.arrow("impressions", "request_cut_us")
        times = pc.coalesce(known, pa.array(times)).to_numpy()
    names = np.full(users.size, -1, np.int64)
    if shard.has("impressions", "request_id"):
        names = _ranks(shard.arrow("impressions", "request_id"))
    # Rows without a name are grouped by their time, named ones by the name.
    own_time = np.where(names < 0, times, 0)
    order = np.lexsort((times, own_time, names, users))
    same = (
        (users[order][1:] == users[order][:-1])
        & (names[order][1:] == names[order][:-1])
        & (own_time[order][1:] == own_time[order][:-1])
    )
    first = np.concatenate((np.ones(min(1, users.size), bool), ~same))
    group = np.empty(users.size, np.int64)
    group[order] = np.cumsum(first) - 1
    head = order[first]  # The earliest row of each group.
    by_time = np.lexsort((names[head], times[head], users[head]))
    number = np.empty(head.size, np.int64)
    number[by_time] = np.arange(head.size)
    return number[group], times[head][group]


def columns_read(inputs: Sequence[RawInput]) -> dict[str, list[str]]:
    """Table -> columns from which `RawRequests` fills these inputs."""
    columns: dict[str, list[str]] = {}
    for raw in inputs:
        if _is_filled(raw) and raw.name != "request_time_us":
            table, column = _source(raw)
            columns.setdefault(table, []).append(column)
    return columns


def _source(raw: RawInput) -> tuple[str, str]:
    """The table and column that fill an input."""
    table, prefix = _HISTORIES.get(raw.axis, ("users", "user_"))
    return table, raw.name.removeprefix(prefix)


def _is_filled(raw: RawInput) -> bool:
    if raw.axis in _HISTORIES:
        return True
    return raw.axis == "request" and (
        raw.name == "request_time_us" or raw.name.startswith("user_")
    )


def _rows_of_users(shard: UserShard) -> np.ndarray:
    """Row in the users table of each user, int64 [U]; -1 without one."""
    rows = np.full(len(shard.user_ids), -1, np.int64)
    codes = shard.user_codes["users"]
    rows[codes] = np.arange(codes.size)
    return rows


def _ranks(values: pa.Array) -> np.ndarray:
    """The rank of each string among the distinct ones, -1 for null."""
    encoded = values.dictionary_encode()
    rank = np.empty(len(encoded.dictionary) + 1, np.int64)
    rank[np.argsort(np.array(encoded.dictionary.to_pylist(), object))] = (
        np.arange(len(encoded.dictionary))
    )
    rank[-1] = -1
    index = encoded.indices.fill_null(len(encoded.dictionary))
    return rank[index.to_numpy(zero_copy_only=False)]


def _padded_lists(values: pa.Array, inner: int) -> np.ndarray:
    out = np.full((len(values) + 1, inner), b"", object)
    lengths = values.value_lengths().fill_null(0).to_numpy()
    flat = string_objects(values.flatten())
    row = np.repeat(np.arange(len(values)), lengths)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(flat.size) - np.repeat(starts, lengths)
    fits = place < inner
    out[row[fits], place[fits]] = flat[fits]
    return out


__all__ = [
    "RawRequests",
    "TimeIndex",
    "columns_read",
    "raw_request",
    "recent_indices",
    "request_times",
    "string_objects",
    "watch_end_us",
    "with_absent",
]
