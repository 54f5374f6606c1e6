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
    position_effect,
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
    draw_shares,
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
HOME_MIX = np.array([0.12, 0.28, 0.25, 0.12, 0.18, 0.05])
WATCH_NEXT_MIX = np.array([0.08, 0.12, 0.10, 0.05, 0.60, 0.05])
WATCH_NEXT_SHARE = 0.6
CANDIDATES_PER_SHOWN = 2
SECOND_US = 1_000_000
# Looking over the videos shown takes this long.
BROWSE_US = 20 * SECOND_US


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests of one moment of the day, one array element per request."""

    number: Ints
    user: Ints
    time_us: Ints
    surface: Ints
    query_video: Ints
    seed_video: Ints
    session_topic: Ints
    randomized: Bools


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Flat candidates [N], or those shown of them; -1 marks no seed."""

    request: Ints
    video: Ints
    source: Ints
    seed_video: Ints
    score: Floats
    logit: Floats
    liking: Floats

    def take(self, rows: Ints) -> Candidates:
        """Returns the given rows."""
        return Candidates(
            *(
                getattr(self, field.name)[rows]
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
    shown, position, num_shown = _rank(platform, requests, candidates, rng)
    _watch(platform, sessions, which, requests, shown, position, num_shown, rng)


def _open_requests(
    platform: Platform,
    sessions: Sessions,
    which: Ints,
    rng: np.random.Generator,
) -> Requests:
    count = len(which)
    number = platform.num_requests + np.arange(count)
    platform.num_requests += count
    user, current = sessions.user[which], sessions.current_video[which]
    autoplay = rng.random(count) < platform.config.autoplay_share
    surface = np.where(autoplay, SHORTS, HOME)
    on_video = (current >= 0) & (rng.random(count) < WATCH_NEXT_SHARE)
    surface[on_video] = WATCH_NEXT
    return Requests(
        number=number,
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
    per_request = CANDIDATES_PER_SHOWN * platform.config.impressions_per_request
    request = np.repeat(np.arange(len(requests.user)), per_request)
    on_video = (requests.surface == WATCH_NEXT)[request]
    source = np.where(
        on_video,
        draw_shares(rng, WATCH_NEXT_MIX, len(request)),
        draw_shares(rng, HOME_MIX, len(request)),
    )
    video = np.full(len(request), -1)
    for number in range(len(CANDIDATE_SOURCES)):
        rows = np.flatnonzero(source == number)
        video[rows] = _draw_from(platform, requests, number, request[rows], rng)
    time_us = requests.time_us[request]
    query = requests.query_video[request]
    void = ~platform.is_uploaded(video, time_us) | (video == query)
    video[void] = -1

    user = requests.user[request]
    seen = platform.has_seen(user, video)
    liking = affinity(platform.users, platform.catalogue, user, video)
    return Candidates(
        request=request,
        video=video,
        source=source,
        seed_video=np.where(
            source == RELATED, requests.seed_video[request], -1
        ),
        # What a retrieval model may know: the liking, and how videos do.
        score=1.8 * liking
        + 0.3 * np.log(platform.catalogue.appeal[video])
        + rng.normal(0.0, 0.6, len(request)),
        logit=click_logit(
            platform.users,
            platform.catalogue,
            user,
            video,
            query,
            seen,
            liking,
        ),
        liking=liking,
    )


def _draw_from(
    platform: Platform,
    requests: Requests,
    source: int,
    request: Ints,
    rng: np.random.Generator,
) -> Ints:
    """Draws one video per row [N] from a candidate source, -1 for none."""
    users, catalogue = platform.users, platform.catalogue
    user, uniform = requests.user[request], rng.random(len(request))
    if source == POPULAR:
        language = draw_language(users, user, rng)
        return platform.by_language.draw(language, uniform)
    if source == SUBSCRIPTION:
        channel = draw_subscription(users, user, rng)
        return platform.by_channel.draw(channel, uniform)
    if source == EXPLORE:
        return platform.uploaded.draw(np.zeros_like(user), uniform)
    if source == RELATED:
        seed = requests.seed_video[request]
        of_channel = platform.by_channel.draw(catalogue.channel[seed], uniform)
        of_topic = platform.draw_of_topic(
            catalogue.topic[seed], catalogue.language[seed], uniform
        )
        drawn = np.where(rng.random(len(seed)) < 0.5, of_channel, of_topic)
        return np.where(seed >= 0, drawn, -1)
    topic = np.where(
        rng.random(len(user)) < 0.3,
        requests.session_topic[request],
        draw_interest(users, user, rng),
    )
    language = draw_language(users, user, rng)
    if source == FRESH:
        return platform.draw_fresh_of_topic(topic, language, uniform)
    return platform.draw_of_topic(topic, language, uniform)


def _rank(
    platform: Platform,
    requests: Requests,
    candidates: Candidates,
    rng: np.random.Generator,
) -> tuple[Candidates, Ints, Ints]:
    """Chooses what is shown and where.

    Returns:
      The candidates shown [N], their positions from 1 [N], and the number
      shown of each request [R], smaller than asked where candidates ran out.
    """
    count = len(requests.user)
    most = platform.config.impressions_per_request
    video = candidates.video.reshape(count, -1)
    by_video = np.argsort(video, axis=1, kind="stable")
    ordered = np.take_along_axis(video, by_video, axis=1)
    useless = ordered < 0
    useless[:, 1:] |= ordered[:, 1:] == ordered[:, :-1]
    void = np.empty_like(useless)
    np.put_along_axis(void, by_video, useless, axis=1)

    guess = candidates.logit + 0.4 * candidates.score
    guess = guess + rng.normal(0.0, 0.7, len(guess))
    guess = np.where(void, -np.inf, guess.reshape(count, -1))
    best = np.argsort(-guess, axis=1, kind="stable")[:, :most]
    num_shown = np.minimum((~void).sum(axis=1), most)
    place = np.broadcast_to(np.arange(most), (count, most))
    shuffled = np.where(
        place < num_shown[:, None], rng.random((count, most)), np.inf
    )
    order = np.where(
        requests.randomized[:, None], np.argsort(shuffled, axis=1), place
    )
    best = np.take_along_axis(best, order, axis=1)
    rows = best + (np.arange(count) * video.shape[1])[:, None]
    shown = place < num_shown[:, None]
    return candidates.take(rows[shown]), place[shown] + 1, num_shown


def _watch(
    platform: Platform,
    sessions: Sessions,
    which: Ints,
    requests: Requests,
    shown: Candidates,
    position: Ints,
    num_shown: Ints,
    rng: np.random.Generator,
) -> None:
    """Draws clicks and watches, logs them, and moves the sessions on."""
    catalogue, request, video = platform.catalogue, shown.request, shown.video
    user = requests.user[request]
    effect = position_effect(platform.users.device[user], position)
    click_probability = sigmoid(shown.logit) * effect
    clicked = rng.random(len(video)) < click_probability
    mean_fraction = watch_fraction(catalogue, video, shown.liking)
    duration_s = catalogue.duration_s[video]
    longest_autoplay_s = np.where(
        requests.surface[request] == SHORTS,
        np.minimum(duration_s, AUTOPLAY_S),
        0.0,
    )
    clicks = np.flatnonzero(clicked)
    fraction = draw_fractions(rng, mean_fraction[clicks])
    watch_time_s = rng.random(len(video)) * longest_autoplay_s
    watch_time_s[clicks] = fraction * duration_s[clicks]
    like_probability = np.zeros(len(video))
    like_probability[clicks] = (
        0.3 * fraction * sigmoid(catalogue.quality[video[clicks]] - 1.0)
    )
    dismiss_probability = np.where(
        clicked, 0.0, 0.004 + 0.02 * sigmoid(-shown.logit - 3.0)
    )
    in_slice = requests.randomized[request]
    platform.log.append(
        "impressions",
        user=user,
        video=video,
        event_time_us=requests.time_us[request],
        request=requests.number[request],
        position=position,
        surface=requests.surface[request],
        clicked=clicked,
        watch_time_s=watch_time_s,
        liked=rng.random(len(video)) < like_probability,
        dismissed=rng.random(len(video)) < dismiss_probability,
        candidate_source=shown.source,
        candidate_score=shown.score,
        propensity=np.where(in_slice, 1.0 / num_shown[request], 1.0),
        query_video=requests.query_video[request],
        seed_video=shown.seed_video,
        click_probability=click_probability,
        expected_watch_time_s=click_probability * mean_fraction * duration_s
        + (1.0 - click_probability) * longest_autoplay_s / 2.0,
        position_effect=effect,
        randomized=in_slice,
    )
    # The clicked videos are opened one second apart, then watched.
    platform.log.append(
        "watches",
        user=user[clicks],
        video=video[clicks],
        event_time_us=requests.time_us[request[clicks]]
        + position[clicks] * SECOND_US,
        watch_time_s=watch_time_s[clicks],
        completed=fraction >= COMPLETED_FRACTION,
        source=np.zeros(len(clicks), dtype=np.int64),
    )
    of_request = request[clicks]
    # `of_request` rises, so a click's rank is its distance from the first.
    rank = np.arange(len(clicks)) - np.searchsorted(of_request, of_request)
    platform.remember(user[clicks], video[clicks], rank)
    sessions.current_video[which[of_request]] = video[clicks]
    spent_s = np.bincount(
        of_request, weights=watch_time_s[clicks], minlength=len(which)
    )
    sessions.now_us[which] += BROWSE_US + (spent_s * SECOND_US).astype(np.int64)
