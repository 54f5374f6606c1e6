"""Quantile normalisation against the exact distribution of all rows."""

import pickle
import random
import tracemalloc
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.normalization import (
    BottomKRows,
    KnotsAnalyzer,
    knots_from_sample,
    max_knots,
    normalize,
)
from beam_jobs.runners import pipeline_options
from schemas.hashing import mix

ROWS = 20_000


def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    zeros = rng.random(ROWS) < 0.8
    return {
        "heavy_tailed": rng.pareto(0.7, ROWS),
        "zero_inflated": np.where(zeros, 0.0, rng.lognormal(3, 1, ROWS)),
        "constant": np.full(ROWS, 4.0),
        "bimodal": np.where(
            zeros, rng.normal(-50, 1, ROWS), rng.normal(1e6, 1, ROWS)
        ),
        "few_distinct": rng.integers(0, 7, ROWS) * 1.5,
        "many_atoms": rng.geometric(0.003, ROWS) * 1.0,
        "two_atoms": np.where(zeros, 3.0, 3.5),
        "negative": -rng.pareto(1.5, ROWS),
    }


def apply(
    values: np.ndarray, knots: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """`normalize` of one column, with the filling the analyzer adds."""
    padded = np.append(knots, np.float32(np.inf))[None]
    filled = np.concatenate([levels, [[1.0, 1.0]]]).astype(np.float32)[None]
    x = normalize(tf.constant(values[:, None]), padded, filled)
    return x.numpy()[:, 0]


def exact(values: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """P(X < v) by definition."""
    return np.searchsorted(np.sort(values), probes, side="left") / len(values)


@pytest.mark.parametrize("num_quantiles", [2, 10, 100, 200, 500])
@pytest.mark.parametrize("name", list(columns()))
def test_every_value_within_one_quantile(name: str, num_quantiles: int) -> None:
    values = columns()[name].astype(np.float32)
    knots, levels = knots_from_sample(values, num_quantiles)
    assert np.all(np.diff(knots) > 0)
    assert len(knots) < max_knots(num_quantiles)
    # Probes at every value, just above and below each, and in between.
    distinct = np.unique(values)
    probes = np.unique(
        np.concatenate(
            [
                distinct,
                np.nextafter(distinct, np.float32(np.inf)),
                np.nextafter(distinct, np.float32(-np.inf)),
                (distinct[1:] + distinct[:-1]) / 2,
            ]
        ).astype(np.float32)
    )
    # TensorFlow's kernels read subnormal numbers as 0.
    probes = probes[(probes == 0) | (np.abs(probes) >= 1e-37)]
    x = apply(probes, knots, levels)[:, 0]
    error = np.abs(x - exact(values, probes)).max()
    # All rows are in the sample: what is left is the interpolation between
    # knots at most ceil((ROWS - 1) / 16 Q) rows apart, and float32.
    assert error <= 1 / (16 * num_quantiles) + 1 / ROWS + 1e-6
    assert error <= 1 / num_quantiles
    assert np.all(np.diff(x) >= 0)
    assert x.min() >= 0
    assert x.max() < 1


def test_atoms_keep_their_level_by_hand() -> None:
    # 6 zeros, then 10, 10, 20, 40: ten values.
    values = np.array([0] * 6 + [10, 10, 20, 40], np.float32)
    knots, levels = knots_from_sample(values, 100)
    probes = np.array([-1, 0, 5, 10, 15, 20, 30, 40, 41], np.float32)
    # Between 0 and 10 lies nothing, so P(X < 5) = .6; at 10 still .6, just
    # above it .8; nothing up to 20 (.8); between 20 and 40: .9.
    expected = [0, 0, 0.6, 0.6, 0.8, 0.8, 0.9, 0.9, 1.0]
    x = apply(probes, knots, levels)
    np.testing.assert_allclose(x[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(x[:, 1], np.square(expected), atol=1e-6)
    np.testing.assert_allclose(x[:, 2], np.sqrt(expected), atol=1e-6)
    assert not x[:, 3].any()
    assert x[-1, 0] == np.nextafter(np.float32(1), np.float32(0))


def test_constant_missing_and_infinite() -> None:
    knots, levels = knots_from_sample(np.full(9, 4, np.float32), 50)
    values = np.array([3, 4, 5, np.nan, np.inf, -np.inf], np.float32)
    x = apply(values, knots, levels)
    below_one = np.nextafter(np.float32(1), np.float32(0))
    np.testing.assert_array_equal(
        x[:, 0], np.array([0, 0, below_one, 0, below_one, 0], np.float32)
    )
    np.testing.assert_array_equal(x[3], [0, 0, 0, 1])
    assert not x[[0, 1, 2, 4, 5], 3].any()


def test_widest_gap_of_floats_is_no_overflow() -> None:
    largest = np.finfo(np.float32).max
    knots, levels = knots_from_sample(
        np.array([-largest, largest], np.float32), 10
    )
    x = apply(np.array([0, largest / 2], np.float32), knots, levels)
    np.testing.assert_allclose(x[:, 0], 0.5)


def test_extremes_that_the_sample_missed() -> None:
    sample = np.array([2.0, 3.0], np.float32)
    knots, levels = knots_from_sample(sample, 10, 1.0, 9.0)
    assert knots.tolist() == [1, 2, 3, 9]
    assert levels.tolist() == [[0, 0], [0, 0.5], [0.5, 1], [1, 1]]


@pytest.mark.parametrize("zeros", [[-0.0], [-0.0, 0.0], [0.0, -0.0]])
def test_negative_zero_leaves_no_trace(zeros: list[float]) -> None:
    sample = np.array([*zeros, 1, -1], np.float32)
    for values, low, high in (
        (sample, None, None),
        (sample[-2:-1], -0.0, 1.0),  # Zero as an extreme outside the sample.
        (sample[-1:], -1.0, -0.0),
    ):
        knots, _ = knots_from_sample(values, 10, low, high)
        assert 0 in knots
        assert not np.signbit(knots[knots == 0]).any()


Batch = tuple[np.ndarray, np.ndarray]


def analyze(
    batches: list[Batch],
    sample_size: int,
    folder: Path,
    fanout: int | None,
    flags: tuple[str, ...] = (),
) -> bytes:
    """The knots' bytes, by a pipeline over the batches in this order."""
    path = str(folder / f"knots-{len(list(folder.iterdir()))}.npy")
    features = batches[0][1].shape[1]
    analyzer = KnotsAnalyzer(features, 20, sample_size, 3, fanout)
    with beam.Pipeline(options=pipeline_options(flags)) as pipeline:
        rows = pipeline | beam.Create(batches, reshuffle=len(flags) > 0)
        _ = rows | analyzer | beam.Map(lambda knots: np.save(path, knots))
    knots = np.load(path)
    assert knots.shape == (features, max_knots(20), 3)
    return knots.tobytes()


def test_order_bundles_and_fanout_leave_no_trace(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    # Some keys many times, also at the edge of the sample.
    keys = rng.integers(0, 40, 5000)
    rows = rng.lognormal(0, 2, (5000, 3)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.3] = np.nan
    # Both zeros, which are equal but not in their bits.
    rows[:, 2] = rng.choice(np.float32([0.0, -0.0]), 5000)

    def batches(order: np.ndarray, size: int) -> list[Batch]:
        return [
            (keys[order[i : i + size]], rows[order[i : i + size]])
            for i in range(0, len(order), size)
        ]

    first = analyze(batches(np.arange(5000), 500), 1000, tmp_path, None)
    many_bundles = (
        "--direct_num_workers=3",
        "--direct_running_mode=multi_threading",
    )
    for size, fanout, flags in (
        (37, None, ()),
        (5000, 16, ()),
        (101, 16, many_bundles),
    ):
        some = batches(rng.permutation(5000), size)
        assert analyze(some, 1000, tmp_path, fanout, flags) == first


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.integers(1, 10),
    st.integers(1, 7),
    st.randoms(use_true_random=False),
)
def test_sample_is_the_rows_of_smallest_hash(
    keys: list[int], k: int, size: int, shuffler: random.Random
) -> None:
    """Repeated keys included: never more rows than the sample's size."""
    values = np.array(keys, np.float32)[:, None] + [0.0, 0.5]
    values[:, 1] = np.arange(len(keys)) // 2  # Some rows are equal in all.
    values = values.astype(np.float32)
    combine = BottomKRows(2, k, seed=9)
    order = list(range(len(keys)))
    shuffler.shuffle(order)
    accumulators = []
    for start in range(0, len(order), size):
        rows = np.array(order[start : start + size])
        accumulators.append(
            combine.add_input(
                combine.create_accumulator(),
                (np.array(keys)[rows], values[rows]),
            )
        )
        if shuffler.random() < 0.5:
            accumulators[-1] = combine.compact(accumulators[-1])
            assert len(accumulators[-1][0][0]) <= k
    sample, ranges = combine.extract_output(
        combine.merge_accumulators(accumulators)
    )
    # Of equal hash: by the last column, then by the first; none is negative,
    # so that the order of the bits is the order of the numbers.
    expected = sorted(
        zip(mix(9, np.array(keys)).tolist(), *values.T[::-1], strict=True)
    )[:k]
    found = sorted(tuple(r) for r in sample[:, ::-1].tolist())
    assert found == sorted(row[1:] for row in expected)
    # The range is of all rows, sampled or not.
    np.testing.assert_array_equal(
        ranges, [[min(keys), 0], [max(keys), (len(keys) - 1) // 2]]
    )


def test_rows_of_one_key_are_a_bounded_sample() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(50_000, 2)).astype(np.float32)
    combine = BottomKRows(2, 1000, seed=4)

    def sample(order: np.ndarray) -> np.ndarray:
        batches = [(np.zeros(500, int), rows[o]) for o in np.split(order, 100)]
        accumulator = combine.create_accumulator()
        for batch in batches:
            accumulator = combine.add_input(accumulator, batch)
            assert sum(len(a[0]) for a in accumulator) <= 2000
        found, _ = combine.extract_output(accumulator)
        return found[np.lexsort(found.T)]

    first = sample(np.arange(50_000))
    assert first.shape == (1000, 2)
    np.testing.assert_array_equal(sample(rng.permutation(50_000)), first)


def test_merging_holds_two_samples_however_many_bundles() -> None:
    size, width = 20_000, 4
    sample_bytes = size * (8 + 4 * width)
    combine = BottomKRows(width, size, seed=2)

    def accumulator(bundle: int) -> list:
        # Twice the sample waits in an accumulator that has not travelled.
        rows = np.full((2 * size, width), bundle, np.float32)
        keys = np.arange(2 * size) + bundle * 2 * size
        return combine.add_input(combine.create_accumulator(), (keys, rows))

    travelled = pickle.dumps(combine.compact(accumulator(0)))
    assert sample_bytes < len(travelled) < 1.05 * sample_bytes
    tracemalloc.start()
    bundles = (pickle.loads(travelled) for _ in range(50))
    merged = combine.merge_accumulators(bundles)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Two samples, both joined, and hashes as they are partitioned.
    assert peak < 6 * sample_bytes
    assert len(merged) == 1 and len(merged[0][0]) == size


def test_absent_candidates_are_no_rows() -> None:
    rows = np.array(
        [[[1, np.nan], [np.nan, np.nan]], [[2, 5], [3, np.nan]]], np.float32
    )
    combine = BottomKRows(2, 100, seed=0)
    sample, ranges = combine.extract_output(
        combine.add_input([], (np.array([1, 2]), rows))
    )
    assert sorted(sample[:, 0].tolist()) == [1, 2, 3]
    np.testing.assert_array_equal(ranges, [[1, 5], [3, 5]])


def test_a_sample_of_the_real_size_stays_within_the_bound() -> None:
    """1/Q at Q = 500 from 2^20 of 1.5 million rows, at every value."""
    rows, sample_size, num_quantiles = 1_500_000, 2**20, 500
    rng = np.random.default_rng(11)
    low = rng.random(rows, np.float32) < 0.8
    tail = rng.pareto(0.7, rows)
    shifted = np.where(low, rng.normal(-50, 1, rows), rng.normal(1e6, 1, rows))
    values = {
        "heavy_tailed": tail,
        "zero_inflated": np.where(low, 0.0, np.exp(tail.clip(0, 40))),
        "constant": np.full(rows, 4.0),
        "bimodal": shifted,
        "many_atoms": rng.geometric(0.003, rows),
    }
    stacked = np.stack(list(values.values()), axis=1).astype(np.float32)
    combine = BottomKRows(len(values), sample_size, seed=1)
    accumulator = combine.create_accumulator()
    for batch in np.split(np.arange(rows), 6):
        accumulator = combine.add_input(accumulator, (batch, stacked[batch]))
    sample, ranges = combine.extract_output(accumulator)
    assert len(sample) == sample_size
    for feature, name in enumerate(values):
        column = np.sort(stacked[:, feature])
        knots, levels = knots_from_sample(
            sample[:, feature], num_quantiles, *ranges[:, feature]
        )
        assert (knots[0], knots[-1]) == (column[0], column[-1])
        assert len(knots) < max_knots(num_quantiles)
        # P(X < v) steps just above the values and x~ only rises, so their
        # difference is largest at a value or just above it.
        distinct, counts = np.unique(column, return_counts=True)
        distinct[np.abs(distinct) < 1e-37] = 0
        above = np.nextafter(distinct, np.float32(np.inf))
        above[np.abs(above) < 1e-37] = 1.2e-37
        at_most = np.cumsum(counts) / rows
        probes = np.concatenate([distinct, above])
        expected = np.concatenate([at_most - counts / rows, at_most])
        x = apply(probes, knots, levels)[:, 0]
        error = np.abs(x - expected)
        assert error.max() <= 1 / num_quantiles, name
        # An atom is a knot: its two levels err by the sampling alone, some
        # three standard deviations of .5 / sqrt(2^20) = .00049.
        atoms = np.tile(counts > rows / num_quantiles, 2)
        # (Around a million, float32 goes in steps of 1/16: atoms as well.)
        assert atoms.any() == (name != "heavy_tailed")
        assert not error[atoms].size or error[atoms].max() <= 0.0015, name


def test_no_rows_and_no_values() -> None:
    combine = BottomKRows(2, 10, seed=0)
    empty, ranges = combine.extract_output(combine.create_accumulator())
    assert empty.shape == (0, 2) and np.isnan(ranges).all()
    knots = np.full((1, 4), np.inf, np.float32)
    levels = np.ones((1, 4, 2), np.float32)
    x = normalize(tf.constant([[5.0], [np.nan]]), knots, levels)
    np.testing.assert_array_equal(x.numpy()[:, 0], [[0, 0, 0, 0], [0, 0, 0, 1]])
