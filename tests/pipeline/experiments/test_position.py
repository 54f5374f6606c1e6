"""The learnt position bias as factors, by hand."""

import numpy as np
import pytest

from pipeline.experiments.position import mean_log_error, relative_bias


class _Bias:
    def __init__(self, logits: np.ndarray) -> None:
        self.logits = self
        self._values = logits

    def numpy(self) -> np.ndarray:
        return self._values


class _Model:
    def __init__(self, logits: np.ndarray) -> None:
        self.position_bias = _Bias(logits)


def test_factors_are_relative_to_the_first_position() -> None:
    # [position, device, surface], 0 of each is "not known".
    logits = np.zeros((4, 2, 3))
    logits[:, 1, 1] = [9.0, 1.0, 1.0 + np.log(0.5), 1.0]
    logits[:, 1, 2] = [9.0, 0.0, np.log(0.2), np.log(0.1)]
    # Three of four impressions are on surface 1.
    shown = np.zeros((1, 2, 3))
    shown[0, :, 1], shown[0, :, 2] = 3, 1
    found = relative_bias(_Model(logits), shown)
    # (3 x 0.5 + 0.2) / 4.
    np.testing.assert_allclose(found, [[1.0, 1.7 / 4]])


def test_the_error_is_of_logarithms_without_the_first() -> None:
    truth = np.array([[1.0, 0.5, 0.25]])
    found = np.array([[8.0, 1.0, 0.125]])
    assert mean_log_error(found, truth) == pytest.approx(np.log(2))
