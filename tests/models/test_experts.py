"""The mixture of experts against its definition in NumPy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.experts import Experts, normalized
from models.keras_setup import keras, tf
from schemas.model_config import ExpertsConfig


def make(number=3, units=(5, 4), tasks=2, inputs=6, seed=1, **changes):
    """A mixture and its heads, every weight away from zero."""
    config = ExpertsConfig(number=number, units=units, **changes)
    experts = Experts(inputs, tasks, config, seed)
    head = keras.layers.Dense(tasks)
    head.build([None, experts.output_dim])
    rng = np.random.default_rng(seed)
    for variable in (*experts.trainable_variables, *head.weights):
        variable.assign(rng.normal(0, 0.7, variable.shape))
    return experts, head


def mixed(experts, head, x, kept=None):
    outputs = experts.outputs(x, lambda hidden, number: hidden)
    return experts.logits(outputs, experts.weights(x, kept), head)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def by_definition(experts, head, x, kept=None, normalize=False):
    """y_k = h_k(sum_i g^k_i(x) f_i(x)), one row and task at a time."""
    number, tasks = len(experts.towers), head.kernel.shape[1]
    gates = experts.gate.kernel.numpy().reshape(-1, tasks, number)
    kernel, bias = (w.numpy() for w in head.weights)
    found = np.zeros((len(x), tasks))
    for n, row in enumerate(x):
        says = []
        for tower in experts.towers:
            f = row
            for layer in tower.layers:
                w, b = (v.numpy() for v in layer.weights)
                f = np.maximum(f @ w + b, 0.0)
            if normalize:
                f = (f - f.mean()) / np.sqrt(f.var() + 1e-6)
            says.append(f)
        for k in range(tasks):
            g = softmax(row @ gates[:, k])
            if kept is not None:
                g = g * kept[n, k] / (g * kept[n, k]).sum()
            mixture = sum(weight * f for weight, f in zip(g, says, strict=True))
            found[n, k] = mixture @ kernel[:, k] + bias[k]
    return found


@settings(max_examples=25, deadline=None)
@given(
    number=st.integers(1, 5),
    tasks=st.integers(1, 4),
    units=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
    dropped=st.booleans(),
)
def test_any_mixture_is_that_of_its_definition(
    number, tasks, units, normalize, seed, dropped
):
    experts, head = make(
        number, tuple(units), tasks, seed=seed, normalize=normalize
    )
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (7, 6)).astype(np.float32)
    kept = None
    if dropped:
        kept = rng.random((7, tasks, number)) < 0.5
        kept[..., rng.integers(number)] = True
    found = mixed(experts, head, tf.constant(x), kept)
    want = by_definition(experts, head, x.astype(float), kept, normalize)
    # Normalised, an output that is almost constant magnifies the rounding.
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-3)


def test_weights_of_those_in_use_sum_up_to_one_however_polarised():
    experts, _ = make(number=3, tasks=1, inputs=1)
    experts.gate.kernel.assign([[0.0, math.log(3.0), 500.0]])
    x = tf.ones([3, 1])
    kept = tf.constant([[[1, 1, 1]], [[1, 1, 0]], [[0, 1, 0]]]) == 1
    # e^500 takes all; without it 1 : 3, where g * kept / sum would be 0 / 0.
    want = [[[0, 0, 1]], [[0.25, 0.75, 0]], [[0, 1, 0]]]
    np.testing.assert_allclose(experts.weights(x, kept), want, atol=1e-6)


@pytest.mark.parametrize(
    ("number", "rate"), [(1, 0.9), (2, 0.5), (4, 0.1), (3, 0.9)]
)
def test_gate_dropout_keeps_one_and_drops_as_often_as_it_says(number, rate):
    experts, _ = make(number, tasks=2, gate_dropout=rate)
    kept = experts.kept(50_000, 3, 0).numpy()
    assert kept.shape == (50_000, 2, number)
    assert kept.any(axis=-1).all()
    # All are out with r^E, and then one of E stays: r - r^E / E.
    # 50,000 draws: a standard deviation of at most 0.0023.
    want = rate - rate**number / number
    np.testing.assert_allclose(1 - kept.mean(axis=0), want, atol=0.01)
    # Tasks are drawn apart: both without an expert as often as chance has it.
    both = (~kept).all(axis=1).mean(axis=0)
    np.testing.assert_allclose(both, want**2, atol=0.01)
    # Alike experts stay alike in the mean: 1/E each.
    x = tf.zeros([50_000, 6])
    mean = tf.reduce_mean(experts.weights(x, kept), axis=0)
    np.testing.assert_allclose(mean, 1 / number, atol=0.01)


def test_gate_dropout_is_a_function_of_seed_step_and_row():
    experts, _ = make(gate_dropout=0.5)
    kept = experts.kept(400, 7, 0).numpy()
    np.testing.assert_array_equal(experts.kept(100, 7, 300), kept[300:])
    assert (experts.kept(400, 8, 0).numpy() != kept).any()
    other, _ = make(gate_dropout=0.5, seed=2)
    assert (other.kept(400, 7, 0).numpy() != kept).any()


def test_layers_of_all_experts_are_numbered_for_their_dropout():
    experts, _ = make(number=2, units=(5, 4))
    seen = []

    def drop(hidden, number):
        seen.append((number, hidden.shape[1]))
        return 0.0 * hidden

    found = experts.outputs(tf.ones([3, 6]), drop)
    assert seen == [(0, 5), (1, 4), (2, 5), (3, 4)]
    np.testing.assert_array_equal(found, np.zeros((2, 3, 4)))


def test_normalized_rows_by_hand():
    # Mean 2, deviations -1, 0, 1: variance 2/3. A dead expert stays at 0.
    found = normalized(tf.constant([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    root = math.sqrt(1.5)
    np.testing.assert_allclose(found, [[-root, 0, root], [0, 0, 0]], atol=1e-5)


def test_experts_begin_apart_and_follow_from_the_seed():
    config = ExpertsConfig(number=2, units=(4,))
    a, b, c = (Experts(3, 1, config, seed) for seed in (1, 1, 2))
    kernels = [t.layers[0].kernel.numpy() for e in (a, b, c) for t in e.towers]
    np.testing.assert_array_equal(kernels[:2], kernels[2:4])
    assert (kernels[0] != kernels[1]).any()
    assert (kernels[0] != kernels[4]).any()


def test_xla_compiles_the_mixture_and_draws_the_same():
    experts, head = make(gate_dropout=0.5, normalize=True)
    variables = [*experts.trainable_variables, *head.trainable_variables]
    x = tf.constant(np.random.default_rng(3).normal(0, 1, (8, 6)), tf.float32)

    def step(x, number):
        with tf.GradientTape() as tape:
            kept = experts.kept(8, number, 16)
            loss = tf.reduce_sum(mixed(experts, head, x, kept) ** 2)
        return loss, tape.gradient(loss, variables)

    number = tf.constant(5, tf.int64)
    plain = tf.function(step)(x, number)
    compiled = tf.function(step, jit_compile=True)(x, number)
    for a, b in zip(
        tf.nest.flatten(plain), tf.nest.flatten(compiled), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
