"""The simulator's formulas and draws, against hand arithmetic."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs.sources import simulated_behaviour as behaviour
from beam_jobs.sources.simulated_platform import Platform
from beam_jobs.sources.simulated_users import (
    Users,
    drift_interests,
    make_users,
)
from beam_jobs.sources.simulated_videos import (
    Catalogue,
    GroupSampler,
    ShareTable,
    attractiveness,
    draw_shares,
    make_catalogue,
    make_words,
    zipf_shares,
)
from schemas.simulator_config import SimulatorConfig

CONFIG = SimulatorConfig(
    num_users=500,
    num_videos=300,
    num_channels=40,
    num_topics=10,
    num_days=3,
    interest_drift_per_day=0.5,
)
START_US = 1_704_067_200_000_000
DAY_US = 86_400_000_000


@pytest.fixture
def catalogue() -> Catalogue:
    return make_catalogue(CONFIG, np.random.default_rng(1))


@pytest.fixture
def users(catalogue: Catalogue) -> Users:
    return make_users(CONFIG, catalogue, np.random.default_rng(2))


@given(data=st.data())
def test_group_draws_equal_a_walk_along_the_group(data: st.DataObject) -> None:
    # Whole weights and sixty-fourths keep every sum exact.
    size = data.draw(st.integers(1, 12))
    groups = st.lists(st.integers(0, 3), min_size=size, max_size=size)
    group = data.draw(groups)
    weights = data.draw(
        st.lists(st.integers(0, 3), min_size=size, max_size=size)
    )
    sampler = GroupSampler(np.array(group), 4)
    sampler.reweight(np.array(weights, dtype=float))
    for wanted in range(4):
        members = [v for v in range(size) if group[v] == wanted]
        total = sum(weights[v] for v in members)
        for step in range(0, 64, 7):
            expected, left = -1, step / 64 * total
            for video in members:
                left -= weights[video]
                if left < 0:
                    expected = video
                    break
            drawn = sampler.draw(np.array([wanted]), np.array([step / 64]))
            assert drawn.tolist() == [expected]


def test_shares_are_drawn_as_often_as_they_say() -> None:
    # Ranks 1, 2, 3 at exponent 1: 6/11, 3/11, 2/11.
    shares = zipf_shares(3, 1.0)
    np.testing.assert_allclose(shares, [6 / 11, 3 / 11, 2 / 11])
    drawn = draw_shares(np.random.default_rng(0), shares, 110_000)
    # Standard deviations: at most 166.
    np.testing.assert_allclose(
        np.bincount(drawn), [60_000, 30_000, 20_000], atol=700
    )


def test_groups_of_the_platform_hold_what_their_names_say(
    catalogue: Catalogue, users: Users
) -> None:
    platform = Platform(CONFIG, catalogue, users)
    platform.start_day(1)
    rng, times = np.random.default_rng(4), 2000
    topic, language = rng.integers(0, 10, times), rng.integers(0, 5, times)
    channel = rng.integers(0, CONFIG.num_channels, times)
    fresh = platform.draw(platform.fresh_of_topic(topic, language), rng)
    usual = platform.draw(platform.of_topic(topic, language), rng)
    for drawn in (fresh, usual):
        found = drawn >= 0
        assert 100 < found.sum() < times
        assert (catalogue.topic[drawn] == topic)[found].all()
        assert (catalogue.language[drawn] == language)[found].all()
    # New is what was uploaded at most two days before the day begins.
    uploaded_us = catalogue.upload_time_us[fresh[fresh >= 0]]
    assert uploaded_us.min() > START_US + DAY_US - 2 * DAY_US
    assert catalogue.upload_time_us[usual[usual >= 0]].min() < START_US - DAY_US
    drawn = platform.draw(platform.of_channel(channel), rng)
    assert (catalogue.channel[drawn] == channel)[drawn >= 0].all()
    drawn = platform.draw(language, rng)
    assert (catalogue.language[drawn] == language)[drawn >= 0].all()
    assert (platform.draw(np.full(9, platform.nothing), rng) == -1).all()
    # Any uploaded video is as likely as another.
    drawn = platform.draw(np.full(60_000, platform.uploaded), rng)
    there = catalogue.upload_time_us < START_US + 2 * DAY_US
    counts = np.bincount(drawn, minlength=CONFIG.num_videos)
    assert not counts[~there].any()
    mean = 60_000 / there.sum()
    assert abs(counts[there] - mean).max() < 5 * np.sqrt(mean)


def test_a_share_table_draws_each_rows_shares() -> None:
    # 1/4, 3/4 and 1, 0: whole cells of 4096, so exact.
    table = ShareTable(np.array([[0.25, 0.75], [2.0, 0.0]]))
    row = np.repeat([0, 1], 40_000)
    drawn = table.draw(np.random.default_rng(0), len(row), row)
    assert not drawn[row == 1].any()
    # Standard deviation: sqrt(40,000 x 3/16) = 87.
    assert abs(drawn[row == 0].sum() - 30_000) < 4.5 * 87
    # Ten shares of 1/10 are 409.6 cells each: 409 or 410, never none.
    tenth = ShareTable(np.ones(10)).draw(np.random.default_rng(1), 400_000)
    # Standard deviation 190, and at most 1 / 4096 x 400,000 = 98 of rounding.
    np.testing.assert_allclose(np.bincount(tenth), 40_000, atol=1000)


@given(data=st.data())
def test_is_among_equals_a_search_in_each_row(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([8, 24]))
    seed = data.draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    row = rng.integers(-1, 20, (3, 1, width))
    value = rng.integers(-1, 20, (3, 5))
    expected = [[v in row[r, 0].tolist() for v in value[r]] for r in range(3)]
    assert behaviour.is_among(value, row).tolist() == expected


def test_attractiveness_follows_the_curve_of_age(catalogue: Catalogue) -> None:
    def always(value: float) -> np.ndarray:
        return np.full(CONFIG.num_videos, value)

    # Ages at the end of day 0: 2, 4 and 0.5 days, then not yet uploaded.
    upload_us = np.full(CONFIG.num_videos, START_US)
    upload_us[:4] += np.array([-2, -6, 1, 3]) * (DAY_US // 2)
    changed = dataclasses.replace(
        catalogue,
        upload_time_us=upload_us,
        appeal=always(5.0),
        peak_age_days=always(2.0),
        boost=always(3.0),
    )
    pull = attractiveness(changed, CONFIG, day=0)[:4]
    # 5 (0.2 + 3 x 1 x e^0) = 16; 5 (0.2 + 3 x 2 / e) = 12.0364;
    # 5 (0.2 + 3 x 0.25 x e^0.75) = 8.9388; 0.
    np.testing.assert_allclose(pull, [16.0, 12.0364, 8.9388, 0.0], atol=1e-4)


def test_channels_know_their_next_upload(catalogue: Catalogue) -> None:
    assert (np.diff(catalogue.upload_time_us) >= 0).all()
    for video in range(CONFIG.num_videos):
        same = np.flatnonzero(catalogue.channel == catalogue.channel[video])
        later = same[same > video]
        expected = later[0] if len(later) else -1
        assert catalogue.next_in_channel[video] == expected
        assert catalogue.episode[video] == (same <= video).sum()
    assert set(catalogue.channel) == set(range(CONFIG.num_channels))


def test_words_are_distinct() -> None:
    words = make_words(20_000)
    assert len(set(words)) == 20_000
    assert all(word.isalpha() and len(word) == 6 for word in words)
    with pytest.raises(ValueError, match="at most 421875"):
        make_words(421_876)


def test_drift_swaps_one_interest_and_keeps_the_weights(
    users: Users, catalogue: Catalogue
) -> None:
    before = users.interest.copy()
    drift_interests(users, catalogue, CONFIG, np.random.default_rng(3))
    changed = (before != users.interest).sum(axis=1)
    # Half the users try; about half of the draws are topics they have.
    assert set(changed.tolist()) == {0, 2}
    assert 0.1 < (changed == 2).mean() < 0.4
    for topics, weights in zip(
        users.interest_topics, users.interest, strict=True
    ):
        np.testing.assert_allclose(weights[topics], [1.0, 0.75, 0.55, 0.4, 0.3])
        assert (weights > 0).sum() == 5


def test_subscriptions_are_channels_of_the_users_topics(
    users: Users, catalogue: Catalogue
) -> None:
    topics = catalogue.channel_topic[users.subscriptions]
    liked = (topics[:, :, None] == users.interest_topics[:, None, :]).any(2)
    assert liked.all()


def test_position_effect_by_hand() -> None:
    # Mobile, desktop, tv, tablet at position 4, and position 1.
    effect = behaviour.position_effect(
        np.array([0, 1, 2, 3, 2]), np.array([4, 4, 4, 4, 1])
    )
    # 4 ** -0.7, 4 ** -0.35, 4 ** -0.9, 4 ** -0.5, 1.
    np.testing.assert_allclose(
        effect, [0.37893, 0.61557, 0.28717, 0.5, 1.0], atol=1e-5
    )


def test_affinity_adds_topics_and_subscription(
    users: Users, catalogue: Catalogue
) -> None:
    users.interest[:] = 0.0
    users.interest[0, 3] = 1.0
    users.interest[0, 9] = 0.5
    users.subscriptions[:] = 0
    topic, second = np.array([3, 3, 9, 1]), np.array([-1, 9, 3, -1])
    channel = np.array([1, 0, 1, 0])
    changed = dataclasses.replace(
        catalogue, topic=topic, second_topic=second, channel=channel
    )
    liking = behaviour.affinity(
        users, changed, np.zeros(4, dtype=int), np.arange(4)
    )
    # 1; 1 + 0.4 x 0.5 + 0.6 subscribed; 0.5 + 0.4 x 1; 0.6.
    np.testing.assert_allclose(liking, [1.0, 1.8, 0.9, 0.6])


def test_click_logit_by_hand(users: Users, catalogue: Catalogue) -> None:
    size = 6
    changed = dataclasses.replace(
        catalogue,
        quality=np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
        clickbait=np.array([0, 0, 1, 0, 0, 0], dtype=bool),
        language=np.array([0, 0, 0, 0, 1, 0]),
        channel=np.array([0, 1, 2, 3, 4, 0]),
        topic=np.array([0, 1, 2, 3, 4, 0]),
    )
    users.language[0] = 0
    users.click_bias[0] = 0.1
    logit = behaviour.click_logit(
        users,
        changed,
        np.zeros(size, dtype=int),
        np.arange(size),
        np.array([-1, -1, -1, -1, -1, 0]),
        np.array([0, 0, 0, 1, 0, 0], dtype=bool),
        np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    )
    # -3.4 + 0.1 bias, plus 1.8 liking; 0.4 quality; 1.3 clickbait;
    # -1.5 seen; -2 foreign; 0.7 + 0.5 same channel and topic as the query.
    np.testing.assert_allclose(
        logit, [-1.5, -2.9, -2.0, -4.8, -5.3, -2.1], atol=1e-12
    )


def test_watch_fraction_by_hand(catalogue: Catalogue) -> None:
    changed = dataclasses.replace(
        catalogue,
        quality=np.array([0.0, 1.0, 0.0, 0.0]),
        clickbait=np.array([False, False, True, False]),
        duration_s=np.array([300.0, 300.0, 300.0, 300.0 * np.e**2]),
    )
    mean = behaviour.watch_fraction(
        changed, np.arange(4), np.array([0.0, 1.0, 0.0, 0.0])
    )
    # sigmoid of 0.3; 0.3 + 0.9 + 0.5 = 1.7; 0.3 - 2.2 = -1.9; 0.3 - 1 = -0.7.
    np.testing.assert_allclose(
        mean, [0.57444, 0.84553, 0.13011, 0.33181], atol=1e-5
    )


def test_watched_shares_have_their_mean() -> None:
    rng = np.random.default_rng(5)
    for mean in (0.05, 0.5, 0.9):
        drawn = behaviour.draw_fractions(rng, np.full(40_000, mean))
        # Uniform on (0, m) with probability 1 - m, else on (m, 1): the second
        # moment is (1 - m) m^2 / 3 + m (1 + m + m^2) / 3 = m (1 + 2 m) / 3,
        # less m^2: a variance of m (1 - m) / 3.
        deviation = np.sqrt(mean * (1 - mean) / 3 / 40_000)
        assert abs(drawn.mean() - mean) < 4.5 * deviation
        assert drawn.var() == pytest.approx(mean * (1 - mean) / 3, rel=0.05)
