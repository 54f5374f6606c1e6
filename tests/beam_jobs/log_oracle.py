"""A small log, and what was known of it at a time: plain loops over rows.

The rules of the jobs, written down a second time without NumPy, Arrow or a
line of `beam_jobs`; only `shard_of` hands the log over to the code.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from beam_jobs.user_shards import UserShard, build_shard, split_batch
from schemas.events import EventSchema

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
MIDNIGHT_US = 19_723 * DAY_US  # UTC, the log's first.
# Few moments, so that events meet: six a day.
TICK_S = 4 * 3600
TICK_US = 4 * HOUR_US
LAST_TICK = 27
USERS = ("u0", "u1", "u2", "u3", "u4")
IDS = {"a": 1, "b": 2, "c": 3}  # "d" is not in the vocabulary.
CHANNELS = {"a": "x", "b": "x", "c": "y", "d": None}
PARTS = ("train", "valid", "test")
_NO_CAP = 10**9


class Watch(NamedTuple):
    user: str
    video: str
    time_us: int
    spent_s: float | None
    completed: bool
    undated: bool

    @property
    def end_us(self) -> int:
        return self.time_us + round((self.spent_s or 0.0) * 1e6)


class Search(NamedTuple):
    user: str
    query: str
    time_us: int


class Shown(NamedTuple):
    """An impression."""

    user: str
    video: str
    time_us: int
    request: str | None
    clicked: bool
    spent_s: float


@dataclasses.dataclass(frozen=True)
class Log:
    """Three training days, one of validation, one of test, of local time."""

    watches: Sequence[Watch]
    searches: Sequence[Search]
    shown: Sequence[Shown]
    utc_offset_hours: float

    @property
    def ends_us(self) -> tuple[int, int, int]:
        """End of training, of validation and of test."""
        start = MIDNIGHT_US - round(self.utc_offset_hours * HOUR_US)
        return start + 3 * DAY_US, start + 4 * DAY_US, start + 5 * DAY_US

    def part(self, event: Watch | Search | Shown) -> str:
        if isinstance(event, Watch) and event.undated:
            return "train"
        return PARTS[sum(event.time_us >= end for end in self.ends_us[:2])]

    def day(self, time_us: int) -> int:
        return math.floor((time_us + self.utc_offset_hours * HOUR_US) / DAY_US)

    def only(self, parts: Sequence[str]) -> "Log":
        """The log as a job that reads only these parts has it."""
        return Log(
            [e for e in self.watches if self.part(e) in parts],
            [e for e in self.searches if self.part(e) in parts],
            [e for e in self.shown if self.part(e) in parts],
            self.utc_offset_hours,
        )

    def request_time(self, row: Shown) -> int:
        """The smallest time of the row's request; without an id, its own."""
        if row.request is None:
            return row.time_us
        return min(
            r.time_us
            for r in self.shown
            if (r.user, r.request) == (row.user, row.request)
        )

    def labels(self) -> list[Watch]:
        """Watches that a training label may be: known when training ends."""
        return [
            w
            for w in self.watches
            if w.completed
            and not w.undated
            and w.time_us < self.ends_us[0]
            and w.end_us <= self.ends_us[0]
        ]

    def context(
        self, user: str, now_us: int, history: int, searches: int
    ) -> dict[str, list[Any]]:
        """The user's lists at a moment: most recent first, then absent."""
        watches, asked, shown = (
            sorted(
                (e for e in events if e.user == user and e.time_us < now_us),
                key=lambda e: (e.time_us, e[1]),  # By video or query.
                reverse=True,
            )
            for events in (self.watches, self.searches, self.shown)
        )

        def padded(values: list[Any], absent: Any, length: int) -> list[Any]:
            return (values + [absent] * length)[:length]

        return {
            "watch_history_video_id": padded(
                [w.video.encode() for w in watches], b"", history
            ),
            "watch_history_event_time_us": padded(
                [w.time_us for w in watches], 0, history
            ),
            "watch_history_watch_time_s": padded(
                [
                    w.spent_s
                    if w.spent_s is not None and w.end_us <= now_us
                    else math.nan
                    for w in watches
                ],
                math.nan,
                history,
            ),
            "watch_history_completed": padded(
                [
                    float(w.completed) if w.end_us <= now_us else math.nan
                    for w in watches
                ],
                math.nan,
                history,
            ),
            "search_query": padded(
                [s.query.encode() for s in asked], b"", searches
            ),
            "search_event_time_us": padded(
                [s.time_us for s in asked], 0, searches
            ),
            "impression_history_video_id": padded(
                [r.video.encode() for r in shown], b"", history
            ),
            "impression_history_event_time_us": padded(
                [r.time_us for r in shown], 0, history
            ),
        }

    def lagged(self, video: str, now_us: int) -> dict[str, float]:
        """Totals of a video and its channel over the days before."""
        before = [
            r for r in self.shown if self.day(r.time_us) < self.day(now_us)
        ]
        offset_us = round(self.utc_offset_hours * HOUR_US)
        midnight_us = self.day(now_us) * DAY_US - offset_us
        channel = CHANNELS[video]
        groups = {
            "video": [r for r in before if r.video == video],
            "channel": [
                r for r in before if channel and CHANNELS[r.video] == channel
            ],
        }
        found: dict[str, float] = {}
        for name, rows in groups.items():
            n = len(rows)
            unknown = name == "channel" and channel is None
            found |= {
                f"{name}_lagged_impressions": math.nan if unknown else n,
                f"{name}_lagged_click_rate": (
                    sum(r.clicked for r in rows) / n if n else math.nan
                ),
                f"{name}_lagged_watch_time_s": (
                    sum(
                        r.spent_s
                        for r in rows
                        if r.time_us + round(r.spent_s * 1e6) <= midnight_us
                    )
                    / n
                    if n
                    else math.nan
                ),
            }
        return found

    def video_counts(self) -> dict[str, int]:
        """Of the vocabulary: labels, and clicks that no watch follows."""
        training = [w for w in self.watches if self.part(w) == "train"]
        clicks = [
            r
            for r in self.shown
            if self.part(r) == "train"
            and r.clicked
            and not any(
                (w.user, w.video) == (r.user, r.video)
                # Within ten minutes: on this clock, at once.
                and w.time_us == r.time_us
                for w in training
            )
        ]
        return collections.Counter(e.video for e in [*self.labels(), *clicks])

    def garbled_from(self, now_us: int) -> "Log":
        """Other events from `now_us` on: dropped, changed, moved."""
        changes: tuple[Callable[[Any], list[Any]], ...] = (
            lambda e: [],
            lambda e: [e._replace(**{e._fields[1]: "d"})],
            lambda e: [e._replace(user="u0")],
        )

        def garbled(events: Sequence[Any]) -> list[Any]:
            kept: list[Any] = []
            for i, event in enumerate(events):
                if event.time_us < now_us:
                    kept.append(event)
                    continue
                if isinstance(event, Shown):
                    event = event._replace(clicked=not event.clicked)
                    event = event._replace(request=None, spent_s=77.0)
                elif isinstance(event, Watch):
                    event = event._replace(spent_s=77.0, completed=True)
                kept += changes[i % 3](event)
            return kept

        return Log(
            garbled(self.watches),
            garbled(self.searches),
            garbled(self.shown),
            self.utc_offset_hours,
        )


