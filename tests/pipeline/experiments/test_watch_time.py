"""Tenths of the prediction, and the truth of an impression, by hand."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.experiments.watch_time import decile_means, expected_of


def test_tenths_are_by_the_prediction() -> None:
    # Two of each tenth: 0 and 1, 2 and 3, ...
    order = np.random.default_rng(1).permutation(20)
    sides = {"twice": 2.0 * order, "one": np.ones(20)}
    found = decile_means(order.astype(float), sides)
    np.testing.assert_allclose(found["twice"], np.arange(10) * 4.0 + 1.0)
    np.testing.assert_allclose(found["one"], 1.0)


IMPRESSIONS = pa.table(
    {
        "request_id": ["r", "r", "s"],
        "video_id": ["a", "b", "a"],
        "event_time_us": [5, 5, 9],
        "position": [2, 1, 1],
    }
)
TRUTH = pa.table(
    {
        "request_id": ["s", "r", "r", "t"],
        "video_id": ["a", "a", "b", "a"],
        "position": [1, 2, 1, 1],
        "expected_watch_time_s": [30.0, 10.0, 20.0, 99.0],
    }
)


def test_the_truth_is_found_by_moment_and_place() -> None:
    found = expected_of(
        np.array([9, 5, 5]), np.array([1, 1, 2]), IMPRESSIONS, TRUTH
    )
    np.testing.assert_array_equal(found, [30.0, 20.0, 10.0])


@pytest.mark.parametrize("time_us", [7, 5])
def test_an_impression_that_is_not_one_is_refused(time_us: int) -> None:
    # None is of 7; of 5 there would be two at place 1.
    log = IMPRESSIONS.set_column(3, "position", pa.array([1, 1, 1]))
    with pytest.raises(ValueError, match="one impression"):
        expected_of(np.array([time_us]), np.array([1]), log, TRUTH)
