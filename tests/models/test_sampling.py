"""Distribution of the draws."""

import math

import numpy as np
import pytest

from models.keras_setup import tf
from models.sampling import Sampler, alias_table


def shares(kind: str, size: int) -> np.ndarray:
    """p(id) of ids 1..V, from the definition."""
    if kind == "unigram":
        smoothed = label_counts(size) + 1.0
        return smoothed / smoothed.sum()
    if kind == "uniform":
        return np.full(size, 1.0 / size)
    ids = np.arange(1, size + 1)
    return np.log1p(1.0 / ids) / np.log(size + 1)


def label_counts(size: int) -> np.ndarray:
    """Counts in no order, a tenth of them 0."""
    rng = np.random.default_rng(8)
    counts = rng.integers(0, 10, size=size) ** 2
    return counts * (np.arange(size) % 10 > 0)


def sampler(kind: str, size: int, draws: int, seed: int = 3) -> Sampler:
    counts = label_counts(size) if kind == "unigram" else None
    return Sampler(kind, size, draws, seed, counts)


KINDS = ["log_uniform", "unigram", "uniform"]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_follow_the_distribution(kind: str) -> None:
    size, draws = 50, 200_000
    ids = sampler(kind, size, draws).draw(0).ids.numpy()
    assert ids.min() >= 1 and ids.max() <= size
    counts = np.bincount(ids, minlength=size + 1)[1:]
    expected = draws * shares(kind, size)
    # Chi-square of 49 degrees: mean 49, sd 9.9; 99.9 % lie below 85.4.
    assert ((counts - expected) ** 2 / expected).sum() < 85.4


@pytest.mark.parametrize("kind", KINDS)
def test_log_expected_is_of_s_times_p(kind: str) -> None:
    size, draws = 1_000_000, 700
    drawer = sampler(kind, size, draws)
    expected = np.log(draws * shares(kind, size))
    all_ids = tf.range(1, size + 1, dtype=tf.int64)
    found = drawer.log_expected(all_ids).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)
    drawn = drawer.draw(5)
    np.testing.assert_allclose(
        drawn.log_expected, expected[drawn.ids.numpy() - 1], atol=2e-6
    )


def test_the_tail_of_a_million_is_reached() -> None:
    size, low, draws = 1_000_000, 999_001, 10_000_000
    sampler = Sampler("log_uniform", size, draws, seed=11)
    # As a graph, what is not asked for is not computed.
    ids = tf.function(lambda: sampler.draw(0).ids)().numpy()
    counts = np.bincount(ids[ids >= low] - low, minlength=1000)
    # Each is expected 1e7 x 1e-6 / 13.8 = .724 times: P(0) = e^-.724 = .485; of
    # 1,000 ids 485 are missed, sd 15.8. Float32 has 2^23 u in [0, 1): one for
    # each 1.2e-7, and an id of the tail is 7.2e-8 wide: 400 would be out of
    # reach and e^-(.724 / .6) = .30 of the others missed, 580 in all.
    missed = int((counts == 0).sum())
    assert abs(missed - 485) < 4 * 15.8
    # The ends of the range are among them now and then.
    assert ids.min() == 1 and ids.max() > 999_990


def test_every_id_of_a_million_has_a_u_that_leads_to_it() -> None:
    # The inverse is floor(exp(u L)): ids i and i + 1 begin at u's that differ
    # by ln(1 + 1/i) / L, 7.2e-8 at the end. 53 bits resolve that 6e8 times.
    ids = np.arange(900_000, 1_000_001)
    length = math.log(1_000_001)
    begins = np.log(ids) / length
    middle = (begins[:-1] + begins[1:]) / 2
    middle = np.round(middle * 2**53) / 2**53
    assert np.array_equal(np.floor(np.exp(middle * length)), ids[:-1])
    coarse = np.arange(np.floor(begins[0] * 2**23), np.ceil(begins[-1] * 2**23))
    reached = np.unique(np.floor(np.exp(coarse / 2**23 * length)))
    # What the 23 bits of float32 would do, to show that the test can tell.
    assert len(reached) < 0.7 * len(ids)


