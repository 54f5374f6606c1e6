"""Channels, topics and videos of the simulated platform.

A video's pull on a day is its appeal times a curve of its age,

    attractiveness = appeal * (FLOOR + boost * (a / p) * exp(1 - a / p)),

with `a` its age in days at the end of the day and `p` the age of its peak: it
rises after the upload, peaks, and decays to an evergreen floor. Viral videos
have a larger boost and a later peak.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from schemas.simulator_config import SimulatorConfig

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

DAY_US = 86_400_000_000
LANGUAGES = ("en", "de", "pt", "hi", "ja")
LANGUAGE_SHARES = np.array([0.45, 0.13, 0.17, 0.15, 0.10])
EVERGREEN_FLOOR = 0.2
BACK_CATALOGUE_DAYS = 365.0
WORDS_PER_TOPIC = 50
NUM_COMMON_WORDS = 200

GUIDE_CELLS_PER_VIDEO = 8
SHARE_CELLS = 2**12

_SYLLABLES = tuple(c + v for c in "bdfghjklmnprstz" for v in "aeiou")


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """All videos, one array element per video unless named otherwise.

    Attributes:
      channel, topic, language: int64 [V], numbers of the video's own.
      second_topic: int64 [V], -1 where there is none.
      upload_time_us: int64 [V], rising; UTC microseconds.
      duration_s: float64 [V].
      quality: float64 [V], standard normal.
      clickbait, viral: bool [V].
      appeal: float64 [V], positive.
      peak_age_days, boost: float64 [V], the curve of the module docstring.
      next_in_channel: int64 [V], the channel's next upload, -1 for its last.
      episode: int64 [V], the number of the upload within its channel, from 1.
      channel_topic, channel_language: int64 [number of channels].
      channel_appeal: float64 [number of channels], positive.
      topic_share: float64 [number of topics], sums to 1.
    """

    channel: Ints
    topic: Ints
    language: Ints
    second_topic: Ints
    upload_time_us: Ints
    duration_s: Floats
    quality: Floats
    clickbait: Bools
    viral: Bools
    appeal: Floats
    peak_age_days: Floats
    boost: Floats
    next_in_channel: Ints
    episode: Ints
    channel_topic: Ints
    channel_language: Ints
    channel_appeal: Floats
    topic_share: Floats


class GroupSampler:
    """Draws videos of a given group in proportion to weights.

    Groups are segments of one array of running sums, so draws for many groups
    at once are one search in it. A guide cuts the sums into equal cells and
    names the first video of each: most targets need one look into the guide,
    the others a binary search.
    """

    def __init__(self, group: Ints, num_groups: int) -> None:
        """Sets the groups: int64 [V], or [K, V] for K groupings at once."""
        self._order = np.argsort(group, axis=None, kind="stable")
        self._video = self._order % group.shape[-1]
        self._starts = np.searchsorted(
            group.ravel()[self._order], np.arange(num_groups + 1)
        )
        self._sums = np.zeros(group.size + 1)

    def reweight(self, weights: Floats) -> None:
        """Replaces the weights (float64 [V] or [K, V], not negative)."""
        np.cumsum(weights.ravel()[self._order], out=self._sums[1:])
        self._bounds = self._sums[self._starts]
        cells = GUIDE_CELLS_PER_VIDEO * len(self._video)
        self._cells_per_weight = cells / (self._sums[-1] or 1.0)
        first = np.ceil(self._sums * self._cells_per_weight).astype(np.int64)
        first[-1] = cells + 2  # Rounding may carry a target to the end.
        self._guide = np.repeat(np.arange(len(self._video)), np.diff(first))

    def draw(self, group: Ints, uniform: Floats) -> Ints:
        """Returns a video per group number (of any shape), -1 for none."""
        low, high = self._bounds[group], self._bounds[group + 1]
        target = low + uniform * (high - low)
        found = self._guide[(target * self._cells_per_weight).astype(np.int64)]
        late = self._sums[found + 1] <= target
        found[late] = (
            np.searchsorted(self._sums, target[late], side="right") - 1
        )
        # Rounding may carry the target to the segment's end.
        found = np.minimum(found, self._starts[group + 1] - 1)
        return np.where(high > low, self._video[found], -1)


class ShareTable:
    """Draws numbers in proportion to fixed shares by looking into a table.

    Each share is a whole number of `SHARE_CELLS` cells, so it is right to
    1 / SHARE_CELLS; a look costs a fifth of a binary search.
    """

    def __init__(self, shares: Floats) -> None:
        """Sets the shares: [n], or one row of them per situation [K, n]."""
        sums = np.cumsum(np.atleast_2d(shares), axis=1)
        ends = np.rint(sums / sums[:, -1:] * SHARE_CELLS).astype(np.int64)
        numbers = np.tile(np.arange(ends.shape[1]), len(ends))
        self._number = np.repeat(numbers, np.diff(ends, prepend=0).ravel())

    def draw(
        self,
        rng: np.random.Generator,
        size: int | tuple[int, ...],
        row: Ints | int = 0,
    ) -> Ints:
        """Draws numbers [size]; `row` (broadcast to it) is the situation."""
        cell = (rng.random(size) * SHARE_CELLS).astype(np.int64)
        return self._number[row * SHARE_CELLS + cell]


def zipf_shares(count: int, exponent: float) -> Floats:
    """Returns shares [count] in proportion to 1 / rank ** exponent."""
    shares = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(shares / shares.sum())


def draw_shares(
    rng: np.random.Generator, shares: Floats, size: int | tuple[int, ...]
) -> Ints:
    """Draws numbers 0 .. len(shares) - 1 in proportion to `shares`."""
    sums = np.cumsum(shares)
    drawn = np.searchsorted(sums, rng.random(size) * sums[-1], side="right")
    return np.asarray(np.minimum(drawn, len(shares) - 1))


def start_time_us(config: SimulatorConfig) -> int:
    """Returns the first moment of the log, in UTC microseconds."""
    return int(np.datetime64(config.start_date, "us").astype(np.int64))


def make_catalogue(
    config: SimulatorConfig, rng: np.random.Generator
) -> Catalogue:
    """Draws channels, topics and videos."""
    num_videos, num_channels = config.num_videos, config.num_channels
    num_topics = config.num_topics
    topic_share = zipf_shares(num_topics, 0.6)
    # Every topic has a channel, and every channel a video.
    channel_topic = draw_shares(rng, topic_share, num_channels)
    channel_topic[:num_topics] = np.arange(num_topics)
    channel_language = draw_shares(rng, LANGUAGE_SHARES, num_channels)
    channel_appeal = np.exp(rng.normal(0.0, 0.7, num_channels))
    uploads = rng.permutation(zipf_shares(num_channels, 0.5))
    channel = draw_shares(rng, uploads, num_videos)
    channel[:num_channels] = np.arange(num_channels)
    channel = rng.permutation(channel)

    within = rng.random(num_videos) < config.within_log_upload_share
    upload_day = np.where(
        within,
        rng.random(num_videos) * config.num_days,
        -BACK_CATALOGUE_DAYS * rng.random(num_videos) ** 2,
    )
    upload_time_us = start_time_us(config) + np.sort(
        np.floor(upload_day * DAY_US).astype(np.int64)
    )

    quality = rng.normal(size=num_videos)
    viral = rng.random(num_videos) < config.viral_share
    topic_length = rng.normal(0.0, 0.5, num_topics)
    topic = channel_topic[channel]
    second_topic = draw_shares(rng, topic_share, num_videos)
    second_topic[(second_topic == topic) | (rng.random(num_videos) < 0.6)] = -1
    duration_s = 300.0 * np.exp(
        topic_length[topic] + rng.normal(0.0, 0.9, num_videos)
    )
    next_in_channel, episode = _channel_order(channel)
    return Catalogue(
        channel=channel,
        topic=topic,
        language=channel_language[channel],
        second_topic=second_topic,
        upload_time_us=upload_time_us,
        duration_s=np.clip(duration_s, 15.0, 7200.0).round(1),
        quality=quality,
        clickbait=rng.random(num_videos) < config.clickbait_share,
        viral=viral,
        appeal=channel_appeal[channel]
        * np.exp(0.3 * quality + rng.normal(0.0, 0.7, num_videos)),
        peak_age_days=np.where(viral, 3.0, 1.5)
        * np.exp(rng.normal(0.0, 0.3, num_videos)),
        boost=np.where(viral, 8.0, 1.0),
        next_in_channel=next_in_channel,
        episode=episode,
        channel_topic=channel_topic,
        channel_language=channel_language,
        channel_appeal=channel_appeal,
        topic_share=topic_share,
    )


def _channel_order(channel: Ints) -> tuple[Ints, Ints]:
    """Returns each video's successor and its number within its channel."""
    # Videos are numbered by upload time, so a stable sort by channel
    # leaves each channel's uploads in order.
    order = np.argsort(channel, kind="stable")
    same = channel[order][1:] == channel[order][:-1]
    following = np.full(len(channel), -1)
    following[order[:-1][same]] = order[1:][same]
    first_of_run = np.concatenate([[True], ~same])
    run_start = np.maximum.accumulate(
        np.where(first_of_run, np.arange(len(channel)), 0)
    )
    episode = np.empty(len(channel), dtype=np.int64)
    episode[order] = np.arange(len(channel)) - run_start + 1
    return following, episode


