"""Quantile normalisation against the exact distribution of all rows."""

import random
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


@pytest.mark.parametrize("num_quantiles", [10, 200, 500])
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


Batch = tuple[np.ndarray, np.ndarray]


def analyze(
    batches: list[Batch], features: int, sample_size: int, folder: Path
) -> bytes:
    """The knots' bytes, by a pipeline over the batches in this order."""
    path = str(folder / f"knots-{len(list(folder.iterdir()))}.npy")
    analyzer = KnotsAnalyzer(features, 20, sample_size, seed=3)
    with beam.Pipeline(options=pipeline_options()) as pipeline:
        rows = pipeline | beam.Create(batches, reshuffle=False)
        _ = rows | analyzer | beam.Map(lambda knots: np.save(path, knots))
    knots = np.load(path)
    assert knots.shape == (features, max_knots(20), 3)
    return knots.tobytes()


def test_order_and_bundles_leave_no_trace(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    keys = np.arange(5000)
    rows = rng.lognormal(0, 2, (5000, 3)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.3] = np.nan

    def batches(order: np.ndarray, size: int) -> list[Batch]:
        return [
            (keys[order[i : i + size]], rows[order[i : i + size]])
            for i in range(0, len(order), size)
        ]

    first = analyze(batches(np.arange(5000), 500), 3, 1000, tmp_path)
    for size in (37, 5000):
        order = rng.permutation(5000)
        assert analyze(batches(order, size), 3, 1000, tmp_path) == first


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
    """Repeated keys included: rows that tie with the k-th are all kept."""
    values = np.arange(len(keys), dtype=np.float32)[:, None]
    combine = BottomKRows(1, k, seed=9)
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
    sample, ranges = combine.extract_output(
        combine.merge_accumulators(accumulators)
    )
    hashes = mix(9, np.array(keys))
    bound = np.sort(hashes)[min(k, len(keys)) - 1]
    expected = values[hashes <= bound]
    np.testing.assert_array_equal(np.sort(sample, axis=0), expected)
    # The range is of all rows, sampled or not.
    np.testing.assert_array_equal(ranges, [[0], [len(keys) - 1]])


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


def test_sampled_knots_stay_within_the_bound() -> None:
    """1/Q with Q = 20 and k = 5,000 of 20,000: .0125 + 3 sd of .0061."""
    values = columns()["heavy_tailed"].astype(np.float32)[:, None]
    combine = BottomKRows(1, 5000, seed=1)
    sample, ranges = combine.extract_output(
        combine.add_input([], (np.arange(ROWS), values))
    )
    assert len(sample) == 5000
    knots, levels = knots_from_sample(sample[:, 0], 20, *ranges[:, 0])
    assert knots[0] == values.min() and knots[-1] == values.max()
    probes = np.sort(values[:, 0])
    x = apply(probes, knots, levels)[:, 0]
    assert np.abs(x - exact(values[:, 0], probes)).max() <= 1 / 20


def test_no_rows_and_no_values() -> None:
    combine = BottomKRows(2, 10, seed=0)
    empty, ranges = combine.extract_output(combine.create_accumulator())
    assert empty.shape == (0, 2) and np.isnan(ranges).all()
    knots = np.full((1, 4), np.inf, np.float32)
    levels = np.ones((1, 4, 2), np.float32)
    x = normalize(tf.constant([[5.0], [np.nan]]), knots, levels)
    np.testing.assert_array_equal(x.numpy()[:, 0], [[0, 0, 0, 0], [0, 0, 0, 1]])
