"""Bags and lookups against NumPy, and what never changes."""

import numpy as np
import pytest

from models.embeddings import EmbeddingTables
from models.keras_setup import tf


def tables(**spaces: tuple[int, int]) -> EmbeddingTables:
    return EmbeddingTables(spaces or {"video": (20, 4)}, seed=7)


def numpy_mean(table: np.ndarray, bag: list[int]) -> np.ndarray:
    entries = [i for i in bag if i != -1]
    total = np.zeros(table.shape[1])
    for i in entries:
        total += table[i] if i != 0 else 0.0
    return total / max(len(entries), 1)


def test_lookup_gives_rows_and_zeros() -> None:
    model = tables()
    table = model.tables["video"].numpy()
    found = model.lookup("video", tf.constant([[3, 0], [-1, 20]], tf.int64))
    np.testing.assert_array_equal(found[0, 0], table[3])
    np.testing.assert_array_equal(found[1, 1], table[20])
    np.testing.assert_array_equal(found[0, 1], np.zeros(4))
    np.testing.assert_array_equal(found[1, 0], np.zeros(4))


def test_ids_0_and_padding_give_zeros_even_if_row_0_is_not() -> None:
    model = tables()
    model.tables["video"].scatter_update(
        tf.IndexedSlices(tf.fill([1, 4], 9.0), [0])
    )
    ids = tf.constant([[0, -1, 0]], tf.int64)
    assert not np.any(model.lookup("video", ids))
    assert not np.any(model.mean_bag("video", ids))


@pytest.mark.parametrize("first", [None, 5, 3, 1])
def test_mean_bag_equals_numpy(first: int | None) -> None:
    model = tables()
    table = model.tables["video"].numpy()
    rng = np.random.default_rng(0)
    bags = rng.integers(0, 21, size=(40, 6))
    for row, length in enumerate(rng.integers(0, 7, size=40)):
        bags[row, length:] = -1
    bags[0], bags[1] = -1, 0  # Empty, and all unknown.
    found = model.mean_bag("video", tf.constant(bags), first)
    expected = [numpy_mean(table, list(bag[:first])) for bag in bags]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_unknown_ids_count_in_the_length() -> None:
    model = tables()
    row = model.tables["video"].numpy()[5]
    # One known of two entries: half its vector, not all of it.
    found = model.mean_bag("video", tf.constant([[5, 0, -1]], tf.int64))
    np.testing.assert_allclose(found[0], row / 2, rtol=1e-6)


def test_several_prefixes_are_the_single_ones() -> None:
    model = tables()
    ids = tf.constant([[4, 0, 9, -1], [1, -1, -1, -1]], tf.int64)
    together = model.mean_bags("video", ids, (None, 2, 1))
    for i, first in enumerate((None, 2, 1)):
        alone = model.mean_bag("video", ids, first)
        np.testing.assert_array_equal(together[:, i], alone)


def test_gradient_is_one_over_length_and_none_for_unknowns() -> None:
    model = tables()
    ids = tf.constant([[4, 0, 4, 2, -1]], tf.int64)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.mean_bag("video", ids))
    gradient = tape.gradient(loss, model.tables["video"])
    assert isinstance(gradient, tf.IndexedSlices)
    dense = tf.convert_to_tensor(gradient).numpy()
    # d mean / d row = occurrences / length: 2/4 for id 4, 1/4 for id 2.
    expected = np.zeros((21, 4))
    expected[4], expected[2] = 0.5, 0.25
    np.testing.assert_allclose(dense, expected, atol=1e-7)


def test_initial_values_follow_from_seed_and_space() -> None:
    alone = tables(video=(20, 4))
    beside = tables(token=(9, 3), video=(20, 4))
    video = alone.tables["video"].numpy()
    np.testing.assert_array_equal(video, beside.tables["video"].numpy())
    other = EmbeddingTables({"video": (20, 4)}, seed=8).tables["video"].numpy()
    assert np.all(video[1:] != other[1:])
    assert not np.any(video[0])
    # Uniform in [-0.05, 0.05): mean 0, standard deviation 0.05 / sqrt(3).
    big = tables(video=(5000, 8)).tables["video"].numpy()[1:]
    assert abs(big.mean()) < 5e-4
    assert abs(big.std() - 0.05 / 3**0.5) < 3e-4


def test_an_unknown_space_is_named() -> None:
    with pytest.raises(ValueError, match="received 'channel'"):
        tables().lookup("channel", tf.constant([1], tf.int64))