def attractiveness(
    catalogue: Catalogue, config: SimulatorConfig, day: int
) -> Floats:
    """Returns each video's pull on a day, 0 before its upload.

    Args:
      catalogue: the videos.
      config: gives the start of the log.
      day: day of the log, from 0.

    Returns:
      float64 [V], by the curve of the module docstring.
    """
    day_end_us = start_time_us(config) + (day + 1) * DAY_US
    age_days = (day_end_us - catalogue.upload_time_us) / DAY_US
    relative = np.maximum(age_days, 0.0) / catalogue.peak_age_days
    curve = EVERGREEN_FLOOR + catalogue.boost * relative * np.exp(
        1.0 - relative
    )
    return np.where(age_days > 0.0, catalogue.appeal * curve, 0.0)


def make_words(count: int) -> list[str]:
    """Returns `count` distinct pronounceable words of three syllables."""
    base = len(_SYLLABLES)
    if count > base**3:
        raise ValueError(
            f"Expected at most {base**3} words, received {count}. Lower the "
            "number of topics or channels."
        )
    # 100,003 shares no divisor with 75 ** 3, so the codes are a permutation.
    codes = [index * 100_003 % base**3 for index in range(count)]
    return [
        _SYLLABLES[code // base**2]
        + _SYLLABLES[code // base % base]
        + _SYLLABLES[code % base]
        for code in codes
    ]


@dataclasses.dataclass(frozen=True)
class WordNumbers:
    """Where the words of topics, of everyone and of channels are numbered."""

    num_topics: int
    num_channels: int

    @property
    def first_common(self) -> int:
        """Number of the first word that belongs to no topic."""
        return self.num_topics * WORDS_PER_TOPIC

    @property
    def first_channel(self) -> int:
        """Number of the first channel's name."""
        return self.first_common + NUM_COMMON_WORDS

    @property
    def total(self) -> int:
        """Number of all words."""
        return self.first_channel + self.num_channels

    def draw_topic_words(self, rng: np.random.Generator, topic: Ints) -> Ints:
        """Draws a word of each topic [N], Zipfian within the topic."""
        rank = _TOPIC_WORDS.draw(rng, len(topic))
        return np.asarray(topic * WORDS_PER_TOPIC + rank)

    def draw_common_words(self, rng: np.random.Generator, size: int) -> Ints:
        """Draws Zipfian words [size] that belong to no topic."""
        return self.first_common + _COMMON_WORDS.draw(rng, size)


_TOPIC_WORDS = ShareTable(zipf_shares(WORDS_PER_TOPIC, 1.0))
_COMMON_WORDS = ShareTable(zipf_shares(NUM_COMMON_WORDS, 1.0))
