"""Off-policy estimates against all orders, and against a known truth."""

import itertools
import math

import numpy as np
import pytest

from beam_jobs.sources.simulated import simulate
from beam_jobs.sources.simulated_behaviour import position_effect
from beam_jobs.sources.simulated_users import DEVICES
from models.off_policy import Placement, RandomizedLog, estimates
from models.user_bootstrap import UserBootstrap
from schemas.hashing import hash_strings
from schemas.simulator_config import SimulatorConfig

EFFECT = np.array([1.0, 0.6, 0.3])


def shown(orders):
    """A log of requests with 3 videos; orders[r][i] is the place of i."""
    place = np.asarray(orders).ravel()
    request = np.repeat(np.arange(len(orders)), 3)
    return RandomizedLog.of(request, place + 1, np.full(place.size, 1 / 6 * 2))


def test_which_requests_are_taken_and_how_positions_become_places():
    nan = math.nan
    log = RandomizedLog.of(
        #        shuffled     as ranked  one unknown  lost pos.  twice
        np.array([9, 9, 9, 4, 4, 5, 5, 6, 6, 7, 7]),
        np.array([7, 2, 4, 1, 2, 1, 2, 0, 1, 3, 3]),
        np.array([0.3, 0.3, 0.4, 1, 1, 0.5, nan, 0.5, 0.5, 0.5, 0.5]),
    )
    assert log.requests == 1
    # In rising order of position: 2, 4, 7.
    np.testing.assert_array_equal(log.rows, [1, 2, 0])
    np.testing.assert_array_equal(log.place, [0, 1, 2])
    np.testing.assert_array_equal(log.propensity, [0.3, 0.4, 0.3])


def test_ties_share_their_places():
    # Scores 5, 7, 5, 1 of request 0, and one video of request 1.
    request = np.array([0, 0, 0, 0, 1])
    placement = Placement.by(np.array([5.0, 7.0, 5.0, 1.0, 2.0]), request)
    found = [placement.probability(np.full(5, place)) for place in range(4)]
    np.testing.assert_array_equal(
        np.stack(found, axis=1),
        [
            [0, 0.5, 0.5, 0],
            [1, 0, 0, 0],
            [0, 0.5, 0.5, 0],
            [0, 0, 0, 1],
            [1, 0, 0, 0],
        ],
    )
    of_place = np.tile([8.0, 4.0, 2.0, 1.0], (5, 1))
    np.testing.assert_allclose(placement.mean(of_place), [3, 8, 3, 1, 8])


@pytest.mark.parametrize("score", [(1.0, 3.0, 2.0), (2.0, 2.0, 1.0)])
def test_the_mean_over_all_orders_is_the_value_of_the_new_order(score):
    # Video i at place k earns base[i] * EFFECT[k]; two requests alike, so
    # that 36 pairs of orders are all that could have been drawn.
    base = np.array([10.0, 20.0, 40.0])
    orders = list(itertools.permutations(range(3)))
    truth = np.mean(
        [
            (base * EFFECT[list(order)]).sum()
            for order in orders
            # What sorts by falling score, ties in either order.
            if all(
                score[i] >= score[j]
                for i in range(3)
                for j in range(3)
                if order[i] < order[j]
            )
        ]
    )
    values = {"ips": [], "doubly_robust": [], "as_shown": []}
    for pair in itertools.product(orders, repeat=2):
        log = shown(pair)
        video = log.rows % 3
        # A prediction that is wrong, differently for each video.
        found = estimates(
            log,
            np.array(score)[video],
            base[video] * EFFECT[log.place],
            np.array([30.0, 5.0, 8.0])[video],
        )
        for name, of_name in values.items():
            of_name.append(found[name].value)
    assert np.mean(values["ips"]) == pytest.approx(truth)
    assert np.mean(values["doubly_robust"]) == pytest.approx(truth)
    assert np.mean(values["as_shown"]) == pytest.approx(
        base.sum() * EFFECT.mean()
    )


def test_a_right_reward_model_leaves_no_noise_in_the_doubly_robust():
    base = np.array([10.0, 20.0, 40.0])
    rng = np.random.default_rng(0)
    log = shown([rng.permutation(3) for _ in range(50)])
    video = log.rows % 3
    found = estimates(
        log, -base[video], base[video] * EFFECT[log.place], 2.0 * base[video]
    )
    truth = (base * EFFECT).sum()
    np.testing.assert_allclose(found["doubly_robust"].value, truth)
    assert abs(found["ips"].value - truth) > 0.1


