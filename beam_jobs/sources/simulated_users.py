"""Users of the simulated platform: who they are and what they like.

A user has a few topics with falling weights, swaps one of them now and then
(`drift_interests`), and subscribes to channels, mostly of these topics.
Gender, age and region tilt the choice of topics, so user features tell
something where the history is short.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from beam_jobs.sources.simulated_videos import (
    Bools,
    Catalogue,
    Floats,
    Ints,
    ShareTable,
    draw_shares,
    zipf_shares,
)
from schemas.simulator_config import SimulatorConfig

REGIONS = ("US", "GB", "DE", "BR", "IN", "JP")
REGION_SHARES = np.array([0.30, 0.10, 0.13, 0.17, 0.20, 0.10])
REGION_UTC_OFFSET_HOURS = np.array([-6.0, 0.0, 1.0, -3.0, 5.5, 9.0])
# Rows: regions; columns: simulated_videos.LANGUAGES.
REGION_LANGUAGE_SHARES = np.array(
    [
        [0.96, 0.01, 0.02, 0.01, 0.00],
        [0.95, 0.02, 0.01, 0.02, 0.00],
        [0.10, 0.90, 0.00, 0.00, 0.00],
        [0.06, 0.00, 0.94, 0.00, 0.00],
        [0.30, 0.00, 0.00, 0.70, 0.00],
        [0.05, 0.00, 0.00, 0.00, 0.95],
    ]
)
DEVICES = ("mobile", "desktop", "tv", "tablet")
DEVICE_SHARES = np.array([0.55, 0.25, 0.12, 0.08])
GENDERS = ("female", "male", "other")
GENDER_SHARES = np.array([0.48, 0.49, 0.03])
LOGGED_IN_SHARE = 0.75
UNKNOWN_AGE_SHARE = 0.15
INTEREST_WEIGHTS = np.array([1.0, 0.75, 0.55, 0.4, 0.3])
NUM_SUBSCRIPTIONS = 8
OWN_LANGUAGE_SHARE = 0.9
_INTERESTS = ShareTable(INTEREST_WEIGHTS)
_SUBSCRIPTIONS = ShareTable(zipf_shares(NUM_SUBSCRIPTIONS, 0.8))


@dataclasses.dataclass
class Users:
    """All users, one array row per user.

    Attributes:
      region, device, language, gender: int64 [U], numbers of the names above.
      age: float64 [U], years.
      age_known, logged_in: bool [U].
      activity: float64 [U], positive, heavy-tailed.
      click_bias: float64 [U], added to the logit of every click.
      interest_topics: int64 [U, 5], changed by `drift_interests`.
      interest: float32 [U, T], the weight of each topic; changed likewise.
      subscriptions: int64 [U, 8], channels.
    """

    region: Ints
    device: Ints
    language: Ints
    gender: Ints
    age: Floats
    age_known: Bools
    logged_in: Bools
    activity: Floats
    click_bias: Floats
    interest_topics: Ints
    interest: np.ndarray[tuple[int, int], np.dtype[np.float32]]
    subscriptions: Ints


def make_users(
    config: SimulatorConfig, catalogue: Catalogue, rng: np.random.Generator
) -> Users:
    """Draws users, their interests and their subscriptions."""
    num_users, num_topics = config.num_users, config.num_topics
    region = draw_shares(rng, REGION_SHARES, num_users)
    language_sums = np.cumsum(REGION_LANGUAGE_SHARES, axis=1)[region]
    language = (rng.random((num_users, 1)) >= language_sums[:, :-1]).sum(1)
    gender = draw_shares(rng, GENDER_SHARES, num_users)
    age = np.clip(13.0 + rng.gamma(2.0, 11.0, num_users), 13.0, 90.0).round()

    logit = (
        np.log(catalogue.topic_share)
        + rng.normal(0.0, 0.6, (len(GENDERS), num_topics))[gender]
        + rng.normal(0.0, 0.5, (len(REGIONS), num_topics))[region]
        + ((age - 35.0) / 15.0)[:, None] * rng.normal(0.0, 0.4, num_topics)
    )
    # The largest of logit + Gumbel noise are a draw without replacement in
    # proportion to exp(logit), in order of the draw.
    noisy = logit + rng.gumbel(size=logit.shape)
    topics = np.argsort(-noisy, axis=1)[:, : len(INTEREST_WEIGHTS)]
    interest = np.zeros((num_users, num_topics), dtype=np.float32)
    np.put_along_axis(interest, topics, INTEREST_WEIGHTS[None, :], axis=1)
    return Users(
        region=region,
        device=draw_shares(rng, DEVICE_SHARES, num_users),
        language=language,
        gender=gender,
        age=age,
        age_known=rng.random(num_users) >= UNKNOWN_AGE_SHARE,
        logged_in=rng.random(num_users) < LOGGED_IN_SHARE,
        activity=np.exp(rng.normal(0.0, 1.1, num_users)),
        click_bias=rng.normal(0.0, 0.4, num_users),
        interest_topics=topics,
        interest=interest,
        subscriptions=_subscribe(catalogue, topics, language, rng),
    )


def _subscribe(
    catalogue: Catalogue,
    topics: Ints,
    language: Ints,
    rng: np.random.Generator,
) -> Ints:
    """Draws channels [U, 8] of the users' topics, preferring their language."""
    num_users = len(language)
    channels_of_topic = np.argsort(catalogue.channel_topic, kind="stable")
    starts = np.searchsorted(
        catalogue.channel_topic[channels_of_topic],
        np.arange(len(catalogue.topic_share) + 1),
    )
    shape = (num_users, NUM_SUBSCRIPTIONS)
    slot = draw_shares(rng, INTEREST_WEIGHTS, shape)
    topic = np.take_along_axis(topics, slot, axis=1)
    first, end = starts[topic], starts[topic + 1]
    # The most attractive of six tries in the user's language.
    tries = rng.random((6, *shape))
    channels = channels_of_topic[first + (tries * (end - first)).astype(int)]
    merit = catalogue.channel_appeal[channels] * np.where(
        catalogue.channel_language[channels] == language[:, None], 1.0, 0.01
    )
    best = merit.argmax(axis=0)
    return np.asarray(np.take_along_axis(channels, best[None], axis=0)[0])


