"""Visits of simulated users: when they come, and what they find by themselves.

A visit is a row of events. Each is either a request to the recommender
(`simulated_requests`) or a watch found otherwise: the next video of the
channel just watched, a search, a subscription, or something popular met on
another site. A visit keeps to one topic for the most part, which is what makes
the next watch predictable. All visits of a day take their n-th event together.
"""

from __future__ import annotations

import numpy as np

from beam_jobs.sources.simulated_behaviour import (
    COMPLETED_FRACTION,
    affinity,
    draw_fractions,
    watch_fraction,
)
from beam_jobs.sources.simulated_platform import Platform, Sessions
from beam_jobs.sources.simulated_requests import SECOND_US, recommend
from beam_jobs.sources.simulated_users import (
    REGION_UTC_OFFSET_HOURS,
    draw_interest,
    draw_language,
    draw_subscription,
)
from beam_jobs.sources.simulated_videos import (
    DAY_US,
    Ints,
    ShareTable,
    draw_shares,
    start_time_us,
)

MEAN_EVENTS = 6
MOST_EVENTS = 24
HOUR_US = 3_600_000_000
# Relative activity by local hour: quiet nights, busy evenings.
HOUR_SHARES = np.array(
    [3, 2, 1, 1, 1, 1, 2, 4, 5, 5, 5, 5, 6, 6, 5, 5, 6, 7, 9, 11, 12, 11, 8, 5],
    dtype=np.float64,
)
# Monday to Sunday; the mean is 1.
WEEKDAY_FACTOR = np.array([0.94, 0.93, 0.94, 0.96, 1.02, 1.12, 1.09])
CONTINUE, SEARCH, SUBSCRIBED, POPULAR = range(4)
# What leads to a watch found by oneself: within a visit, for the first watch
# of a visit (which may go on with the last one's channel), and for a newcomer.
_WAYS = ShareTable(
    np.array(
        [
            [0.45, 0.29, 0.19, 0.07],
            [0.25, 0.37, 0.28, 0.10],
            [0.0, 0.55, 0.30, 0.15],
        ]
    )
)
# simulated_platform.SOURCES of each way: shares of search, embedded, external.
_SOURCES = ShareTable(
    np.array(
        [[0.0, 0.3, 0.7], [1.0, 0.0, 0.0], [0.2, 0.1, 0.7], [0.0, 0.6, 0.4]]
    )
)
SESSION_TOPIC_SHARE = 0.75
VAIN_SEARCH_SHARE = 0.15


