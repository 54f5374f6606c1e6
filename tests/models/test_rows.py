"""Sums of rows against NumPy, the same in XLA and out of it."""

from typing import Any

import numpy as np
import pytest

from models.keras_setup import tf
from models.rows import gathered, in_xla, merge_rows, sum_prefixes

SIZE, DIM = 20, 3


def bags() -> np.ndarray:
    """Bags of up to 6 ids with unknown ones; one empty, one all unknown."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SIZE + 1, size=(15, 6))
    for row, length in enumerate(rng.integers(0, 7, size=15)):
        ids[row, length:] = -1
    ids[0], ids[1] = -1, 0
    return ids


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "firsts", [(None,), (6, 2, 1), (1, None, 4), (3,), (2, 2), (None, None)]
)
def test_sums_and_their_gradient(firsts: tuple, jit: bool) -> None:
    rng = np.random.default_rng(1)
    # Row 0 is not zero here: it must not count all the same.
    values = rng.normal(size=(SIZE + 1, DIM)).astype(np.float32)
    table, ids = tf.Variable(values), bags()
    upstream = rng.normal(size=(15, len(firsts), DIM)).astype(np.float32)

    @tf.function(jit_compile=jit)
    def both(ids: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            sums = sum_prefixes(table, ids, firsts)
        gradient = tape.gradient(sums, table, output_gradients=upstream)
        return sums, gradient.values, gradient.indices

    sums, rows, indices = (x.numpy() for x in both(tf.constant(ids)))
    expected, slope = np.zeros_like(upstream), np.zeros_like(values)
    for b, bag in enumerate(ids):
        for p, first in enumerate(firsts):
            for j in bag[:first]:
                if j > 0:
                    expected[b, p] += values[j]
                    slope[j] += upstream[b, p]
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    found = np.zeros_like(values)
    np.add.at(found, indices, rows)
    np.testing.assert_allclose(found, slope, atol=1e-5)
    if not jit:
        assert len(np.unique(indices)) == len(indices)


@pytest.mark.parametrize("rows", [[7, 2, 7, 5, 7], [4, 1, 9], [3]])
def test_merged_in_xla_as_outside(rows: list[int]) -> None:
    values = np.random.default_rng(2).normal(size=(len(rows), 2))
    values = values.astype(np.float32)
    expected = np.zeros((10, 2), np.float32)
    np.add.at(expected, rows, values)

    def added(values: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        merged = merge_rows(
            tf.IndexedSlices(values, rows, tf.constant([10, 2]))
        )
        table.assign(tf.zeros([10, 2]))
        table.scatter_update(merged)
        return tf.identity(table)

    table = tf.Variable(tf.zeros([10, 2]))
    for jit in (False, True):
        # An update, not an addition: it is right only if rows are distinct,
        # and the places that are left over are dropped.
        found = tf.function(added, jit_compile=jit)(values, tf.constant(rows))
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_xla_is_noticed_in_nested_functions() -> None:
    seen = []

    @tf.function
    def inner(x: tf.Tensor) -> tf.Tensor:
        seen.append(in_xla())
        return tf.cond(x > 0, lambda: x + float(in_xla()), lambda: x)

    assert float(inner(tf.constant(1.0))) == 1.0
    outer = tf.function(lambda x: inner(x), jit_compile=True)
    outer(tf.constant(1.0))
    assert seen[0] is False and not in_xla()


def test_a_batch_without_a_single_watch_has_no_gradient() -> None:
    table = tf.Variable(tf.ones([SIZE + 1, DIM]))

    @tf.function
    def both(ids: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            sums = sum_prefixes(table, ids, (None, 2))
        gradient = tape.gradient(sums, table)
        return sums, gradient.values

    sums, rows = both(tf.fill([4, 6], tf.constant(-1, tf.int64)))
    np.testing.assert_array_equal(sums, np.zeros([4, 2, DIM]))
    assert rows.shape == (0, DIM)


def test_rows_are_added_in_the_order_of_the_bags() -> None:
    # 1e8 + 1 is 1e8 in float32: (1e8 - 1e8) + 1 is 1, 1e8 + (1 - 1e8) is 0.
    upstream = tf.constant([[[1e8]], [[-1e8]], [[1.0]]])
    table = tf.Variable(tf.zeros([3, 1]))
    with tf.GradientTape() as tape:
        sums = sum_prefixes(table, tf.constant([[2, 1], [2, -1], [2, 1]]), [2])
    gradient = tape.gradient(sums, table, output_gradients=upstream)
    found = dict(
        zip(
            gradient.indices.numpy(), gradient.values.numpy()[:, 0], strict=True
        )
    )
    assert found == {2: 1.0, 1: 1e8}
    merged = merge_rows(
        tf.IndexedSlices(
            tf.constant([1e8, 5.0, -1e8, 1.0]),
            tf.constant([7, 3, 7, 7]),
            tf.constant([9]),
        )
    )
    found = dict(
        zip(merged.indices.numpy(), merged.values.numpy(), strict=True)
    )
    assert found == {7: 1.0, 3: 5.0}


def test_the_loss_s_own_rows_are_not_gathered_again() -> None:
    table = tf.Variable(tf.random.stateless_normal([SIZE + 1, DIM], [1, 2]))
    other = tf.Variable(table + 1.0)
    found: dict[str, Any] = {}

    @tf.function
    def step(ids: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(sum_prefixes(table, ids, (2, None)) ** 2)
        gradient = tape.gradient(loss, table)
        merged = merge_rows(gradient)
        found["as it was"] = merged is gradient
        rows = gathered(table, merged.indices)
        found["same"] = rows.op.name == "Gather"
        return merged.indices, rows, gathered(other, merged.indices)

    indices, rows, others = step(tf.constant([[3, 1, 3], [2, 3, -1]]))
    np.testing.assert_array_equal(indices, [3, 1, 2])
    np.testing.assert_array_equal(rows, table.numpy()[[3, 1, 2]])
    np.testing.assert_array_equal(others, other.numpy()[[3, 1, 2]])
    assert found == {"as it was": True, "same": True}
