"""The default source: logs of a simulated video platform with known truth.

`simulate` needs no download and no files: it returns the five event tables
of `schemas/events.py`, and beside them, for tests and reports only, the truth
that produced them. No training stage may read `SimulatedLogs.truth`.

What drives whom:
  * `simulated_videos`: topics, channels, uploads, popularity by age.
  * `simulated_users`: interests that drift, subscriptions, devices.
  * `simulated_behaviour`: click probability and expected watch time.
  * `simulated_requests`: the logging recommender, positions, clicks.
  * `simulated_sessions`: visits, searches, watches found otherwise.
  * `simulated_tables`: numbers to Arrow tables.

`completed` means that at least 70 % of the duration was watched.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from beam_jobs.sources import simulated_tables
from beam_jobs.sources.simulated_platform import Platform
from beam_jobs.sources.simulated_sessions import simulate_day
from beam_jobs.sources.simulated_users import drift_interests, make_users
from beam_jobs.sources.simulated_videos import make_catalogue
from schemas.simulator_config import SimulatorConfig


@dataclasses.dataclass(frozen=True)
class SimulatedLogs:
    """Event tables, and the truth behind them.

    Attributes:
      tables: `watches`, `searches`, `impressions`, `videos`, `users`, as
        `schemas/events.py` names their columns.
      truth: `impression_truth`, one row per impression in the same order:
        request_id, video_id, position, click_probability,
        expected_watch_time_s (seconds, clicked or not), position_effect
        (the factor of this position on this device, 1 at position 1),
        randomized (whether the positions were shuffled);
        `video_truth`: video_id, day (from 0), expected_popularity (share of
        that day's attractiveness, summing to 1 over videos);
        `video_traits`: video_id, clickbait, viral, quality (standard
        normal); `position_truth`: device, position, effect.
    """

    tables: dict[str, pa.Table]
    truth: dict[str, pa.Table]


def simulate(config: SimulatorConfig, seed: int) -> SimulatedLogs:
    """Simulates the platform for `config.num_days` days.

    Args:
      config: sizes and shares.
      seed: not negative; the same config and seed give the same tables.

    Returns:
      Event tables and truth. Rows follow the days, but not strictly time.

    Raises:
      ValueError: the seed is negative, or no event happens at all.
    """
    if seed < 0:
        raise ValueError(
            f"Expected a seed of at least 0, received {seed}. Set another."
        )
    # One stream of random numbers per part and day: a day's events do not
    # depend on how many numbers were drawn to make videos or users.
    streams = [
        np.random.default_rng(sequence)
        for sequence in np.random.SeedSequence(seed).spawn(3 + config.num_days)
    ]
    catalogue = make_catalogue(config, streams[0])
    users = make_users(config, catalogue, streams[1])
    platform = Platform(config, catalogue, users)
    for day in range(config.num_days):
        rng = streams[3 + day]
        drift_interests(users, catalogue, config, rng)
        simulate_day(platform, day, rng)
    impressions, impression_truth = simulated_tables.impression_tables(platform)
    return SimulatedLogs(
        tables={
            "watches": simulated_tables.watches_table(platform),
            "searches": simulated_tables.searches_table(platform),
            "impressions": impressions,
            "videos": simulated_tables.videos_table(platform, streams[2]),
            "users": simulated_tables.users_table(platform),
        },
        truth={
            "impression_truth": impression_truth,
            "video_truth": simulated_tables.video_truth(platform),
            "video_traits": simulated_tables.video_traits(platform),
            "position_truth": simulated_tables.position_truth(config),
        },
    )
