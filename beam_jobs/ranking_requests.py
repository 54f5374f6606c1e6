"""Raw ranking requests of a log: what a server would have been asked.

One example is one request with its impressions as candidates, its context cut
at the request's time; a request of more than `max_candidates` impressions is
continued in further examples of the same context.
"""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.histories import (
    RawRequests,
    request_times,
    string_objects,
    with_absent,
)
from beam_jobs.lagged_statistics import LaggedStatistics, local_days
from beam_jobs.shard_rows import PART, PART_CODES
from beam_jobs.user_shards import UserShard
from schemas.hashing import hash_strings, mix, uniform
from schemas.requests import RawInput

# Inputs taken from the impressions under another name.
_COLUMNS = {
    "candidate_video_id": "video_id",
    "candidate_position": "position",
    "candidate_seed_video_id": "seed_video_id",
}


@dataclasses.dataclass(frozen=True)
class RankingBatch:
    """E examples with up to C candidates each.

    Attributes:
      raw: the raw request, [E, ...] by input.
      user_id: object [E] of bytes.
      request_key: int64 [E], stable; equal for all examples of a request.
      row_key: int64 [E], stable and distinct per example.
      rows: int64 [E, C], the impression in the shard's table, -1 padding.
    """

    raw: dict[str, np.ndarray]
    user_id: np.ndarray
    request_key: np.ndarray
    row_key: np.ndarray
    rows: np.ndarray

    @property
    def candidate_count(self) -> np.ndarray:
        """int64 [E]."""
        return (self.rows >= 0).sum(axis=1)


