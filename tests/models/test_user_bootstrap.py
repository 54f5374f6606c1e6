"""The bootstrap against metrics of rows that are really repeated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from models import ranking_metrics, user_bootstrap
from models.user_bootstrap import UserBootstrap

USERS = 6
ROWS = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.25, 0.5, 0.9]),
        st.booleans(),
        st.sampled_from([0.0, 1.0, 2.5, 30.0]),
        st.integers(0, USERS - 1),
    ),
    min_size=1,
    max_size=30,
)
COUNTS = st.lists(st.integers(0, 3), min_size=USERS, max_size=USERS)


def sums_of_users(score, clicked, watch_time_s, user):
    loss, ties = ranking_metrics.weighted_per_user_loss(
        score, clicked, watch_time_s, user
    )
    return [
        loss,
        ties,
        ranking_metrics.auc_per_user(score, clicked, user),
        ranking_metrics.log_loss(score, clicked),
        ranking_metrics.mae(score, watch_time_s),
        ranking_metrics.mse(score, watch_time_s),
        ranking_metrics.calibration(score, watch_time_s),
    ]


@given(ROWS, COUNTS)
@settings(max_examples=200)
def test_weights_are_counts_of_repeated_users(rows, counts):
    columns = [np.array(c, float) for c in zip(*rows, strict=True)]
    score, clicked, watch_time_s, user = columns
    user = user.astype(int)
    bootstrap = UserBootstrap(USERS, 1, 0)
    bootstrap._drawn = np.array([counts], float)
    # Each copy of a user is another user.
    repeated = np.concatenate(
        [np.flatnonzero(user == u) for u in range(USERS) for _ in range(3)]
    )
    copy = np.concatenate(
        [
            np.full((user == u).sum(), 3 * u + i)
            for u in range(USERS)
            for i in range(3)
        ]
    )
    drawn = copy % 3 < np.array(counts)[copy // 3]
    rows_drawn, copy = repeated[drawn], copy[drawn]
    expected = sums_of_users(
        score[rows_drawn], clicked[rows_drawn], watch_time_s[rows_drawn], copy
    )
    for found, oracle in zip(
        sums_of_users(score, clicked, watch_time_s, user), expected, strict=True
    ):
        np.testing.assert_allclose(
            bootstrap.values(found, user)[0], oracle.value, rtol=1e-9
        )


def clustered(rng, users, per_user, spread=1.0):
    """Scores and clicks that users differ in: (score, clicked, user)."""
    user = np.repeat(np.arange(users), per_user)
    liking = rng.normal(size=users)[user] * spread
    score = rng.normal(size=user.size) + liking
    chance = 1.0 / (1.0 + np.exp(1.5 - 0.8 * score - 0.5 * liking))
    return score, (rng.random(user.size) < chance).astype(float), user


@pytest.mark.parametrize("of_clicks", [True, False])
def test_metrics_of_pairs_are_those_of_weighted_pairs(of_clicks):
    # To first order in 1 / users: the draws agree but for a small part.
    rng = np.random.default_rng(5)
    score, clicked, user = clustered(rng, 300, 6)
    target = clicked if of_clicks else np.round(np.exp(score + clicked), 1)
    bootstrap = UserBootstrap(300, 60, 1)
    ratio = ranking_metrics.watch_time_xauc(score, target)
    found = bootstrap.values(ratio, user)
    exact = []
    for counts in bootstrap._drawn:
        weight = counts[user]
        if of_clicks:
            exact.append(
                metrics.roc_auc_score(clicked, score, sample_weight=weight)
            )
            continue
        pair = weight[:, None] * weight * (target[:, None] > target)
        right = (score[:, None] > score) + 0.5 * (score[:, None] == score)
        exact.append((pair * right).sum() / pair.sum())
    spread = np.std(exact)
    assert np.std(found - exact) < 0.15 * spread
    assert abs(np.mean(found - exact)) < 0.1 * spread


def test_seed_names_the_draws_and_more_users_than_clusters_are_joined(
    monkeypatch,
):
    rng = np.random.default_rng(6)
    score, clicked, user = clustered(rng, 4000, 3)
    ratio = ranking_metrics.auc(score, clicked)
    whole = UserBootstrap(4000, 400, 1).interval(ratio, user)
    assert whole == UserBootstrap(4000, 400, 1).interval(ratio, user)
    assert whole != UserBootstrap(4000, 400, 2).interval(ratio, user)
    monkeypatch.setattr(user_bootstrap, "MOST_CLUSTERS", 500)
    joined = UserBootstrap(4000, 400, 1).interval(ratio, user)
    width = whole[1] - whole[0]
    np.testing.assert_allclose(joined, whole, atol=0.15 * width)


def test_what_hangs_on_one_user_has_no_interval():
    # One user in ten clicked: a third of the resamples lack that user.
    clicked, user = np.zeros(20), np.arange(20) // 2
    clicked[0] = 1.0
    calibration = ranking_metrics.calibration(np.ones(20), clicked)
    assert calibration.value == 20.0
    assert UserBootstrap(10, 200, 0).interval(calibration, user) is None


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["auc", "log_loss", "auc_per_user"])
def test_intervals_cover_the_truth_where_users_differ(metric):
    def value(rng, users):
        score, clicked, user = clustered(rng, users, 8)
        chance = 1.0 / (1.0 + np.exp(1.5 - score))
        return {
            "auc": lambda: ranking_metrics.auc(score, clicked),
            "log_loss": lambda: ranking_metrics.log_loss(chance, clicked),
            "auc_per_user": lambda: ranking_metrics.auc_per_user(
                score, clicked, user
            ),
        }[metric](), user

    truth = value(np.random.default_rng(0), 200_000)[0].value
    covered, rows_covered = 0, 0
    for seed in range(1, 401):
        ratio, user = value(np.random.default_rng(seed), 300)
        low, high = UserBootstrap(300, 200, seed).interval(ratio, user)
        covered += low <= truth <= high
        rows = np.arange(user.size)
        low, high = UserBootstrap(user.size, 200, seed).interval(ratio, rows)
        rows_covered += low <= truth <= high
    # 380 expected, with a deviation of 4.4, less what 200 resamples cost.
    assert covered >= 368
    if metric != "auc_per_user":
        # Resampling impressions, as if they were independent, is worse.
        assert rows_covered < covered