SCHEMA = EventSchema(
    {
        "watches": (
            "user_id",
            "video_id",
            "event_time_us",
            "watch_time_s",
            "completed",
            "source",
            "undated",
        ),
        "searches": ("user_id", "query", "event_time_us"),
        "impressions": (
            "user_id",
            "video_id",
            "event_time_us",
            "surface",
            "clicked",
            "watch_time_s",
            "request_id",
        ),
        "users": ("user_id", "region"),
        "videos": ("video_id", "channel_id"),
    }
)


def tables_of(log: Log) -> dict[str, pa.Table]:
    """The log as the timed event tables that the jobs read."""
    rows: dict[str, list[tuple[Any, ...]]] = {
        # Null and false are both "dated".
        "watches": [(*w[:5], "home", w.undated or None) for w in log.watches],
        "searches": list(log.searches),
        "impressions": [
            (*r[:3], "home", r.clicked, r.spent_s, r.request) for r in log.shown
        ],
    }
    return {name: _table(name, some) for name, some in rows.items()}


def shard_of(log: Log, parts: Sequence[str] = PARTS) -> UserShard:
    """All users in one shard, each row with its part."""
    tables = [("users", "all", _table("users", [(u, None) for u in USERS]))]
    for part in parts:
        divided = tables_of(log.only([part]))
        tables += [(name, part, rows) for name, rows in divided.items()]
    pieces = [
        piece
        for name, part, rows in tables
        for _, piece in split_batch(
            rows, table=name, part=part, num_shards=1, cap=_NO_CAP
        )
    ]
    schemas = {name: SCHEMA.arrow(name) for name, _, _ in tables}
    return build_shard((0, pieces), schemas=schemas, cap=_NO_CAP)


def _table(name: str, rows: list[tuple[Any, ...]]) -> pa.Table:
    """Rows in the order of the names in `SCHEMA`, as its Arrow table."""
    schema = SCHEMA.arrow(name)
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    names = SCHEMA.columns[name]
    by_name = dict(zip(names, columns, strict=True))
    return pa.table(
        [pa.array(by_name[f.name], f.type) for f in schema], schema=schema
    )