class RankingRequests:
    """The ranking examples of a shard, made in batches.

    Args:
      shard: with the tables watches, impressions and, where the inputs ask
        for them, searches and users.
      inputs: of the raw request.
      parts: which impressions become candidates (names of `PART_CODES`); the
        context is cut by time alone.
      max_candidates: C.
      statistics: needed if the inputs have lagged statistics.
      utc_offset_hours: local time, for the day of a request.
      share: take this share of the requests, chosen by stable hash.
      seed: of that choice.
    """

    def __init__(
        self,
        shard: UserShard,
        inputs: Sequence[RawInput],
        parts: Collection[str],
        max_candidates: int,
        statistics: LaggedStatistics | None,
        utc_offset_hours: float,
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._shard = shard
        self._inputs = inputs
        self._statistics = statistics
        self._utc_offset_hours = utc_offset_hours
        self._histories = RawRequests(shard, inputs)
        self._user_ids = string_objects(shard.user_ids)
        self._columns = {
            i.name: with_absent(shard.arrow("impressions", column), i)
            for i in inputs
            if (column := self._source(i)) is not None
        }
        self._cut_us, self._request_key = _requests(shard)
        part = shard.numpy("impressions", PART)
        wanted = np.isin(part, [PART_CODES[p] for p in parts])
        if share < 1.0:
            wanted &= uniform(seed, self._request_key) < share
        self._rows, self._chunks = self._layout(
            np.flatnonzero(wanted), max_candidates
        )

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._rows)

    @property
    def num_requests(self) -> int:
        """Number of distinct requests."""
        return int((self._chunks == 0).sum())

    def batch(self, start: int, stop: int) -> RankingBatch:
        """Examples start .. stop - 1; ascending by (user, cut time)."""
        rows = self._rows[start:stop]
        first = rows[:, 0]
        cuts_us = self._cut_us[first]
        users = self._shard.user_codes["impressions"][first]
        raw = self._histories(users, cuts_us)
        lagged = self._lagged(rows, cuts_us)
        for i in self._inputs:
            if i.name in self._columns:
                index = first if i.axis == "request" else rows
                raw[i.name] = self._columns[i.name][index]
            elif i.name in lagged:
                raw[i.name] = lagged[i.name]
        key = self._request_key[first]
        return RankingBatch(
            raw={i.name: raw[i.name] for i in self._inputs},
            user_id=self._user_ids[users],
            request_key=key.astype(np.int64),
            row_key=mix(0, key, self._chunks[start:stop]).astype(np.int64),
            rows=rows,
        )

    def _source(self, raw: RawInput) -> str | None:
        """The column of the impressions that fills an input, if one does."""
        if raw.axis == "candidate" or raw.name in ("surface", "query_video_id"):
            name = _COLUMNS.get(raw.name, raw.name)
            for column in (name, name.removeprefix("impression_")):
                if self._shard.has("impressions", column):
                    return column
        return None

    def _layout(
        self, rows: np.ndarray, max_candidates: int
    ) -> tuple[np.ndarray, np.ndarray]:
        shard = self._shard
        videos = pc.rank(
            shard.arrow("impressions", "video_id"), tiebreaker="dense"
        )
        position = np.zeros(len(videos), np.int64)
        if shard.has("impressions", "position"):
            position = (
                shard.arrow("impressions", "position").fill_null(0).to_numpy()
            )
        places, chunks = lay_out(
            shard.user_codes["impressions"][rows],
            self._cut_us[rows],
            self._request_key[rows],
            position[rows],
            videos.to_numpy()[rows],
            max_candidates,
        )
        return np.where(places < 0, -1, np.append(rows, -1)[places]), chunks

    def _lagged(
        self, rows: np.ndarray, cuts_us: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Lagged statistics of the candidates [E, C], NaN in padding."""
        if self._statistics is None:
            return {}
        used = rows >= 0
        days = np.broadcast_to(
            local_days(cuts_us, self._utc_offset_hours)[:, None], rows.shape
        )
        videos = self._shard.arrow("impressions", "video_id")
        found = self._statistics(videos.take(pa.array(rows[used])), days[used])
        lagged = {}
        for name, values in found.items():
            lagged[name] = np.full(rows.shape, np.nan, np.float32)
            lagged[name][used] = values
        return lagged


def lay_out(
    users: np.ndarray,
    cuts_us: np.ndarray,
    keys: np.ndarray,
    positions: np.ndarray,
    videos: np.ndarray,
    max_candidates: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Arranges impressions as examples of up to C candidates.

    Args:
      users, cuts_us, keys: [n], the request: user's code, cut time, uint64 key.
      positions: [n], 0 where not known.
      videos: [n], rank of the video id.
      max_candidates: C.

    Returns:
      int64 [E, C] numbers of impressions, -1 padding: examples ascending by
      user, cut and key, candidates by position (unknown first), then video.
      int64 [E] which part of its request an example is, from 0.
    """
    order = np.lexsort((videos, positions, keys, cuts_us, users))
    keys, users = keys[order], users[order]
    is_first = np.ones(order.size, bool)
    is_first[1:] = (keys[1:] != keys[:-1]) | (users[1:] != users[:-1])
    starts = np.flatnonzero(is_first)
    place = np.arange(order.size) - starts[np.cumsum(is_first) - 1]
    slot = place % max_candidates
    example = np.cumsum(slot == 0) - 1
    count = int(example[-1]) + 1 if order.size else 0
    layout = np.full((count, max_candidates), -1, np.int64)
    layout[example, slot] = order
    return layout, place[slot == 0] // max_candidates


def _requests(shard: UserShard) -> tuple[np.ndarray, np.ndarray]:
    """Cut time (int64) and stable key (uint64) of each impression's request.

    The key comes from what identifies the request: its user, and its request
    id or, without one, its time.
    """
    _, cuts_us = request_times(shard)
    users = hash_strings(shard.user_ids)[shard.user_codes["impressions"]]
    if not shard.has("impressions", "request_id"):
        return cuts_us, mix(0, users, cuts_us)
    ids = shard.arrow("impressions", "request_id")
    named = ids.is_valid().to_numpy(zero_copy_only=False)
    return cuts_us, mix(
        0, users, np.where(named, 0, cuts_us), hash_strings(ids)
    )
