"""The query features of many moments; each event is transformed once.

A moment's history has fifty watches, and a user's moments share them: put
through the transform graph moment by moment, every watch would be looked up
some thirty times. But each query feature is made of parts that do not know
of each other: one id per watch, some tokens per search (newest first), one
value per user. So the graph is applied to each distinct video, query and
user of a shard, packed into raw requests, and a moment's features are gathered
from what came out. `direct_features` is the plain way; both give the same.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from beam_jobs.example_files import (
    Column,
    Distinct,
    Ragged,
    Repeated,
    without_padding,
)
from beam_jobs.histories import RawRequests, TimeIndex, string_objects
from beam_jobs.user_shards import UserShard
from schemas.features import Feature
from schemas.requests import RawInput

Transform = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]

# Feature made of events -> table, input that takes their terms, its column.
_OF_EVENTS = {
    "watch_history": ("watches", "watch_history_video_id", "video_id"),
    "search_tokens": ("searches", "search_query", "query"),
}


class QueryFeatures:
    """Answers what the query features of a shard's users are at a time.

    Args:
      shard: the users' events.
      inputs: of the retrieval request.
      features: of scope `query`.
      transform: from raw requests to features.

    Raises:
      ValueError: a feature that is made of something else.
    """

    def __init__(
        self,
        shard: UserShard,
        inputs: Sequence[RawInput],
        features: Sequence[Feature],
        transform: Transform,
    ) -> None:
        unknown = [
            f.name
            for f in features
            if f.name not in _OF_EVENTS and not f.name.startswith("user_")
        ]
        if unknown:
            raise ValueError(
                f"Query features of watches, searches or users expected, got "
                f"{', '.join(unknown)}. Say what it is made of."
            )
        self._features = features
        by_name = {raw.name: raw for raw in inputs}
        terms, requests = {}, {}
        for name, (table, taken, column) in _OF_EVENTS.items():
            if any(f.name == name for f in features):
                terms[name] = shard.arrow(table, column).dictionary_encode()
                distinct = string_objects(terms[name].dictionary)
                # A query has many tokens, a video one id.
                one_each = name == "watch_history"
                requests[name] = {
                    taken: _packed(distinct, by_name[taken], one_each)
                }
        users = np.arange(len(shard.user_ids))
        columns = [raw for raw in inputs if raw.name.startswith("user_")]
        requests["users"] = RawRequests(shard, columns)(
            users, np.zeros_like(users)
        )
        found = {
            name: transform(_whole(request, inputs))
            for name, request in requests.items()
        }
        of_users = direct_features(
            found["users"], [f for f in features if f.name not in terms]
        )
        self._of_users = {n: Distinct(v) for n, v in of_users.items()}
        self._of_events = {}
        for name, encoded in terms.items():
            table, taken, _ = _OF_EVENTS[name]
            bags = found[name][name]
            added: np.ndarray | Ragged
            if name == "watch_history":
                added = bags.reshape(-1)[_codes(encoded)]
            else:
                added = _lists(bags, encoded)
            self._of_events[name] = (
                TimeIndex(shard.user_codes[table], shard.times_us(table)),
                by_name[taken].length or 0,
                added,
            )

    def __call__(
        self,
        users: np.ndarray,
        times_us: np.ndarray,
        without: np.ndarray | None = None,
    ) -> dict[str, Column]:
        """The features of each moment, as they are stored.

        Args:
          users: int64 [A], positions in `shard.user_ids`.
          times_us: int64 [A].
          without: int64 [A], a watch of the shard that the moment's history
            does not have.
        """
        columns: dict[str, Column] = {}
        for feature in self._features:
            if feature.name in self._of_users:
                columns[feature.name] = Repeated(
                    self._of_users[feature.name], users
                )
            else:
                index, length, added = self._of_events[feature.name]
                if without is not None and feature.name == "watch_history":
                    recent = index.recent(users, times_us, length + 1)
                    recent = _without(recent, without)
                else:
                    recent = index.recent(users, times_us, length)
                most = feature.max_length or 0
                columns[feature.name] = (
                    _joined(added, recent, most)
                    if isinstance(added, Ragged)
                    else _ids(added, recent[:, :most])
                )
        return columns


def direct_features(
    transformed: Mapping[str, np.ndarray], features: Sequence[Feature]
) -> dict[str, np.ndarray | Ragged]:
    """Transformed requests as they are stored: bags lose their padding."""
    return {
        f.name: without_padding(transformed[f.name])
        if f.kind == "bag"
        else transformed[f.name]
        for f in features
    }


def _packed(terms: np.ndarray, raw: RawInput, fill: bool) -> np.ndarray:
    """Terms as rows of a list input: as many as fit in each, or one."""
    (length,) = raw.shape
    each = length if fill else 1
    rows: np.ndarray = np.full(
        (-(-terms.size // each), length), raw.absent, object
    )
    rows[np.arange(terms.size) // each, np.arange(terms.size) % each] = terms
    return rows


def _whole(
    request: Mapping[str, np.ndarray], inputs: Sequence[RawInput]
) -> dict[str, np.ndarray]:
    """A request of some inputs with all the others, absent."""
    height = max(map(len, request.values()), default=0)
    filled = {}
    for raw in inputs:
        absent: np.ndarray = np.array(raw.absent, raw.numpy_dtype)
        # One value, seen as a column: nothing is copied or converted.
        column = np.broadcast_to(absent, (height, *raw.shape))
        filled[raw.name] = request.get(raw.name, column)
    return filled


def _without(recent: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Takes one row out of each list of rows, or else its last.

    Args:
      recent: int64 [A, L + 1], -1 where there is none.
      rows: int64 [A].

    Returns:
      int64 [A, L], in the same order.
    """
    # Behind all others, whose order a stable sort keeps.
    order = np.argsort(recent == rows[:, None], axis=1, kind="stable")
    return np.take_along_axis(recent, order[:, :-1], axis=1)


