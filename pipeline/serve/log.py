"""What the page knows of the log: its users, its videos, their requests."""

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.events import read_row_group, read_tables, row_groups
from pipeline.recommend import request_of_user
from schemas.errors import InputError
from schemas.events import TIMED_TABLES, EventSchema
from schemas.requests import RawInput

_HOUR_US = 3_600_000_000
_REQUESTS_KEPT = 256


@dataclasses.dataclass(frozen=True)
class Facts:
    """What one pass over the log tells.

    Attributes:
      users: user_id -> watches, busiest first.
      videos: video_id -> watches, most watched first, all of the table.
      end_us: time of the last event.
    """

    users: Mapping[str, int]
    videos: Mapping[str, int]
    end_us: int


class Log:
    """Users and videos to choose from, and the requests they make.

    Args:
      files: event table -> Parquet files, of all parts of the split.
      schema: what the log has.
      inputs: of a request.
    """

    def __init__(
        self,
        files: Mapping[str, Sequence[str]],
        schema: EventSchema,
        inputs: Sequence[RawInput],
    ) -> None:
        self._files, self._schema, self._inputs = files, schema, inputs
        self.videos = read_tables(files["videos"], schema.arrow("videos"))
        ids = self.videos["video_id"].to_pylist()
        self._rows = {video_id: row for row, video_id in enumerate(ids)}
        self._searchable = _lower(self.videos)
        self._reading = threading.Lock()
        self._request_of = functools.lru_cache(_REQUESTS_KEPT)(
            self._read_request
        )

    @property
    def has_searches(self) -> bool:
        return self._schema.has("searches")

    @property
    def facts(self) -> Facts:
        """Of the whole log; the first to ask waits for the pass."""
        with self._reading:
            return self._facts

    def find_users(self, text: str, limit: int) -> list[dict[str, object]]:
        """Users whose id has the text, busiest first."""
        found: list[dict[str, object]] = []
        for user, watches in self.facts.users.items():
            if text in user:
                found.append({"user_id": user, "watches": watches})
            if len(found) == limit:
                break
        return found

    def find_videos(self, text: str, limit: int) -> list[dict[str, object]]:
        """Videos whose title or id has every word, most watched first."""
        matches = pa.array([True] * len(self._searchable))
        for word in text.lower().split():
            here = pc.match_substring(self._searchable, word)
            matches = pc.and_(matches, here)
        rows = np.flatnonzero(matches.to_numpy(zero_copy_only=False))
        watches = self.facts.videos
        ids = self.videos["video_id"].take(rows).to_pylist()
        best = sorted(ids, key=lambda v: -watches.get(v, 0))[:limit]
        return [self.about(v) | {"watches": watches.get(v, 0)} for v in best]

    def about(self, video_id: str) -> dict[str, object]:
        """Id, title and channel; None where the log has none."""
        row, table = self._rows.get(video_id), self.videos
        named = [c for c in ("title", "channel_id") if c in table.column_names]
        values: dict[str, object] = dict.fromkeys(("title", "channel_id"))
        if row is not None:
            values |= {c: table[c][row].as_py() for c in named}
        return {"video_id": video_id, **values}

    def request(
        self,
        user_id: str | None,
        history: Sequence[str] | None,
        searches: Sequence[str],
    ) -> dict[str, np.ndarray]:
        """A request right after the log's end.

        Args:
          user_id: whose log; None for somebody without one.
          history: videos in place of the user's, most recent first, as if
            each was watched to its end, one an hour; None keeps the user's.
          searches: made before the user's, most recent first.

        Returns:
          name -> [1, ...] for every input.

        Raises:
          InputError: the log does not have the user.
        """
        if user_id is None:
            request = self._filled({})
            request["request_time_us"][0] = self.facts.end_us + 1
        else:
            request = self._filled(self._request_of(user_id))
        now_us = int(request["request_time_us"][0])
        if history is not None:
            self._watch(request, history, now_us)
        if searches and self.has_searches:
            for name, values in (
                ("search_query", [s.encode() for s in searches]),
                ("search_event_time_us", [now_us - 1] * len(searches)),
            ):
                old = request[name]
                new = np.array([values], old.dtype)
                length = old.shape[1]
                request[name] = np.concatenate([new, old], 1)[:, :length]
        return request

    def _watch(
        self,
        request: dict[str, np.ndarray],
        history: Sequence[str],
        now_us: int,
    ) -> None:
        """Puts videos in place of the watch history."""
        for i in self._inputs:
            if i.axis == "watch":
                request[i.name] = _absent(i)
        history = history[: request["watch_history_video_id"].shape[1]]
        durations = self.videos["duration_s"]
        for slot, video_id in enumerate(history):
            row = self._rows.get(video_id)
            lasts = None if row is None else durations[row].as_py()
            at_us = now_us - (slot + 1) * _HOUR_US
            request["watch_history_video_id"][0, slot] = video_id.encode()
            request["watch_history_event_time_us"][0, slot] = at_us
            if lasts is not None:
                request["watch_history_watch_time_s"][0, slot] = lasts
            if "watch_history_completed" in request:
                request["watch_history_completed"][0, slot] = 1.0

    def _filled(
        self, request: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A copy, with what it does not have."""
        return {
            i.name: request[i.name].copy() if i.name in request else _absent(i)
            for i in self._inputs
        }

    def _read_request(self, user_id: str) -> dict[str, np.ndarray]:
        return request_of_user(user_id, self._files, self._schema, self._inputs)

    @functools.cached_property
    def _facts(self) -> Facts:
        users, videos, end_us = Counter[str](), Counter[str](), 0
        for table in sorted(self._files.keys() & set(TIMED_TABLES)):
            columns = self._schema.arrow(table)
            wanted = ["user_id", "video_id", "event_time_us"]
            if table != "watches":
                wanted = ["event_time_us"]
            columns = pa.schema([columns.field(name) for name in wanted])
            for path in self._files[table]:
                for place in row_groups(path):
                    rows = read_row_group(place, columns)
                    last = pc.max(rows["event_time_us"]).as_py()
                    end_us = max(end_us, last)
                    if table == "watches":
                        users.update(_counts(rows["user_id"]))
                        videos.update(_counts(rows["video_id"]))
        if not users:
            raise InputError("The log has no watches.")
        return Facts(_by_count(users), _by_count(videos), end_us)


def _absent(i: RawInput) -> np.ndarray:
    return np.full((1, *i.shape), i.absent, i.numpy_dtype)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    pairs = pc.value_counts(column).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs}


def _by_count(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda c: (-c[1], c[0])))


def _lower(videos: pa.Table) -> pa.Array:
    """Title and id of each video in lower case."""
    text = videos["video_id"]
    if "title" in videos.column_names:
        title = pc.fill_null(videos["title"], "")
        text = pc.binary_join_element_wise(title, text, " ")
    return pc.utf8_lower(text).combine_chunks()