def _event_shares() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Returns the distribution of the number of events, 1 .. MOST_EVENTS."""
    stay = 1.0 - 1.0 / MEAN_EVENTS
    shares = stay ** np.arange(MOST_EVENTS, dtype=np.float64)
    return np.asarray(shares / shares.sum())


def simulate_day(
    platform: Platform, day: int, rng: np.random.Generator
) -> None:
    """Logs all visits that start on one day of the log."""
    platform.start_day(day)
    sessions = _open_sessions(platform, day, rng)
    request_share = 1.0 / (1.0 + platform.config.organic_watches_per_request)
    # Clicked videos open some seconds after their request.
    last_us = platform.end_us - 120 * SECOND_US
    for event in range(MOST_EVENTS):
        going = (sessions.num_events > event) & (sessions.now_us < last_us)
        which = np.flatnonzero(going)
        asks = rng.random(len(which)) < request_share
        recommend(platform, sessions, which[asks], rng)
        _watch_otherwise(platform, sessions, which[~asks], rng)
    platform.free_from_us[sessions.user] = sessions.now_us


def _open_sessions(
    platform: Platform, day: int, rng: np.random.Generator
) -> Sessions:
    """Draws who comes, when, and for what; each user at most once a day.

    Raises:
      ValueError: the requests asked for take more visits than users.
    """
    config, users = platform.config, platform.users
    shares = _event_shares()
    mean_events = float(np.arange(1, MOST_EVENTS + 1) @ shares)
    mean_requests = mean_events / (1.0 + config.organic_watches_per_request)
    weekday = (config.start_date.weekday() + day) % 7
    wanted = (
        config.num_users
        * config.requests_per_user_day
        * WEEKDAY_FACTOR[weekday]
        / mean_requests
    )
    most = mean_requests / WEEKDAY_FACTOR.max()
    if config.requests_per_user_day > most:
        raise ValueError(
            f"Expected `requests_per_user_day` of at most {most:.2f} with "
            f"{config.organic_watches_per_request} organic watches per "
            f"request, received {config.requests_per_user_day}: users come "
            "at most once a day. Lower one of the two."
        )
    count = min(int(wanted + rng.random()), config.num_users)
    # The largest of log weight + Gumbel noise: a draw without replacement.
    noisy = np.log(users.activity) + rng.gumbel(size=config.num_users)
    user = np.sort(np.argpartition(-noisy, count - 1)[:count])

    local_hours = draw_shares(rng, HOUR_SHARES, count) + rng.random(count)
    utc_hours = local_hours - REGION_UTC_OFFSET_HOURS[users.region[user]]
    start_us = start_time_us(config) + day * DAY_US
    start_us = start_us + (utc_hours % 24.0 * HOUR_US).astype(np.int64)
    return Sessions(
        user=user,
        topic=draw_interest(users, user, user.shape, rng),
        now_us=np.maximum(start_us, platform.free_from_us[user] + HOUR_US),
        num_events=1 + draw_shares(rng, shares, count),
        current_video=np.full(count, -1),
    )


def _watch_otherwise(
    platform: Platform,
    sessions: Sessions,
    which: Ints,
    rng: np.random.Generator,
) -> None:
    """Lets each of the sessions `which` [N] watch without a recommendation."""
    catalogue, user = platform.catalogue, sessions.user[which]
    count = len(which)
    stage = (sessions.current_video[which] < 0).astype(np.int64)
    stage += platform.last_watched(user) < 0
    way = _WAYS.draw(rng, count, stage)
    video = _find(platform, sessions, which, way, rng)
    # Most people do not watch the same again: they look once more.
    retry = np.flatnonzero(
        platform.has_seen(user, video)
        | ~platform.is_uploaded(video, sessions.now_us[which])
    )
    way[retry] = np.where(way[retry] == CONTINUE, SUBSCRIBED, way[retry])
    video[retry] = _find(platform, sessions, which[retry], way[retry], rng)
    exists = platform.is_uploaded(video, sessions.now_us[which])
    source = 1 + _SOURCES.draw(rng, count, way)

    kept = np.flatnonzero(exists)
    video, user, source = video[kept], user[kept], source[kept]
    found = which[kept]
    searched = np.flatnonzero(source == 1)
    _search(platform, sessions, found[searched], video[searched], rng)
    liking = affinity(platform.users, catalogue, user, video)
    fraction = draw_fractions(rng, watch_fraction(catalogue, video, liking))
    watch_time_s = fraction * catalogue.duration_s[video]
    platform.log.append(
        "watches",
        user=user,
        video=video,
        event_time_us=sessions.now_us[found],
        watch_time_s=watch_time_s,
        completed=fraction >= COMPLETED_FRACTION,
        source=source,
    )
    platform.remember(user, video, np.zeros_like(user))
    sessions.current_video[found] = video
    pause_s = rng.exponential(45.0, len(found)) + 2.0
    spent_us = ((watch_time_s + pause_s) * SECOND_US).astype(np.int64)
    sessions.now_us[found] += spent_us


def _find(
    platform: Platform,
    sessions: Sessions,
    which: Ints,
    way: Ints,
    rng: np.random.Generator,
) -> Ints:
    """Draws a video per session [N] by the way it is found, -1 for none."""
    users, catalogue = platform.users, platform.catalogue
    user, shape = sessions.user[which], which.shape
    last = platform.last_watched(user)
    topic = np.where(
        rng.random(shape) < SESSION_TOPIC_SHARE,
        sessions.topic[which],
        draw_interest(users, user, shape, rng),
    )
    language = draw_language(users, user, shape, rng)
    channel = np.where(
        way == CONTINUE,
        catalogue.channel[last],
        draw_subscription(users, user, shape, rng),
    )
    of_channel = platform.of_channel(channel)
    # In the order of the ways.
    group = np.choose(
        way,
        [of_channel, platform.of_topic(topic, language), of_channel, language],
    )
    in_order = (way == CONTINUE) & (rng.random(shape) < 0.6)
    return np.where(
        in_order, catalogue.next_in_channel[last], platform.draw(group, rng)
    )


def _search(
    platform: Platform,
    sessions: Sessions,
    which: Ints,
    video: Ints,
    rng: np.random.Generator,
) -> None:
    """Logs the search for each video [N], and now and then a vain one before.

    A query is a word of the video's topic or the name of its channel, often
    a second word of the topic, sometimes a word of no topic.
    """
    catalogue, words = platform.catalogue, platform.words
    in_vain = np.flatnonzero(rng.random(len(which)) < VAIN_SEARCH_SHARE)
    of = np.concatenate([in_vain, np.arange(len(which))])
    seconds_before = np.where(np.arange(len(of)) < len(in_vain), 20, 5)
    topic, channel = catalogue.topic[video[of]], catalogue.channel[video[of]]
    first = np.where(
        rng.random(len(of)) < 0.2,
        words.first_channel + channel,
        words.draw_topic_words(rng, topic),
    )
    second = np.where(
        rng.random(len(of)) < 0.6, words.draw_topic_words(rng, topic), -1
    )
    third = np.where(
        rng.random(len(of)) < 0.3, words.draw_common_words(rng, len(of)), -1
    )
    platform.log.append(
        "searches",
        user=sessions.user[which[of]],
        event_time_us=sessions.now_us[which[of]] - seconds_before * SECOND_US,
        words=np.stack([first, second, third], axis=1),
    )
