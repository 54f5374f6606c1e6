"""Row rules against NumPy, row by row, and that nothing reads a table."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from models.keras_setup import tf
from models.optimizers import RowOptimizer, table_optimizer
from models.rows import merge_rows

ROWS = 12
NAMES = ["rowwise_adagrad", "lazy_adam"]
Step = tuple[np.ndarray, np.ndarray]


def gradients(dim: int) -> Iterator[Step]:
    """Five steps with duplicate rows; row 9 in the last only, 11 never."""
    rng = np.random.default_rng(5)
    for step in range(5):
        rows = rng.integers(1, 9, size=10)
        if step == 4:
            rows[3] = 9
        yield rows, rng.normal(size=(10, dim))


def merged(rows: np.ndarray, values: np.ndarray) -> dict[int, Any]:
    totals: dict[int, Any] = {}
    for row, value in zip(rows, values, strict=True):
        totals[int(row)] = totals.get(int(row), 0.0) + value
    return totals


def adagrad_oracle(table: np.ndarray, rate: float) -> np.ndarray:
    table, total = table.astype(np.float64), np.zeros(len(table))
    for rows, values in gradients(table.shape[1]):
        for row, g in merged(rows, values).items():
            total[row] += np.mean(g**2)
            table[row] -= rate * g / (np.sqrt(total[row]) + 1e-8)
    return table


def adam_oracle(table: np.ndarray, rate: float) -> np.ndarray:
    """Textbook Adam on each row's own sequence of gradients."""
    table = table.astype(np.float64)
    m, v = np.zeros_like(table), np.zeros_like(table)
    t = np.zeros(len(table))
    for rows, values in gradients(table.shape[1]):
        for row, g in merged(rows, values).items():
            t[row] += 1
            m[row] = 0.9 * m[row] + 0.1 * g
            v[row] = 0.999 * v[row] + 0.001 * g**2
            m_hat = m[row] / (1 - 0.9 ** t[row])
            v_hat = v[row] / (1 - 0.999 ** t[row])
            table[row] -= rate * m_hat / (np.sqrt(v_hat) + 1e-7)
    return table


ORACLES = {"rowwise_adagrad": adagrad_oracle, "lazy_adam": adam_oracle}


def apply(
    optimizer: RowOptimizer,
    table: tf.Variable,
    rows: np.ndarray,
    values: np.ndarray,
) -> None:
    gradient = tf.IndexedSlices(
        tf.constant(values, tf.float32),
        tf.constant(rows),
        tf.constant(table.shape.as_list()),
    )
    optimizer.apply_gradients([(gradient, table)])


