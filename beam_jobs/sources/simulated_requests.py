"""The simulated recommender, and what users do with what it shows.

A request draws twice as many candidates as it shows from six sources, drops
doubles, videos not yet uploaded and the video being watched, ranks the rest
by a noisy guess of the click logit, and shows the best ones in that order; in
the randomised slice it shows the same videos in uniformly random order.

`propensity` is the probability of the video being at this position given the
videos shown, their ranking scores, and whether the request is in the slice:
1 / (number shown) in the slice, and 1 elsewhere, where the order is fixed.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from beam_jobs.sources.simulated_behaviour import (
    AUTOPLAY_S,
    COMPLETED_FRACTION,
    affinity,
    click_logit,
    draw_fractions,
    sigmoid,
    watch_fraction,
)
from beam_jobs.sources.simulated_platform import Platform, Sessions
from beam_jobs.sources.simulated_users import (
    draw_interest,
    draw_language,
    draw_subscription,
)
from beam_jobs.sources.simulated_videos import (
    Bools,
    Floats,
    Ints,
    ShareTable,
)

SURFACES = ("home", "watch_next", "shorts")
HOME, WATCH_NEXT, SHORTS = range(3)
CANDIDATE_SOURCES = (
    "popular",
    "topic",
    "subscription",
    "fresh",
    "related",
    "explore",
)
POPULAR, TOPIC, SUBSCRIPTION, FRESH, RELATED, EXPLORE = range(6)
# Shares of the sources, on the home surfaces and on watch_next.
_MIX = ShareTable(
    np.array(
        [
            [0.12, 0.28, 0.25, 0.12, 0.18, 0.05],
            [0.08, 0.12, 0.10, 0.05, 0.60, 0.05],
        ]
    )
)
WATCH_NEXT_SHARE = 0.6
CANDIDATES_PER_SHOWN = 2
SECOND_US = 1_000_000
# Looking over the videos shown takes this long.
BROWSE_US = 20 * SECOND_US


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests of one moment of the day, one array element per request."""

    user: Ints
    time_us: Ints
    surface: Ints
    query_video: Ints
    seed_video: Ints
    session_topic: Ints
    randomized: Bools


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Candidates of each request [R, C], or those shown of all [N]."""

    video: Ints
    source: Ints
    score: Floats
    logit: Floats
    liking: Floats

    def take(self, rows: Ints) -> Candidates:
        """Returns the given elements of the flattened arrays."""
        return Candidates(
            *(
                getattr(self, field.name).ravel()[rows]
                for field in dataclasses.fields(self)
            )
        )


def recommend(
    platform: Platform,
    sessions: Sessions,
    which: Ints,
    rng: np.random.Generator,
) -> None:
    """Serves one request in each of the sessions `which` [R] and logs it."""
    if not len(which):
        return
    requests = _open_requests(platform, sessions, which, rng)
    candidates = _draw_candidates(platform, requests, rng)
    shown, place, num_shown = _rank(platform, requests, candidates, rng)
    _watch(platform, sessions, which, requests, shown, place, num_shown, rng)


def _open_requests(
    platform: Platform,
    sessions: Sessions,
    which: Ints,
    rng: np.random.Generator,
) -> Requests:
    count = len(which)
    user, current = sessions.user[which], sessions.current_video[which]
    autoplay = rng.random(count) < platform.config.autoplay_share
    surface = np.where(autoplay, SHORTS, HOME)
    on_video = (current >= 0) & (rng.random(count) < WATCH_NEXT_SHARE)
    surface[on_video] = WATCH_NEXT
    return Requests(
        user=user,
        time_us=sessions.now_us[which],
        surface=surface,
        query_video=np.where(on_video, current, -1),
        seed_video=np.where(on_video, current, platform.last_watched(user)),
        session_topic=sessions.topic[which],
        randomized=rng.random(count) < platform.config.randomized_share,
    )


def _draw_candidates(
    platform: Platform, requests: Requests, rng: np.random.Generator
) -> Candidates:
    """Draws and scores candidates, some of them void (video -1) or double."""
    users, catalogue = platform.users, platform.catalogue
    per_request = CANDIDATES_PER_SHOWN * platform.config.impressions_per_request
    shape = (len(requests.user), per_request)
    # One row per request, to be broadcast along its candidates.
    user = requests.user[:, None]
    query = requests.query_video[:, None]
    on_video = (requests.surface == WATCH_NEXT)[:, None]
    source = _MIX.draw(rng, shape, on_video)
    group = _group_to_draw_from(platform, requests, source, rng)
    video = platform.draw(group, rng)
    uploaded = platform.is_uploaded(video, requests.time_us[:, None])
    video = np.where(uploaded & (video != query), video, -1)

    seen = platform.has_seen(user, video)
    liking = affinity(users, catalogue, user, video)
    return Candidates(
        video=video,
        source=source,
        # What a retrieval model may know: the liking, and how videos do.
        score=1.8 * liking
        + 0.3 * np.log(catalogue.appeal)[video]
        + 0.6 * rng.standard_normal(shape),
        logit=click_logit(users, catalogue, user, video, query, seen, liking),
        liking=liking,
    )


def _group_to_draw_from(
    platform: Platform,
    requests: Requests,
    source: Ints,
    rng: np.random.Generator,
) -> Ints:
    """Chooses the group of videos [R, C] that each candidate comes from."""
    users, catalogue = platform.users, platform.catalogue
    user, seed = requests.user[:, None], requests.seed_video[:, None]
    shape = source.shape
    language = draw_language(users, user, shape, rng)
    topic = np.where(
        rng.random(shape) < 0.3,
        requests.session_topic[:, None],
        draw_interest(users, user, shape, rng),
    )
    channel = draw_subscription(users, user, shape, rng)
    related = np.where(
        rng.random(shape) < 0.5,
        platform.of_channel(catalogue.channel[seed]),
        platform.of_topic(catalogue.topic[seed], catalogue.language[seed]),
    )
    group = np.full(shape, platform.uploaded)  # EXPLORE
    for number, of_source in (
        (POPULAR, language),
        (TOPIC, platform.of_topic(topic, language)),
        (SUBSCRIPTION, platform.of_channel(channel)),
        (FRESH, platform.fresh_of_topic(topic, language)),
        (RELATED, np.where(seed >= 0, related, platform.nothing)),
    ):
        group = np.where(source == number, of_source, group)
    return group


def _rank(
    platform: Platform,
    requests: Requests,
    candidates: Candidates,
    rng: np.random.Generator,
) -> tuple[Candidates, Ints, Ints]:
    """Chooses what is shown and where.

    Returns:
      The candidates shown [N], their places from 0 [N], and the number
      shown of each request [R], smaller than asked where candidates ran out.
    """
    video = candidates.video
    count, per_request = video.shape
    most = platform.config.impressions_per_request
    # Keys that differ sort faster than a stable sort of equal ones.
    by_video = np.argsort(video * per_request + np.arange(per_request), axis=1)
    ordered = np.take_along_axis(video, by_video, axis=1)
    useless = ordered < 0
    useless[:, 1:] |= ordered[:, 1:] == ordered[:, :-1]
    void = np.empty_like(useless)
    np.put_along_axis(void, by_video, useless, axis=1)

    guess = candidates.logit + 0.4 * candidates.score
    guess += 0.7 * rng.standard_normal(guess.shape)
    guess[void] = -np.inf
    best = np.argsort(-guess, axis=1)[:, :most]
    num_shown = np.minimum((~void).sum(axis=1), most)
    shown = np.arange(most) < num_shown[:, None]
    # Where positions are shuffled, the n-th best go to random places.
    mixed = np.flatnonzero(requests.randomized)
    noise = rng.random((len(mixed), most))
    order = np.argsort(np.where(shown[mixed], noise, np.inf), axis=1)
    best[mixed] = np.take_along_axis(best[mixed], order, axis=1)
    rows = best + (np.arange(count) * per_request)[:, None]
    return candidates.take(rows[shown]), np.nonzero(shown)[1], num_shown


def _watch(
    platform: Platform,
    sessions: Sessions,
    which: Ints,
    requests: Requests,
    shown: Candidates,
    place: Ints,
    num_shown: Ints,
    rng: np.random.Generator,
) -> None:
    """Draws clicks and watches, logs them, and moves the sessions on."""
    catalogue, video = platform.catalogue, shown.video
    request = np.repeat(np.arange(len(which)), num_shown)
    device = platform.users.device[requests.user][request]
    effect = platform.position_effects[device, place]
    click_probability = sigmoid(shown.logit) * effect
    clicked = rng.random(len(video)) < click_probability
    mean_fraction = watch_fraction(catalogue, video, shown.liking)
    duration_s = catalogue.duration_s[video]
    longest_autoplay_s = np.where(
        (requests.surface == SHORTS)[request],
        np.minimum(duration_s, AUTOPLAY_S),
        0.0,
    )
    clicks = np.flatnonzero(clicked)
    fraction = draw_fractions(rng, mean_fraction[clicks])
    watch_time_s = rng.random(len(video)) * longest_autoplay_s
    watch_time_s[clicks] = fraction * duration_s[clicks]
    liked = np.zeros(len(video), dtype=bool)
    liked[clicks] = rng.random(len(clicks)) < (
        0.3 * fraction * sigmoid(catalogue.quality[video[clicks]] - 1.0)
    )
    dismiss_probability = 0.004 + 0.02 * sigmoid(-shown.logit - 3.0)
    dismissed = rng.random(len(video)) < dismiss_probability
    platform.log.append(
        "requests",
        user=requests.user,
        event_time_us=requests.time_us,
        surface=requests.surface,
        query_video=requests.query_video,
        seed_video=requests.seed_video,
        randomized=requests.randomized,
        num_shown=num_shown,
    )
    platform.log.append(
        "impressions",
        video=video,
        place=place,
        clicked=clicked,
        watch_time_s=watch_time_s,
        liked=liked,
        dismissed=dismissed & ~clicked,
        candidate_source=shown.source,
        candidate_score=shown.score,
        click_probability=click_probability,
        expected_watch_time_s=click_probability * mean_fraction * duration_s
        + (1.0 - click_probability) * longest_autoplay_s / 2.0,
        position_effect=effect,
    )
    # The clicked videos are opened one second apart, then watched.
    of_request, opened = request[clicks], video[clicks]
    user = requests.user[of_request]
    platform.log.append(
        "watches",
        user=user,
        video=opened,
        event_time_us=requests.time_us[of_request]
        + (place[clicks] + 1) * SECOND_US,
        watch_time_s=watch_time_s[clicks],
        completed=fraction >= COMPLETED_FRACTION,
        source=np.zeros(len(clicks), dtype=np.int64),
    )
    # `of_request` rises, so a click's rank is its distance from the first.
    rank = np.arange(len(clicks)) - np.searchsorted(of_request, of_request)
    platform.remember(user, opened, rank)
    sessions.current_video[which[of_request]] = opened
    spent_s = np.bincount(
        of_request, weights=watch_time_s[clicks], minlength=len(which)
    )
    sessions.now_us[which] += BROWSE_US + (spent_s * SECOND_US).astype(np.int64)
