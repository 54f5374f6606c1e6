"""The sweep of the example age, against weights set by hand."""

import numpy as np
import pyarrow as pa
import pytest

from models.keras_setup import tf
from models.retrieval import RetrievalModel
from pipeline.experiments import age_curves
from schemas.features import Feature, FeatureSet
from schemas.model_config import RetrievalConfig
from schemas.split import SplitBounds
from schemas.vocabularies import Vocabulary

DAY_US = 86_400_000_000
START = 19_700 * DAY_US


def hand_set_model(example_age: bool) -> RetrievalModel:
    """u = (last watch is video 1, age); v_1 = (1, 2), v_2 = (0, 0), b_2 = 1."""
    features = FeatureSet(
        (Feature("watch_history", "bag", "query", "video", 2),)
    )
    config = RetrievalConfig(
        embedding_dim=2,
        recency_bags=(1,),
        hidden_units=(),
        output_activation="linear",
        dropout=0.0,
        left_out=() if example_age else ("example_age",),
    )
    model = RetrievalModel(features, {"video": 2}, config, 1, example_age=True)
    model.embeddings.tables["video"].assign([[0, 0], [1, 0], [0, 0]])
    (layer,) = model.query_tower.towers[0].layers
    # Inputs: the bag's two dimensions, then the age.
    kernel = [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]][: 3 if example_age else 2]
    layer.kernel.assign(kernel)
    layer.bias.assign([0.0, 0.0])
    model.output_embeddings.assign([[9, 9], [1, 2], [0, 0]])
    model.output_biases.assign([9.0, 0.0, 1.0])
    return model


def test_the_sweep_is_the_mean_softmax_over_the_contexts() -> None:
    contexts = {"watch_history": tf.constant([[1, 2], [2, 1]], tf.int64)}
    # Three days of two moments each.
    ages = np.float32([[0.0, 0.1], [0.5, 0.6], [0.9, 1.0]])
    found = age_curves.swept_probabilities(
        hand_set_model(True), contexts, ages, np.array([2, 1])
    )
    # Logit of video 1: 1 or 0 by context, + 2 age; of video 2: always 1.
    logits = np.array([1.0, 0.0]) + 2 * ages[:, :, None]
    first = (1 / (1 + np.exp(1 - logits))).mean(axis=(1, 2))
    np.testing.assert_allclose(found[1], first, rtol=1e-6)
    np.testing.assert_allclose(found[0], 1 - first, rtol=1e-6)


def test_without_the_age_the_curve_is_constant_and_uncorrelated() -> None:
    contexts = {"watch_history": tf.constant([[1, 2]], tf.int64)}
    ages = np.linspace(0, 1, 28, dtype=np.float32)[:, None]
    found = age_curves.swept_probabilities(
        hand_set_model(False), contexts, ages, np.array([1, 2])
    )
    assert np.ptp(found, axis=1).tolist() == [0.0, 0.0]
    np.testing.assert_array_equal(
        age_curves.correlations(found, np.stack([ages[:, 0]] * 2)), [0.0, 0.0]
    )


def test_correlations_are_row_by_row() -> None:
    ages = np.arange(4.0)
    found = age_curves.correlations(
        np.stack([ages, ages, np.ones(4)]),
        np.stack([3 * ages + 1, -ages, ages]),
    )
    np.testing.assert_allclose(found, [1.0, -1.0, 0.0])


@pytest.fixture
def bounds() -> SplitBounds:
    end = START + 4 * DAY_US
    return SplitBounds("time", START, end, end + DAY_US, 0.0)


def test_ages_are_those_of_moments_of_the_days(bounds: SplitBounds) -> None:
    found = age_curves.day_ages(bounds)
    # Of 4 days; the first day's moments are 1/8, 3/8, 5/8, 7/8 of it.
    assert found.shape == (4, 4)
    np.testing.assert_allclose(found[0], 1 - np.array([1, 3, 5, 7]) / 32)
    np.testing.assert_allclose(found[3], np.array([7, 5, 3, 1]) / 32)


def test_shares_of_the_log_are_of_completed_watches(
    bounds: SplitBounds,
) -> None:
    rows = [
        ("a", 0.1, True),
        ("b", 0.9, True),
        ("a", 0.2, False),
        ("unknown", 0.5, True),
        ("a", 3.5, True),
        ("a", 4.5, True),  # After the window.
    ]
    videos, days, completed = zip(*rows, strict=True)
    watches = pa.table(
        {
            "video_id": videos,
            "event_time_us": [START + int(d * DAY_US) for d in days],
            "completed": completed,
        }
    )
    vocabulary = Vocabulary.of_terms("video", ["a", "b"], [3, 1])
    np.testing.assert_array_equal(
        age_curves.daily_shares(watches, vocabulary, bounds),
        [[0.5, 0, 0, 1.0], [0.5, 0, 0, 0]],
    )


def test_curves_are_laid_over_each_other_at_their_uploads() -> None:
    curves = np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 5.0]])
    # Uploaded on day 1 and on day 2; day +1 only one video has: half of 2.
    assert age_curves.by_days_since_upload(curves, np.array([1, 2])) == {
        -2: 0.0,
        -1: 0.0,
        0: 3.0,
        1: 2.0,
    }


def test_true_shares_are_by_the_ids_of_the_vocabulary() -> None:
    truth = pa.table(
        {
            "video_id": ["b", "a", "b", "c", "b"],
            "day": [0, 0, 1, 1, 7],
            "expected_popularity": [0.25, 0.75, 1.0, 0.5, 0.3],
        }
    )
    vocabulary = Vocabulary.of_terms("video", ["a", "b"], [2, 1])
    np.testing.assert_array_equal(
        age_curves.true_shares(truth, vocabulary, 2), [[0.75, 0], [0.25, 1]]
    )