def test_snips_of_a_constant_reward_is_exact():
    rng = np.random.default_rng(1)
    log = shown([rng.permutation(3) for _ in range(40)])
    score = rng.normal(size=120)
    found = estimates(log, score, np.full(120, 0.25), None)
    np.testing.assert_allclose(found["snips"].value, 0.75)
    assert found["ips"].value != pytest.approx(0.75)
    assert "doubly_robust" not in found


def covered(found, truth, user, users, seed):
    bootstrap = UserBootstrap(users, 200, seed)
    ends = {k: bootstrap.interval(r, user) for k, r in found.items()}
    return {k: low <= truth <= high for k, (low, high) in ends.items()}


def at_least(covering, least):
    shares = {k: sum(c[k] for c in covering) for k in covering[0]}
    assert min(shares.values()) >= least, shares


@pytest.mark.slow
@pytest.mark.parametrize("watch_time", [False, True])
def test_intervals_cover_the_truth_of_a_small_generator(watch_time):
    # 400 users of 5 requests of 5 videos; clicks by chance, or seconds.
    requests, videos = 2000, 5
    effect = np.arange(1, videos + 1) ** -0.7
    covering = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        appeal = 1 / (1 + np.exp(2 - rng.normal(size=(requests, videos))))
        seconds = rng.exponential(60.0, (requests, videos))
        score = appeal + 0.2 * rng.normal(size=appeal.shape)
        place = rng.permuted(np.tile(np.arange(videos), (requests, 1)), axis=1)
        chance = appeal * effect[place]
        reward = (rng.random(chance.shape) < chance).astype(float)
        worth = np.ones_like(appeal)
        if watch_time:
            reward *= rng.exponential(seconds)
            worth = seconds
        # Brute force: put every video where the score puts it.
        new = np.argsort(np.argsort(-score, axis=1), axis=1)
        truth = (appeal * effect[new] * worth).sum(axis=1).mean()
        request = np.repeat(np.arange(requests), videos)
        log = RandomizedLog.of(
            request, place.ravel() + 1, np.full(request.size, 1 / videos)
        )
        found = estimates(
            log,
            score.ravel()[log.rows],
            reward.ravel()[log.rows],
            (appeal * worth).ravel()[log.rows] ** 0.8,
        )
        del found["as_shown"]
        user = request[log.rows] // 5
        covering.append(covered(found, truth, user, 400, seed))
    # 380 expected, with a deviation of 4.4.
    at_least(covering, 372)


@pytest.mark.slow
def test_intervals_cover_the_truth_of_the_simulator():
    # What the log says of impressions, beside the truth that it hides.
    covering = []
    for seed in range(100):
        config = SimulatorConfig(
            num_users=300,
            num_videos=300,
            num_channels=30,
            num_topics=8,
            num_days=3,
            requests_per_user_day=1.2,
            randomized_share=0.9,
        )
        logs = simulate(config, seed)
        table = logs.tables["impressions"]
        truth = logs.truth["impression_truth"]
        log = RandomizedLog.of(
            hash_strings(table["request_id"]),
            table["position"].to_numpy(),
            table["propensity"].to_numpy(),
        )

        def of_log(source, name, log=log):
            values = source[name].combine_chunks().to_numpy(False)
            return values[log.rows]

        shuffled = of_log(truth, "randomized")
        assert shuffled.all()
        # Logged before anything was shown; the positions are not in it.
        score = of_log(table, "candidate_score")
        users = logs.tables["users"]
        device = dict(
            zip(
                users["user_id"].to_pylist(),
                users["device"].to_pylist(),
                strict=True,
            )
        )
        device = np.array(
            [DEVICES.index(device[u]) for u in of_log(table, "user_id")]
        )
        # Brute force: the chance of a click at position 1, times the factor
        # of the position that the new order gives.
        order = np.lexsort((-score, log.request))
        new = np.empty(len(order), np.int64)
        start = np.searchsorted(log.request, log.request)
        new[order] = np.arange(len(order)) - start
        appeal = of_log(truth, "click_probability") / of_log(
            truth, "position_effect"
        )
        worth = appeal * position_effect(device, new + 1)
        found = estimates(
            log,
            score,
            of_log(table, "clicked").astype(float),
            1.0 / (1.0 + np.exp(3.0 - score)),
        )
        del found["as_shown"]
        user = np.unique(of_log(table, "user_id"), return_inverse=True)[1]
        covering.append(
            covered(
                found,
                worth.sum() / log.requests,
                user,
                int(user.max()) + 1,
                seed,
            )
        )
    at_least(covering, 93)
