"""The request that each user of a log would make at one moment.

Everything strictly before the moment is known. The surface is that of the
user's last impression; what a log cannot tell of a request yet to come (the
video being watched, candidates) is absent.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from beam_jobs.events import last_event_us
from beam_jobs.histories import (
    RawRequests,
    TimeIndex,
    columns_read,
    with_absent,
)
from beam_jobs.user_shards import UserShard
from schemas.events import ENTITY_KEYS, TIMED_TABLES, EventSchema
from schemas.requests import RawInput

_SURFACE = "surface"
_WATCHES = "watch_history_video_id"


class UserRequests:
    """Builds requests of the users of one shard, for many users at once.

    Args:
      shard: with every table that `request_columns` names.
      inputs: of the request.
      time_us: of the requests.
    """

    def __init__(
        self, shard: UserShard, inputs: Sequence[RawInput], time_us: int
    ) -> None:
        self._inputs, self._time_us = inputs, time_us
        self._histories = RawRequests(shard, inputs)
        self._surface = next((i for i in inputs if i.name == _SURFACE), None)
        if self._surface is not None:
            self._surfaces = with_absent(
                shard.arrow("impressions", _SURFACE), self._surface
            )
            self._impressions = TimeIndex(
                shard.user_codes["impressions"], shard.times_us("impressions")
            )

    def __call__(self, users: np.ndarray) -> dict[str, np.ndarray]:
        """The request of each user.

        Args:
          users: int64 [n], positions in `shard.user_ids`.

        Returns:
          name -> [n, ...] for every input.
        """
        times_us: np.ndarray = np.full(len(users), self._time_us, np.int64)
        filled = self._histories(users, times_us)
        request = {}
        for raw in self._inputs:
            if raw.name in filled:
                request[raw.name] = filled[raw.name]
            elif raw is self._surface:
                last = self._impressions.recent(users, times_us, 1)[:, 0]
                request[raw.name] = self._surfaces[last]
            else:
                request[raw.name] = np.full(
                    (len(users), *raw.shape), raw.absent, raw.numpy_dtype
                )
        return request


def request_columns(
    schema: EventSchema, inputs: Sequence[RawInput]
) -> dict[str, list[str]]:
    """Table -> columns that `UserRequests` reads; of users, all tables."""
    filled = columns_read(inputs)
    columns = {}
    for table in schema.columns:
        if table == "videos":
            continue
        wanted = {"user_id", *filled.get(table, ())}
        if table not in ENTITY_KEYS:
            wanted.add("event_time_us")
        if table == "impressions":
            wanted.add(_SURFACE)
        columns[table] = sorted(wanted)
    return columns


def end_of_log_us(files: Mapping[str, Sequence[str]]) -> int:
    """Right after the last event; what is strictly before it is all."""
    timed = [path for t in TIMED_TABLES for path in files.get(t, ())]
    return last_event_us(timed) + 1


def has_watched(request: dict[str, np.ndarray]) -> np.ndarray:
    """Whether a request has a watch history, bool [n]."""
    return (request[_WATCHES] != b"").any(axis=1)