def _codes(encoded: pa.DictionaryArray) -> np.ndarray:
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return np.asarray(codes, np.int64)


def _ids(ids: np.ndarray, events: np.ndarray) -> Ragged:
    """The ids of each moment's events.

    Args:
      ids: int64 [m], one an event.
      events: int64 [A, L], most recent first, -1 where there is none.
    """
    used = events >= 0
    splits = np.concatenate(([0], np.cumsum(used.sum(axis=1))))
    return Ragged(ids[events[used]], splits.astype(np.int64))


def _lists(bags: np.ndarray, encoded: pa.DictionaryArray) -> Ragged:
    """What each event adds to a bag, and nothing for an index of -1.

    Args:
      bags: int64 [n, max_length], one a term.
      encoded: the terms of the events, [m].

    Returns:
      m + 1 lists, the last one empty.
    """
    return _gathered(without_padding(bags), _codes(encoded))


def _gathered(lists: Ragged, rows: np.ndarray) -> Ragged:
    """Lists by row number, and an empty one at the end."""
    starts = lists.row_splits[rows]
    lengths = lists.row_splits[rows + 1] - starts
    return _cut(lists.values, starts, np.append(lengths, 0))


def _cut(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Ragged:
    splits = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    shift = np.append(starts, 0)[: lengths.size] - splits[:-1]
    index = np.arange(splits[-1]) + np.repeat(shift, lengths)
    return Ragged(values[index], splits)


def _joined(lists: Ragged, events: np.ndarray, most: int) -> Ragged:
    """The lists of each moment's events one after the other, `most` values.

    Args:
      lists: of m events and, as list -1, the empty one.
      events: int64 [A, L], most recent first, -1 where there is none.
      most: length at which a moment's list is cut.
    """
    starts = lists.row_splits[:-1][events]
    lengths = np.diff(lists.row_splits)[events]
    before = np.cumsum(lengths, axis=1) - lengths
    lengths = np.clip(most - before, 0, lengths)
    joined = _cut(lists.values, starts.ravel(), lengths.ravel())
    ends = np.cumsum(lengths.sum(axis=1))
    splits = np.concatenate(([0], ends)).astype(np.int64)
    return Ragged(joined.values, splits)
