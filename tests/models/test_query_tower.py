"""Pooling, depth and moments of the query tower, against NumPy."""

import numpy as np
import pytest

from models.keras_setup import tf
from models.query_tower import QueryTower, age_hats
from models.recency_bags import pooled
from schemas.errors import InputError
from schemas.features import Feature, FeatureSet
from schemas.model_config import RetrievalConfig, SequenceConfig

HISTORY = 8
FEATURES = FeatureSet(
    (
        Feature("watch_history", "bag", "query", "video", HISTORY),
        Feature("search_tokens", "bag", "query", "token", 3),
        Feature("user_region", "categorical", "query", "region"),
        Feature("user_age", "continuous", "query"),
    )
)
SIZES = {"video": 20, "token": 5, "region": 3}
SEQUENCE = SequenceConfig(length=6, layers=1, heads=2, dropout=0.0)
CONFIG = RetrievalConfig(
    embedding_dim=8,
    token_dim=4,
    categorical_dim=2,
    recency_bags=(5, 2, 1),
    hidden_units=(16,),
    dropout=0.0,
)


def build(**changes: object) -> QueryTower:
    config = CONFIG.model_copy(update=changes)
    return QueryTower(FEATURES, SIZES, config, seed=1, example_age=True)


def request(history: list[int]) -> dict[str, tf.Tensor]:
    padded = history + [-1] * (HISTORY - len(history))
    return {
        "watch_history": tf.constant([padded], tf.int64),
        "search_tokens": tf.constant([[3, 1, -1]], tf.int64),
        "user_region": tf.constant([2], tf.int64),
        "user_age": tf.constant([[0.5, 0.25, 0.7, 0.0]]),
        "example_age": tf.constant([0.3]),
    }


def numpy_pooled(
    vectors: np.ndarray, present: np.ndarray, first: int, moment: int, how: str
) -> np.ndarray:
    window = slice(moment, moment + first)
    entries = vectors[window][present[window] > 0]
    if not len(entries):
        return np.zeros(vectors.shape[1])
    return {
        "mean": entries.mean(0),
        "sum": entries.sum(0),
        "max": entries.max(0),
    }[how]


@pytest.mark.parametrize("how", ["mean", "sum", "max"])
@pytest.mark.parametrize(("first", "moments"), [(3, 1), (3, 6), (9, 4), (1, 6)])
def test_pooling_equals_numpy(how: str, first: int, moments: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, 6, 4)).astype(np.float32) - 1.0
    present = np.ones((3, 6), np.float32)
    vectors[0, 1] = 0  # Unknown: the zero vector, but an entry.
    present[1, 3:], vectors[1, 3:] = 0, 0
    present[2], vectors[2] = 0, 0
    found = pooled(vectors, present, first, moments, how)
    for row in range(3):
        for moment in range(moments):
            expected = numpy_pooled(
                vectors[row], present[row], first, moment, how
            )
            np.testing.assert_allclose(found[row, moment], expected, atol=1e-6)


@pytest.mark.parametrize("how", ["sum", "max"])
def test_bags_are_pooled_as_configured(how: str) -> None:
    tower = build(pooling=how, recency_bags=(3,), hidden_units=())
    tower.towers[0].layers[0].kernel.assign(tf.eye(8 + 4 + 2 + 4 + 1, 8))
    table = tower.embeddings.tables["video"].numpy()
    # Video 0 is unknown; the fourth watch is outside of the bag.
    found = tower(request([4, 0, 7, 9]))[0]
    entries = np.stack([table[4], np.zeros(8), table[7]])
    expected = entries.sum(0) if how == "sum" else entries.max(0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "hidden",
    [(), (8,), (16, 8), (32, 16, 8), (64, 32, 16, 8)],
)
def test_depths_0_to_4_have_the_paper_s_layers(hidden: tuple[int, ...]) -> None:
    # Section 3.5: depth 0 is linear to the softmax's dimension; each further
    # depth doubles the width below, down to that dimension.
    activation = "relu" if hidden else "linear"
    tower = build(hidden_units=hidden[:-1], output_activation=activation)
    widths = [layer.units for layer in tower.towers[0].layers]
    assert widths == list(hidden or (8,))
    inputs = 3 * 8 + 4 + 2 + 4 + 1
    kernel = tower.towers[0].layers[0].kernel
    assert kernel.shape == (inputs, widths[0])
    request_ = request([1, 2])
    output = tower(request_).numpy()
    assert output.shape == (1, 8)
    assert (output >= 0).all() == bool(hidden)


def test_each_moment_is_the_request_with_the_history_rolled_back() -> None:
    tower = build(sequence=SEQUENCE)
    history = [4, 0, 7, 9, 12, 3]
    found = tower.of_each_moment(request(history)).numpy()
    assert found.shape == (1, 6, 8)
    for moment in range(6):
        before = request(history[moment:])
        if moment:
            # What is younger than the moment is unknown then.
            before["search_tokens"] = tf.constant([[-1, -1, -1]], tf.int64)
        expected = tower(before)
        # The attention's distances do not move with the moment.
        np.testing.assert_allclose(found[:, moment], expected, atol=1e-5)


def test_with_an_encoder_no_bag_is_needed() -> None:
    tower = build(sequence=SEQUENCE, recency_bags=())
    one, other = tower(request([4, 7])), tower(request([7, 4]))
    # An encoder knows the order, a bag does not.
    assert not np.allclose(one, other, atol=1e-6)


def test_an_encoder_looks_back_no_further_than_the_examples_do() -> None:
    with pytest.raises(InputError, match=r"length` is 9.*histories of 8"):
        build(sequence=SEQUENCE.model_copy(update={"length": 9}))


def test_what_is_left_out_changes_nothing() -> None:
    tower = build(left_out=("search_tokens", "user_age", "example_age"))
    # 3 bags of 8 and the region's 2; all have 4 of tokens, 4 and 1 more.
    assert sum(tower.input_widths[0].values()) == 26
    assert sum(build().input_widths[0].values()) == 35
    assert "token" not in tower.embeddings.tables
    one, other = request([3, 2]), request([3, 2])
    other["search_tokens"] = tf.constant([[5, -1, -1]], tf.int64)
    other["user_age"] = tf.ones([1, 4])
    other["example_age"] = tf.constant([0.9])
    np.testing.assert_array_equal(tower(one), tower(other))
    # What is not left out still counts.
    other["user_region"] = tf.constant([1], tf.int64)
    assert not np.allclose(tower(one), tower(other))


@pytest.mark.parametrize("name", ["watch_history", "user_ages"])
def test_only_known_features_can_be_left_out(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}'.*user_age, example_age"):
        build(left_out=(name,))


def test_hats_of_the_age_are_an_interpolation() -> None:
    # Of 5 hats, at 0, 1/4 ... 1: 0.3 is 4/5 of the second, 1/5 of the third.
    ages = tf.constant([0.3, 0.0, 1.0, -0.1, 0.5])
    expected = np.zeros((5, 5))
    expected[0, [1, 2]] = 0.8, 0.2
    expected[[1, 2, 3, 4], [0, 4, 0, 2]] = 1.0
    np.testing.assert_allclose(age_hats(ages, 5), expected, atol=1e-6)
    np.testing.assert_array_equal(age_hats(ages, 1)[:, 0], ages)
    assert sum(build(example_age_hats=5).input_widths[0].values()) == 39
