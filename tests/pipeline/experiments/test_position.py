"""The learnt position bias as factors, by hand."""

import numpy as np
import pytest

from pipeline.experiments.position import (
    POSITIONS,
    click_ratios,
    mean_log_error,
)


def test_ratios_are_of_the_mean_probability_of_the_same_impressions() -> None:
    # [position, device, surface], 0 of each is "not known".
    bias = np.zeros((POSITIONS + 1, 3, 3))
    bias[0, 2, 1] = -1.0  # What serving adds is taken off again.
    bias[2, 2, 1], bias[3, 2, 2] = np.log(0.5), np.log(0.25)
    # Odds of 1 and 3 on device 2; device 1 has no bias at all.
    odds = np.array([1.0, 3.0, 9.0])
    served = odds * np.exp([-1.0, 0.0, 0.0])
    found = click_ratios(
        bias,
        served / (1 + served),
        np.array([2, 2, 1]),
        np.array([1, 2, 1]),
        2,
    )
    first = (1 / 2 + 3 / 4) / 2
    second = (0.5 / 1.5 + 3 / 4) / 2
    third = (1 / 2 + 0.75 / 1.75) / 2
    expected = np.ones((2, POSITIONS))
    expected[1, 1:3] = second / first, third / first
    np.testing.assert_allclose(found, expected)


def test_the_error_is_of_logarithms_without_the_first() -> None:
    truth = np.array([[1.0, 0.5, 0.25]])
    found = np.array([[8.0, 1.0, 0.125]])
    assert mean_log_error(found, truth) == pytest.approx(np.log(2))
