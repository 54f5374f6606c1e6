"""The tower against NumPy, and its dropout's dependence on nothing else."""

import numpy as np
import pytest

from models.keras_setup import tf
from models.random_rows import row_uniform
from models.towers import Tower


@pytest.mark.parametrize("output", ["relu", "linear"])
def test_tower_equals_numpy(output: str) -> None:
    tower = Tower(5, (8, 4, 3), output, seed=1)
    rng = np.random.default_rng(0)
    weights = []
    for layer in tower.layers:
        layer.bias.assign(rng.normal(size=layer.bias.shape))
        weights.append((layer.kernel.numpy(), layer.bias.numpy()))
    inputs = rng.normal(size=(6, 5)).astype(np.float32)
    expected = inputs
    for i, (kernel, bias) in enumerate(weights):
        expected = expected @ kernel + bias
        if i < 2 or output == "relu":
            expected = np.maximum(expected, 0)
    assert output == "relu" or (expected < 0).any()
    np.testing.assert_allclose(tower(inputs), expected, atol=1e-5)


def draw(rows: int, width: int, step: int, first: int) -> np.ndarray:
    shape = tf.constant([rows, width])
    return row_uniform(shape, (3, step, 0), first).numpy()


@pytest.mark.parametrize("width", [1, 6, 8])
def test_rows_are_drawn_by_their_global_index(width: int) -> None:
    whole = draw(10, width, step=4, first=0)
    np.testing.assert_array_equal(whole[:4], draw(4, width, 4, first=0))
    np.testing.assert_array_equal(whole[4:], draw(6, width, 4, first=4))


def test_draws_are_uniform_and_differ_between_steps_and_rows() -> None:
    one, two = draw(400, 50, 1, 0), draw(400, 50, 2, 0)
    # 20,000 draws: the mean's standard deviation is 0.289 / 141 = 0.002.
    assert abs(one.mean() - 0.5) < 0.01
    assert abs((one < 0.2).mean() - 0.2) < 0.015
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.03
    assert len(np.unique(one[:, 0])) > 390


def test_dropout_keeps_the_mean_and_drops_the_share() -> None:
    tower = Tower(3, (4000, 2), "linear", dropout=0.25, seed=1)
    # A first layer of ones: each hidden unit is 1 before dropout.
    tower.layers[0].kernel.assign(tf.zeros([3, 4000]))
    tower.layers[0].bias.assign(tf.ones([4000]))
    tower.layers[1].kernel.assign(tf.ones([4000, 2]))
    off = tower(tf.zeros([1, 3])).numpy()
    on = tower(tf.zeros([1, 3]), training=True, step=1, first_row=0).numpy()
    np.testing.assert_allclose(off, 4000.0)
    # 4000 units kept with p = .75, times 4/3: sd = 4/3 sqrt(4000 x 3/16) = 37.
    assert on[0, 0] != 4000.0 and abs(on[0, 0] - 4000.0) < 150


def test_dropout_of_two_workers_is_that_of_one() -> None:
    tower = Tower(4, (16, 3), "linear", dropout=0.5, seed=1)
    x = tf.random.stateless_normal([8, 4], seed=[1, 2])
    whole = tower(x, training=True, step=9, first_row=0)
    halves = [
        tower(x[i : i + 4], training=True, step=9, first_row=i) for i in (0, 4)
    ]
    np.testing.assert_allclose(whole, tf.concat(halves, 0), atol=1e-6)
    other = tower(x, training=True, step=10, first_row=0)
    assert not np.allclose(whole, other)


def test_dropout_of_candidates_counts_their_axis() -> None:
    tower = Tower(4, (16, 3), "linear", dropout=0.5, seed=1)
    x = tf.random.stateless_normal([6, 5, 4], seed=[1, 2])
    whole = tower(x, training=True, step=9, first_row=0)
    tail = tower(x[2:], training=True, step=9, first_row=2)
    np.testing.assert_allclose(whole[2:], tail, atol=1e-6)


def test_same_seed_same_weights() -> None:
    one, same = Tower(4, (8, 3), seed=1), Tower(4, (8, 3), seed=1)
    other = Tower(4, (8, 3), seed=2)
    kernels = [t.layers[0].kernel.numpy() for t in (one, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.all(kernels[0] != kernels[2])


def test_without_layers_the_input_is_the_output() -> None:
    tower, x = Tower(3, ()), tf.constant([[1.0, -2.0, 3.0]])
    assert tower.output_dim == 3
    np.testing.assert_array_equal(tower(x, training=True), x)


def test_a_full_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.0"):
        Tower(4, (3,), dropout=1.0)
