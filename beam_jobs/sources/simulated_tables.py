"""The simulated platform's numbers as Arrow tables with string ids.

Strings are made once per distinct id and taken by number, so a million rows
cost no Python object each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.sources.simulated_behaviour import position_effect
from beam_jobs.sources.simulated_platform import SOURCES, Platform
from beam_jobs.sources.simulated_requests import (
    CANDIDATE_SOURCES,
    RELATED,
    SURFACES,
)
from beam_jobs.sources.simulated_users import DEVICES, GENDERS, REGIONS
from beam_jobs.sources.simulated_videos import (
    LANGUAGES,
    Ints,
    attractiveness,
    make_words,
)
from schemas.simulator_config import SimulatorConfig


def _ids(prefix: str, count: int) -> pa.Array:
    """Returns `count` ids of equal length, such as u000042."""
    width = max(6, len(str(count)))
    digits = pc.utf8_lpad(pa.array(np.arange(count)).cast("string"), width, "0")
    return pc.binary_join_element_wise(prefix, digits, "")


def _take(names: pa.Array, number: Ints) -> pa.Array:
    """Returns the name of each number [N], null for -1."""
    return names.take(pa.array(number, mask=number < 0))


def _name(names: Sequence[str], number: Ints) -> pa.Array:
    return _take(pa.array(names), number)


def _join_words(words: pa.Array, numbers: Ints) -> pa.Array:
    """Joins the words of each row [N, W] by spaces, leaving out -1."""
    return pc.binary_join_element_wise(
        *(_take(words, column) for column in numbers.T),
        " ",
        null_handling="skip",
    )


def _user_ids(platform: Platform) -> pa.Array:
    return _ids("u", platform.config.num_users)


def _video_ids(platform: Platform) -> pa.Array:
    return _ids("v", platform.config.num_videos)


def _words(platform: Platform) -> pa.Array:
    return pa.array(make_words(platform.words.total))


def watches_table(platform: Platform) -> pa.Table:
    """Returns the table `watches`."""
    log = platform.log.columns("watches")
    return pa.table(
        {
            "user_id": _take(_user_ids(platform), log["user"]),
            "video_id": _take(_video_ids(platform), log["video"]),
            "event_time_us": log["event_time_us"],
            "watch_time_s": log["watch_time_s"],
            "completed": log["completed"],
            "source": _name(SOURCES, log["source"]),
        }
    )


def searches_table(platform: Platform) -> pa.Table:
    """Returns the table `searches`."""
    log = platform.log.columns("searches")
    return pa.table(
        {
            "user_id": _take(_user_ids(platform), log["user"]),
            "query": _join_words(_words(platform), log["words"]),
            "event_time_us": log["event_time_us"],
        }
    )


def impression_tables(platform: Platform) -> tuple[pa.Table, pa.Table]:
    """Returns the table `impressions`, and the truth in the same order."""
    log = platform.log.columns("impressions")
    requests = platform.log.columns("requests")
    num_shown = requests["num_shown"]
    request = np.repeat(np.arange(len(num_shown)), num_shown)
    propensity = np.where(
        requests["randomized"], 1.0 / np.maximum(num_shown, 1), 1.0
    )
    seeded = log["candidate_source"] == RELATED
    video_ids = _video_ids(platform)
    video_id = _take(video_ids, log["video"])
    request_id = _take(_ids("r", len(num_shown)), request)
    user_id = _take(_user_ids(platform), requests["user"])
    query_id = _take(video_ids, requests["query_video"])
    position = log["place"] + 1
    events = pa.table(
        {
            "user_id": _take(user_id, request),
            "video_id": video_id,
            "event_time_us": requests["event_time_us"][request],
            "request_id": request_id,
            "position": position,
            "surface": _name(SURFACES, requests["surface"][request]),
            "clicked": log["clicked"],
            "watch_time_s": log["watch_time_s"],
            "liked": log["liked"],
            "dismissed": log["dismissed"],
            "candidate_source": _name(
                CANDIDATE_SOURCES, log["candidate_source"]
            ),
            "candidate_score": log["candidate_score"],
            "propensity": propensity[request],
            "query_video_id": _take(query_id, request),
            "seed_video_id": _take(
                video_ids,
                np.where(seeded, requests["seed_video"][request], -1),
            ),
        }
    )
    truth = pa.table(
        {
            "request_id": request_id,
            "video_id": video_id,
            "position": position,
            "click_probability": log["click_probability"],
            "expected_watch_time_s": log["expected_watch_time_s"],
            "position_effect": log["position_effect"],
            "randomized": requests["randomized"][request],
        }
    )
    return events, truth


def videos_table(platform: Platform, rng: np.random.Generator) -> pa.Table:
    """Returns the table `videos`; titles are words of topic and channel."""
    catalogue, words = platform.catalogue, platform.words
    count = len(catalogue.topic)
    title = _join_words(
        _words(platform),
        np.stack(
            [
                words.first_channel + catalogue.channel,
                words.draw_topic_words(rng, catalogue.topic),
                words.draw_topic_words(rng, catalogue.topic),
                words.draw_common_words(rng, count),
            ],
            axis=1,
        ),
    )
    topics = np.stack([catalogue.topic, catalogue.second_topic], axis=1)
    present = topics >= 0
    offsets = np.concatenate([[0], present.sum(axis=1).cumsum()])
    topic_ids = _take(_ids("t", platform.config.num_topics), topics[present])
    episode = pa.array(catalogue.episode).cast("string")
    channel_ids = _ids("c", platform.config.num_channels)
    return pa.table(
        {
            "video_id": _video_ids(platform),
            "channel_id": _take(channel_ids, catalogue.channel),
            "topics": pa.ListArray.from_arrays(
                pa.array(offsets.astype(np.int32)), topic_ids
            ),
            "upload_time_us": catalogue.upload_time_us,
            "duration_s": catalogue.duration_s,
            "language": _name(LANGUAGES, catalogue.language),
            "title": pc.binary_join_element_wise(title, episode, " #"),
        }
    )


def users_table(platform: Platform) -> pa.Table:
    """Returns the table `users`; logged-out users lack gender and age."""
    users = platform.users
    age_known = users.logged_in & users.age_known
    return pa.table(
        {
            "user_id": _user_ids(platform),
            "region": _name(REGIONS, users.region),
            "device": _name(DEVICES, users.device),
            "language": _name(LANGUAGES, users.language),
            "gender": _name(
                GENDERS, np.where(users.logged_in, users.gender, -1)
            ),
            "age": pa.array(users.age, mask=~age_known),
            "logged_in": users.logged_in,
        }
    )


def video_truth(platform: Platform) -> pa.Table:
    """Returns each video's share of the attractiveness of every day."""
    config = platform.config
    shares = []
    for number in range(config.num_days):
        pull = attractiveness(platform.catalogue, config, number)
        shares.append(pull / pull.sum())
    video = np.tile(np.arange(config.num_videos), config.num_days)
    day = np.repeat(np.arange(config.num_days), config.num_videos)
    return pa.table(
        {
            "video_id": _take(_video_ids(platform), video),
            "day": day,
            "expected_popularity": np.concatenate(shares),
        }
    )


def video_traits(platform: Platform) -> pa.Table:
    """Returns what no event table says of a video."""
    catalogue = platform.catalogue
    return pa.table(
        {
            "video_id": _video_ids(platform),
            "clickbait": catalogue.clickbait,
            "viral": catalogue.viral,
            "quality": catalogue.quality,
        }
    )


def position_truth(config: SimulatorConfig) -> pa.Table:
    """Returns the factor of each device and position on the click."""
    positions = np.arange(1, config.impressions_per_request + 1)
    device = np.repeat(np.arange(len(DEVICES)), len(positions))
    position = np.tile(positions, len(DEVICES))
    return pa.table(
        {
            "device": _name(DEVICES, device),
            "position": position,
            "effect": position_effect(device, position),
        }
    )