@pytest.mark.parametrize("name", NAMES)
def test_tables_equal_the_oracle_after_five_steps(name: str) -> None:
    start = np.random.default_rng(1).normal(size=(ROWS, 3)).astype(np.float32)
    table, optimizer = tf.Variable(start), table_optimizer(name, 0.1)
    for rows, values in gradients(3):
        apply(optimizer, table, rows, values)
    expected = ORACLES[name](start, 0.1)
    np.testing.assert_allclose(table.numpy(), expected, atol=2e-6)
    # Rows that never occurred keep their bits; the late one has moved.
    untouched = [0, 10, 11]
    np.testing.assert_array_equal(table.numpy()[untouched], start[untouched])
    assert np.all(table.numpy()[9] != start[9])


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_scalars_equals_the_oracle(name: str) -> None:
    start = np.random.default_rng(1).normal(size=(ROWS, 1)).astype(np.float32)
    table, optimizer = tf.Variable(start[:, 0]), table_optimizer(name, 0.1)
    for rows, values in gradients(1):
        apply(optimizer, table, rows, values[:, 0])
    expected = ORACLES[name](start, 0.1)[:, 0]
    np.testing.assert_allclose(table.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_tables_have_states_of_their_own(name: str) -> None:
    start = np.random.default_rng(1).normal(size=(ROWS, 3)).astype(np.float32)
    one, other = tf.Variable(start), tf.Variable(start[:10] * 2)
    optimizer = table_optimizer(name, 0.1)
    optimizer.build([other, one])
    for rows, values in gradients(3):
        pair = []
        for table in (one, other):
            shape = tf.constant(table.shape.as_list())
            v = tf.constant(values, tf.float32)
            pair.append((tf.IndexedSlices(v, tf.constant(rows), shape), table))
        optimizer.apply_gradients(pair)
    for table, first in ((one, start), (other, start[:10] * 2)):
        expected = ORACLES[name](first, 0.1)
        np.testing.assert_allclose(table.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_gradient_is_one_of_all_rows(name: str) -> None:
    values = np.random.default_rng(2).normal(size=(ROWS, 3)).astype(np.float32)
    tables = [tf.Variable(tf.ones([ROWS, 3])) for _ in range(2)]
    dense, sparse = table_optimizer(name, 0.1), table_optimizer(name, 0.1)
    dense.apply_gradients([(tf.constant(values), tables[0])])
    apply(sparse, tables[1], np.arange(ROWS), values)
    np.testing.assert_array_equal(tables[0].numpy(), tables[1].numpy())


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_gradient_moves_nothing(name: str) -> None:
    # Padding reads row 0 with weight 0: its gradient is 0 and it stays zero.
    table, optimizer = tf.Variable(tf.zeros([4, 2])), table_optimizer(name, 1.0)
    for _ in range(3):
        apply(optimizer, table, np.array([0, 0]), np.zeros((2, 2)))
    assert not np.any(table.numpy())


def test_merged_rows_are_sums_in_order_of_first_occurrence() -> None:
    values = tf.constant([[1.0], [10.0], [100.0], [1000.0]])
    rows = tf.constant([7, 2, 7, 5], tf.int64)
    found = merge_rows(tf.IndexedSlices(values, rows, tf.constant([9, 1])))
    np.testing.assert_array_equal(found.indices, [7, 2, 5])
    np.testing.assert_array_equal(found.values, [[101.0], [10.0], [1000.0]])


@pytest.mark.parametrize("name", NAMES)
def test_duplicates_give_the_same_bits_each_time(name: str) -> None:
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 20, size=20_000)
    values = rng.normal(size=(20_000, 8))
    results = set()
    for _ in range(5):
        table = tf.Variable(tf.zeros([20, 8]))
        apply(table_optimizer(name, 0.1), table, rows, values)
        results.add(table.numpy().tobytes())
    assert len(results) == 1


def graph_tensors(graph: Any) -> Iterator[tf.Tensor]:
    """All tensors of a graph and of the functions it calls."""
    functions = [graph, *graph._functions.values()]
    for function in functions:
        inner = getattr(function, "graph", function)
        for operation in inner.get_operations():
            yield from operation.outputs


@pytest.mark.parametrize("name", NAMES)
def test_no_operation_of_a_step_yields_a_whole_table(name: str) -> None:
    # 9,973 rows, a number that nothing else here has. Only the handles of
    # variables may lead to a table: then a step's cost cannot grow with it.
    size = 9_973
    table = tf.Variable(tf.zeros([size, 4]))
    bias = tf.Variable(tf.zeros([size]))
    optimizer = table_optimizer(name, 0.1)
    optimizer.build([table, bias])

    @tf.function
    def step(ids: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            rows = tf.gather(table, ids) * tf.gather(bias, ids)[:, None]
            loss = tf.reduce_sum(rows**2)
        pair = (table, bias)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, pair), pair, strict=True)
        )

    spec = tf.TensorSpec([32], tf.int64)
    graph = step.get_concrete_function(spec).graph
    tensors = list(graph_tensors(graph))
    kinds = {t.op.type for t in tensors}
    assert "ResourceGather" in kinds and len(tensors) > 30
    whole = [
        t
        for t in tensors
        if t.dtype != tf.resource and size in (t.shape.as_list() or [])
    ]
    assert whole == []
    # Nor one that reads it at an unknown shape.
    assert not {"ReadVariableOp"} & {
        t.op.type for t in tensors if t.shape.rank != 0
    }


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="received 'adam'"):
        table_optimizer("adam", 0.1)  # type: ignore[arg-type]
