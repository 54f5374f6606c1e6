"""What simulated users do with a video: the truth behind the log.

Click on an impression (u user, v video, d device, k position):

    P(click) = sigmoid(logit(u, v, context)) * k ** -exponent[d],

so the position acts as one factor per device, 1 at position 1. A watch lasts
`duration * F`; F is uniform below m with probability 1 - m, and uniform above
m otherwise. Its mean is m = `watch_fraction(...)`, since
(1 - m) * m / 2 + m * (1 + m) / 2 = m: expected seconds are exact products. On
the autoplaying surface an unclicked video plays for a uniform time of up to
AUTOPLAY_S (or its duration), on average half of that.
"""

from __future__ import annotations

import numpy as np

from beam_jobs.sources.simulated_users import Users
from beam_jobs.sources.simulated_videos import Bools, Catalogue, Floats, Ints

# By simulated_users.DEVICES. Far positions are harder to reach on a small
# screen or with a remote control.
POSITION_EXPONENT = np.array([0.7, 0.35, 0.9, 0.5])
COMPLETED_FRACTION = 0.7
AUTOPLAY_S = 20.0
CLICK_INTERCEPT = -3.4
CLICKBAIT_CLICK_LOGIT = 1.3
CLICKBAIT_WATCH_LOGIT = -2.2
SEEN_CLICK_LOGIT = -1.5
OTHER_LANGUAGE_CLICK_LOGIT = -2.0
SAME_CHANNEL_CLICK_LOGIT = 0.7
SAME_TOPIC_CLICK_LOGIT = 0.5


def sigmoid(logit: Floats) -> Floats:
    """Returns 1 / (1 + exp(-logit))."""
    return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def position_effect(device: Ints, position: Ints) -> Floats:
    """Returns the factor of a position (from 1), 1 at position 1."""
    exponent = POSITION_EXPONENT[device]
    return np.asarray(position.astype(np.float64) ** -exponent)


def is_among(value: Ints, row: Ints) -> Bools:
    """Returns whether each value [...] is in its row [..., K].

    K is a multiple of 8: eight flags are looked at as one word, which is
    several times as fast as `any` along a short axis.
    """
    words = (row == value[..., None]).view(np.uint64)
    found = words[..., 0]
    for number in range(1, words.shape[-1]):
        found = found | words[..., number]
    return np.asarray(found != 0)


def affinity(
    users: Users, catalogue: Catalogue, user: Ints, video: Ints
) -> Floats:
    """Returns how much users like videos: their topics and their channel.

    Args:
      users: who they are.
      catalogue: the videos.
      user: int64, broadcast to the shape of `video`.
      video: int64 of any shape, that of the result (float64).
    """
    second = catalogue.second_topic[video]
    liking = users.interest[user, catalogue.topic[video]].astype(np.float64)
    liking += 0.4 * users.interest[user, second] * (second >= 0)
    channel = catalogue.channel[video]
    subscribed = is_among(channel, users.subscriptions[user])
    return np.asarray(liking + 0.6 * subscribed)


def click_logit(
    users: Users,
    catalogue: Catalogue,
    user: Ints,
    video: Ints,
    query_video: Ints,
    seen: Bools,
    liking: Floats,
) -> Floats:
    """Returns the logit of a click at position 1, in the shape of `video`.

    Args:
      users: who they are.
      catalogue: the videos.
      user: int64, broadcast to the shape of `video`.
      video: int64 of any shape.
      query_video: int64, the video being watched, -1 for none; broadcast.
      seen: bool, whether it is among the user's recent watches.
      liking: float64, `affinity`.
    """
    watching = query_video >= 0
    same_channel = catalogue.channel[query_video] == catalogue.channel[video]
    same_topic = catalogue.topic[query_video] == catalogue.topic[video]
    understood = catalogue.language[video] == users.language[user]
    return np.asarray(
        CLICK_INTERCEPT
        + 1.8 * liking
        + 0.4 * catalogue.quality[video]
        + users.click_bias[user]
        + CLICKBAIT_CLICK_LOGIT * catalogue.clickbait[video]
        + SEEN_CLICK_LOGIT * seen
        + OTHER_LANGUAGE_CLICK_LOGIT * ~understood
        + SAME_CHANNEL_CLICK_LOGIT * (watching & same_channel)
        + SAME_TOPIC_CLICK_LOGIT * (watching & same_topic)
    )


def watch_fraction(catalogue: Catalogue, video: Ints, liking: Floats) -> Floats:
    """Returns the mean share of a video [N] that a watch lasts.

    It falls with the length: about as 1 / sqrt(duration) for long videos, so
    long videos still hold users for more seconds.
    """
    return sigmoid(
        0.3
        + 0.9 * liking
        + 0.5 * catalogue.quality[video]
        + CLICKBAIT_WATCH_LOGIT * catalogue.clickbait[video]
        - 0.5 * np.log(catalogue.duration_s[video] / 300.0)
    )


def draw_fractions(rng: np.random.Generator, mean: Floats) -> Floats:
    """Draws the watched share [N] of each video around its mean [N]."""
    mean = np.clip(mean, 1e-6, 1.0 - 1e-6)
    odds = mean / (1.0 - mean)
    # The inverse of the distribution function, which is 1 - m at m.
    uniform = rng.random(len(mean))
    above = uniform - (1.0 - mean)
    return np.where(above < 0.0, uniform * odds, mean + above / odds)
