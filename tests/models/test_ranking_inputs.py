"""What the ranking network reads of a continuous value, with powers or not."""

import numpy as np
import pytest

from models.keras_setup import tf
from models.ranking_inputs import RankingInputs
from schemas.features import Feature, FeatureSet

FEATURES = FeatureSet(
    (
        Feature("user_age", "continuous", "query", unit="years"),
        Feature("duration_s", "continuous", "candidate", unit="s"),
    )
)


@pytest.mark.parametrize(
    ("powers", "kept"), [(True, [0, 1, 2, 3]), (False, [0, 3])]
)
def test_powers_are_read_or_not(powers: bool, kept: list[int]) -> None:
    inputs = RankingInputs(FEATURES, {}, 4, 1, powers)
    # x~, x~ squared, its root, is missing.
    age = np.float32([[0.25, 0.0625, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]])
    duration = np.float32([[[0.64, 0.4096, 0.8, 0.0]], [[0.0, 0.0, 0.0, 1.0]]])
    features = {"user_age": tf.constant(age), "duration_s": duration}
    slots = tf.constant([[1, 0], [0, 0]], tf.int64)
    assert inputs.widths == {n: len(kept) for n in ("user_age", "duration_s")}
    assert inputs.request_width == len(kept)
    np.testing.assert_array_equal(inputs.request(features), age[:, kept])
    np.testing.assert_array_equal(
        inputs.candidate(features, slots), duration[[1, 0], 0][:, kept]
    )