def test_the_tail_of_a_million_follows_the_unigram() -> None:
    # Zipf's counts: of 20,000 labels 1.4e6 / id falls to nothing at 140,000,
    # and the last 100,000 of a million were never a label: (0 + 1) / sum each.
    size, draws = 1_000_000, 2_000_000
    counts = 20_000 // np.arange(1, size + 1)
    shared = (counts[-1] + 1) / (counts.sum() + size)
    assert counts[-100_000:].max() == 0
    drawer = Sampler("unigram", size, draws, 4, counts)
    ids = tf.function(lambda: drawer.draw(0).ids)().numpy()
    assert ids.max() > 999_900
    # Chi-square over 100 groups of 1,000 classes: mean 99, sd 14.1.
    found = np.bincount((ids[ids > 900_000] - 900_001) // 1000, minlength=100)
    expected = draws * 1000 * shared
    spread = ((found - expected) ** 2 / expected).sum()
    assert spread < 99 + 4 * 14.1


@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [1.0, 1.0, 1.0],
        [1.0, 8.0, 1.0, 1.0],
        [2.0, 1.0, 1.0, 1.0, 0.5, 0.5],
        [1.0, 0.5, 1.5],
        [5.0, 5.0, 1.0, 1e-9, 3.0, 1.2],
        list(np.random.default_rng(1).random(1000) ** 6 + 1e-12),
    ],
)
def test_the_alias_table_holds_the_shares(weights: list[float]) -> None:
    expected = np.array(weights) / np.sum(weights)
    kept, alias = alias_table(expected)
    assert kept.min() >= 0.0 and kept.max() <= 1.0
    # A slot has the probability 1/V: its own class's part, and the other's.
    found = kept + np.bincount(alias, 1.0 - kept, minlength=len(kept))
    np.testing.assert_allclose(found / len(kept), expected, atol=1e-12)


def test_rows_have_draws_of_their_own_wherever_they_are() -> None:
    drawer = sampler("unigram", 1000, 7)
    whole = drawer.draw_rows(5, 0, 6)
    assert whole.ids.shape == (6, 7)
    part = drawer.draw_rows(tf.constant(5, tf.int64), tf.constant(4), 2)
    np.testing.assert_array_equal(part.ids, whole.ids[4:])
    assert len(np.unique(whole.ids.numpy(), axis=0)) == 6
    assert (
        drawer.draw_rows(6, 0, 6).ids.numpy() != whole.ids.numpy()
    ).mean() > 0.9
    many = drawer.draw_rows(0, 0, 30_000).ids.numpy()
    counts = np.bincount(many.ravel(), minlength=1001)[1:]
    expected = many.size * shares("unigram", 1000)
    # 999 degrees: mean 999, sd 44.7.
    assert ((counts - expected) ** 2 / expected).sum() < 999 + 4 * 44.7


@pytest.mark.parametrize("kind", KINDS)
def test_xla_draws_the_same(kind: str) -> None:
    drawer = sampler(kind, 5000, 64)

    def ids(step: tf.Tensor) -> list[tf.Tensor]:
        return [drawer.draw(step).ids, drawer.draw_rows(step, 3, 4).ids]

    step = tf.constant(9, tf.int64)
    compiled = tf.function(ids, jit_compile=True)(step)
    for found, expected in zip(compiled, ids(step), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_draws_are_a_function_of_seed_and_step() -> None:
    def ids(seed: int, step: int) -> np.ndarray:
        return Sampler("log_uniform", 10_000, 200, seed).draw(step).ids.numpy()

    np.testing.assert_array_equal(ids(1, 7), ids(1, 7))
    assert (ids(1, 7) != ids(1, 8)).mean() > 0.9
    assert (ids(1, 7) != ids(2, 7)).mean() > 0.9
    sampler = Sampler("log_uniform", 10_000, 200, 1)
    inside = tf.function(lambda step: sampler.draw(step).ids)
    np.testing.assert_array_equal(
        inside(tf.constant(7, tf.int64)).numpy(), ids(1, 7)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zipf", 10, 5, 0), "received 'zipf'"),
        (("uniform", 0, 5, 0), "0 and 5"),
        (("uniform", 10, 0, 0), "10 and 0"),
        (("unigram", 10, 5, 0), "10 classes, received none"),
        (("unigram", 3, 5, 0, np.array([1, 2])), r"received shape \(2,\)"),
        (("unigram", 2, 5, 0, np.array([1, -2])), "received -2"),
    ],
)
def test_wrong_settings_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(*arguments)
