"""Matrix factorisation and EASE against what they are defined to minimise."""

import numpy as np
import pytest

from models import linear_baselines
from models.baselines import Watches
from models.linear_baselines import Ease, ImplicitAls, watch_matrix
from schemas.errors import UsageError

VIDEOS = 12


@pytest.fixture
def watches():
    """Two tastes: users watch only the odd or only the even videos."""
    rng = np.random.default_rng(3)
    user = np.repeat(np.arange(60), 5)
    video = 2 * rng.integers(0, VIDEOS // 2, user.size) + user % 2 + 1
    return Watches(user.astype(np.uint64), video, np.arange(user.size))


def case(*rows):
    out = np.full((len(rows), 4), -1, np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return {"watch_history": out}


def test_a_video_watched_twice_is_one_watch():
    twice = Watches(
        np.array([8, 8, 9], np.uint64), np.array([2, 2, 1]), np.arange(3)
    )
    assert watch_matrix(twice, 3).toarray().tolist() == [[0, 1, 0], [1, 0, 0]]


def test_ease_minimises_its_loss(watches):
    l2 = 7.0
    x = watch_matrix(watches, VIDEOS).toarray().astype(np.float64)
    # Each column on its own: a ridge regression on all other videos.
    expected = np.zeros((VIDEOS, VIDEOS))
    for j in range(VIDEOS):
        others = np.delete(np.arange(VIDEOS), j)
        a = x[:, others]
        expected[others, j] = np.linalg.solve(
            a.T @ a + l2 * np.eye(len(others)), a.T @ x[:, j]
        )
    scores = Ease(watches, VIDEOS, l2=l2).scores(case([3, 5, 3, 0], [8]))
    # A video counts once; the unknown one not at all.
    np.testing.assert_allclose(scores[0], expected[2] + expected[4], atol=1e-6)
    np.testing.assert_allclose(scores[1], expected[7], atol=1e-6)


def test_ease_refuses_more_videos_than_it_has_room_for(watches, monkeypatch):
    monkeypatch.setattr(linear_baselines, "EASE_MOST_VIDEOS", VIDEOS - 1)
    with pytest.raises(UsageError, match=r"evaluation\.baselines"):
        Ease(watches, VIDEOS)


def test_factors_tell_the_tastes_apart(watches):
    scores = ImplicitAls(watches, VIDEOS, 1, factors=2).scores(case([1], [2]))
    odd, even = scores[:, ::2].mean(axis=1), scores[:, 1::2].mean(axis=1)
    assert odd[0] > 5 * abs(even[0])
    assert even[1] > 5 * abs(odd[1])


def test_factors_solve_the_weighted_least_squares(watches):
    regularization, alpha = 0.3, 4.0
    scorer = ImplicitAls(
        watches,
        VIDEOS,
        1,
        factors=3,
        regularization=regularization,
        alpha=alpha,
        iterations=3,
    )
    y = scorer._model.item_factors.astype(np.float64)
    # Hu et al., equation 4: (Y'CY + lambda I) x = Y'C p, with the confidence
    # 1 of what was not watched; the library gives what was watched alpha.
    confidence = np.ones(VIDEOS)
    confidence[[0, 2]] = alpha
    watched = np.zeros(VIDEOS)
    watched[[0, 2]] = 1.0
    x = np.linalg.solve(
        y.T * confidence @ y + regularization * np.eye(3),
        y.T @ (confidence * watched),
    )
    scores = scorer.scores(case([3, 1, 3]))
    np.testing.assert_allclose(scores[0], y @ x, rtol=1e-3, atol=1e-4)


def test_factors_follow_from_the_seed(watches):
    one, same, other = (
        ImplicitAls(watches, VIDEOS, seed, factors=2, iterations=1).scores(
            case([1, 3])
        )
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["als", "ease"])
def test_without_history_popularity_decides(watches, kind):
    scorer = {
        "als": lambda: ImplicitAls(watches, VIDEOS, 1, factors=2),
        "ease": lambda: Ease(watches, VIDEOS),
    }[kind]()
    counts = np.bincount(watches.video, minlength=VIDEOS + 1)[1:]
    scores = scorer.scores(case([], [0], [1]))
    assert scores[0].tolist() == scores[1].tolist() == counts.tolist()
    assert scores[2].tolist() != counts.tolist()