def drift_interests(
    users: Users,
    catalogue: Catalogue,
    config: SimulatorConfig,
    rng: np.random.Generator,
) -> None:
    """Lets a share of the users swap one interest for another, in place."""
    num_users = len(users.device)
    changing = np.flatnonzero(
        rng.random(num_users) < config.interest_drift_per_day
    )
    slot = rng.integers(0, len(INTEREST_WEIGHTS), len(changing))
    topic = draw_shares(rng, catalogue.topic_share, len(changing))
    new = users.interest[changing, topic] == 0.0
    changing, slot, topic = changing[new], slot[new], topic[new]
    users.interest[changing, users.interest_topics[changing, slot]] = 0.0
    users.interest[changing, topic] = INTEREST_WEIGHTS[slot]
    users.interest_topics[changing, slot] = topic


def draw_interest(
    users: Users, user: Ints, shape: tuple[int, ...], rng: np.random.Generator
) -> Ints:
    """Draws topics [shape] by weight; `user` is broadcast to the shape."""
    return users.interest_topics[user, _INTERESTS.draw(rng, shape)]


def draw_language(
    users: Users, user: Ints, shape: tuple[int, ...], rng: np.random.Generator
) -> Ints:
    """Draws the language to look in: the user's own, or English (0)."""
    return users.language[user] * (rng.random(shape) < OWN_LANGUAGE_SHARE)


def draw_subscription(
    users: Users, user: Ints, shape: tuple[int, ...], rng: np.random.Generator
) -> Ints:
    """Draws channels [shape] of the users, the first ones more often."""
    return users.subscriptions[user, _SUBSCRIPTIONS.draw(rng, shape)]
