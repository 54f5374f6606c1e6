"""The state of the simulated platform while its log is written.

`Platform` holds what one moment hands to the next (recent watches, samplers
of the day); `EventLog` collects columns of numbers, to be named at the end.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np

from beam_jobs.sources.simulated_behaviour import is_among, position_effect
from beam_jobs.sources.simulated_users import DEVICES, Users
from beam_jobs.sources.simulated_videos import (
    DAY_US,
    LANGUAGES,
    Bools,
    Catalogue,
    GroupSampler,
    Ints,
    WordNumbers,
    attractiveness,
    start_time_us,
)
from schemas.simulator_config import SimulatorConfig

# A user remembers this many watches: what "already seen" means.
NUM_RECENT = 24
FRESH_DAYS = 2.0
SOURCES = ("recommendation", "search", "embedded", "external")


class EventLog:
    """Columns of events, appended piece by piece."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[dict[str, np.ndarray[Any, Any]]]]
        self._pieces = defaultdict(list)

    def append(self, table: str, **columns: np.ndarray[Any, Any]) -> None:
        """Adds rows to a table; each column is an array [rows]."""
        self._pieces[table].append(columns)

    def columns(self, table: str) -> dict[str, np.ndarray[Any, Any]]:
        """Returns the table's joined columns and forgets its pieces.

        Raises:
          ValueError: the table has no piece at all.
        """
        pieces = self._pieces.pop(table, [])
        if not pieces:
            raise ValueError(
                f"Expected events of `{table}`, received none. Raise "
                "`num_users`, `num_days` or `requests_per_user_day`."
            )
        return {
            name: np.concatenate([piece[name] for piece in pieces])
            for name in pieces[0]
        }


@dataclasses.dataclass
class Sessions:
    """Visits of one day, one array element per visit; `now_us` moves on.

    Attributes:
      user: int64 [N], each user at most once.
      topic: int64 [N], what the visit is about.
      now_us: int64 [N], UTC microseconds of the next event.
      num_events: int64 [N].
      current_video: int64 [N], the last video watched here, -1 for none.
    """

    user: Ints
    topic: Ints
    now_us: Ints
    num_events: Ints
    current_video: Ints


class Platform:
    """Users, videos, and what has happened so far."""

    def __init__(
        self, config: SimulatorConfig, catalogue: Catalogue, users: Users
    ) -> None:
        self.config = config
        self.catalogue = catalogue
        self.users = users
        self.log = EventLog()
        self.words = WordNumbers(config.num_topics, config.num_channels)
        self.end_us = start_time_us(config) + config.num_days * DAY_US
        # Not before this moment does a user's next visit start.
        self.free_from_us = np.zeros(config.num_users, dtype=np.int64)
        self._recent = np.full((config.num_users, NUM_RECENT), -1)
        self._num_watched = np.zeros(config.num_users, dtype=np.int64)

        # The factor of each device and place (from 0).
        self.position_effects = position_effect(
            np.arange(len(DEVICES))[:, None],
            np.arange(1, config.impressions_per_request + 1),
        )
        # Groups of videos to draw from are numbered one kind after another.
        self._first_topic = len(LANGUAGES)
        num_topic_groups = config.num_topics * len(LANGUAGES)
        self._first_fresh = self._first_topic + num_topic_groups
        self._first_channel = self._first_fresh + num_topic_groups
        self.uploaded = self._first_channel + config.num_channels
        self.nothing = self.uploaded + 1
        groups = (
            catalogue.language,
            self.of_topic(catalogue.topic, catalogue.language),
            self.fresh_of_topic(catalogue.topic, catalogue.language),
            self.of_channel(catalogue.channel),
            np.full(config.num_videos, self.uploaded),
        )
        self._sampler = GroupSampler(np.stack(groups), self.nothing + 1)

    def start_day(self, day: int) -> None:
        """Ages every video to the given day of the log."""
        weights = attractiveness(self.catalogue, self.config, day)
        day_start_us = start_time_us(self.config) + day * DAY_US
        fresh = (
            day_start_us - self.catalogue.upload_time_us < FRESH_DAYS * DAY_US
        )
        uploaded = weights > 0.0
        self._sampler.reweight(
            np.stack([weights, weights, weights * fresh, weights, uploaded])
        )

    def of_topic(self, topic: Ints, language: Ints) -> Ints:
        """Returns the group of each topic and language."""
        return self._first_topic + topic * len(LANGUAGES) + language

    def fresh_of_topic(self, topic: Ints, language: Ints) -> Ints:
        """Returns the group of new videos of each topic and language."""
        return self._first_fresh + topic * len(LANGUAGES) + language

    def of_channel(self, channel: Ints) -> Ints:
        """Returns the group of each channel."""
        return self._first_channel + channel

    def draw(self, group: Ints, rng: np.random.Generator) -> Ints:
        """Draws a video of each group (of any shape), -1 where none is.

        The group of a language is the language's number; `uploaded` is that
        of all videos, and `nothing` that of none.
        """
        return self._sampler.draw(group, rng.random(group.shape))

    def is_uploaded(self, video: Ints, time_us: Ints) -> Bools:
        """Returns whether each video exists (is not -1) at its moment."""
        uploaded = self.catalogue.upload_time_us[video] <= time_us
        return np.asarray((video >= 0) & uploaded)

    def last_watched(self, user: Ints) -> Ints:
        """Returns each user's latest watch [N], -1 for none."""
        slot = (self._num_watched[user] - 1) % NUM_RECENT
        return self._recent[user, slot]

    def has_seen(self, user: Ints, video: Ints) -> Bools:
        """Returns whether each video is among the user's recent watches.

        `user` is broadcast to the shape of `video`.
        """
        return is_among(video, self._recent[user])

    def remember(self, user: Ints, video: Ints, rank: Ints) -> None:
        """Adds watches [N]; `rank` counts those of the same user from 0."""
        slot = (self._num_watched[user] + rank) % NUM_RECENT
        self._recent[user, slot] = video
        np.add.at(self._num_watched, user, 1)
