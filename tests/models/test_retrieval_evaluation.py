"""Evaluation of a model and of a baseline, against numbers by hand."""

import numpy as np
import pytest

from models import retrieval_evaluation
from models.baselines import Popularity
from models.keras_setup import tf
from models.retrieval_evaluation import (
    ExactRanker,
    IndexRanker,
    ModelScorer,
    evaluate,
)
from models.scann_top_k import ScannTopK


class LinearModel:
    """u = the feature `direction`; three videos in two dimensions."""

    def query_embedding(self, features):
        return tf.cast(features["direction"], tf.float32)

    def candidates(self):
        return (
            tf.constant([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]),
            tf.constant([0.0, 0.0, 0.3]),
        )


def cases():
    """Two users: one looks along axis 0, one along axis 1."""
    return {
        "direction": tf.constant([[1.0, 0.0], [0.0, 1.0]]),
        "watch_history": tf.constant([[2, -1], [-1, -1]], tf.int64),
        "labels": tf.ragged.constant([[3], [1, 2]], dtype=tf.int64),
        "seen": tf.ragged.constant([[1], []], dtype=tf.int64),
    }


def test_model_is_scored_by_dot_product_plus_bias():
    scores = ModelScorer(LinearModel()).scores(cases())
    # (1, 0): 1, 0, .5 + .3; (0, 1): 0, 1, .8.
    np.testing.assert_allclose(scores, [[1, 0, 0.8], [0, 1, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_metrics_of_a_model(monkeypatch, chunk_bytes):
    monkeypatch.setattr(retrieval_evaluation, "_CHUNK_BYTES", chunk_bytes)
    got = evaluate(
        ExactRanker(ModelScorer(LinearModel())),
        [cases(), cases()],
        (1, 2),
        "retrieval.",
    )
    assert got["retrieval.cases"] == 4
    # First user: label 3 is second, first once 1 is removed; second user:
    # label 1 is last of three.
    assert got["retrieval.hit_rate_at_1"] == 0.0
    assert got["retrieval.hit_rate_at_2"] == 0.5
    assert got["retrieval.hit_rate_at_1_seen_removed"] == 0.5
    # Average precision: 1/2, and (1/1 + 2/3) / 2 = 5/6; mean 2/3.
    assert got["retrieval.mean_average_precision"] == pytest.approx(2 / 3)


def test_metrics_of_a_baseline_have_the_same_names():
    popularity = evaluate(
        ExactRanker(Popularity(np.array([3, 2, 1]))), [cases()], (1, 2), "x."
    )
    model = evaluate(
        ExactRanker(ModelScorer(LinearModel())), [cases()], (1, 2), "x."
    )
    assert popularity.keys() == model.keys()
    # Label 3 is last, label 1 first.
    assert popularity["x.hit_rate_at_1"] == 0.5


def test_an_exact_index_finds_what_the_model_ranks():
    model = LinearModel()
    exact = evaluate(ExactRanker(ModelScorer(model)), [cases()], (1, 2))
    # ScaNN's brute force, below 20,000 videos.
    embeddings, biases = model.candidates()
    index = ScannTopK(2).index(embeddings, biases=biases)
    found = evaluate(IndexRanker(model, index, 2), [cases()], (1, 2))
    del exact["mean_average_precision"]
    assert found == pytest.approx(exact)


class OnlyTheFirst:
    """An index that never finds more than the video 3."""

    num_videos = 3

    def search(self, queries, k):
        ids = np.zeros((len(queries), k), np.int64)
        ids[:, 0] = 3
        return ids, np.zeros(ids.shape)


def test_what_an_index_does_not_return_is_a_miss():
    found = evaluate(
        IndexRanker(LinearModel(), OnlyTheFirst(), 2), [cases()], (2,)
    )
    assert found["hit_rate_at_2"] == 0.5
    assert found["recall_at_2"] == 0.5


DAY_US = 86_400_000_000


def sliced_cases():
    """The cases above, on day 10; the first user has seen six videos."""
    return cases() | {
        "event_time_us": tf.constant([10 * DAY_US, 10 * DAY_US], tf.int64),
        "seen": tf.ragged.constant([[1, 2, 3, 1, 2, 3], []], dtype=tf.int64),
        "labels": tf.ragged.constant([[3, 0], [1, 2]], dtype=tf.int64),
    }


def test_hit_rates_by_activity_and_video_age():
    # Uploaded 9 and 3 days before, and half a day after the case.
    uploads = np.array([1.0, 7.0, 10.5]) * DAY_US
    got = evaluate(
        ExactRanker(ModelScorer(LinearModel())),
        [sliced_cases()],
        (1, 2),
        sliced=True,
        upload_time_us=uploads,
    )
    got = {n: v for n, v in got.items() if n.startswith("by_")}
    # Ranks: 3 is second of 1, 3, 2; 1 is last and 2 first of 2, 3, 1.
    assert got == {
        # Three distinct videos seen, and none.
        "by_activity.seen_0_to_5.cases": 2.0,
        "by_activity.seen_0_to_5.hit_rate_at_1": 0.0,
        "by_activity.seen_0_to_5.hit_rate_at_2": 0.5,
        "by_video_age.under_2_days.labels": 1.0,
        "by_video_age.under_2_days.hit_rate_at_1": 0.0,
        "by_video_age.under_2_days.hit_rate_at_2": 1.0,
        "by_video_age.2_to_7_days.labels": 1.0,
        "by_video_age.2_to_7_days.hit_rate_at_1": 1.0,
        "by_video_age.2_to_7_days.hit_rate_at_2": 1.0,
        "by_video_age.7_to_30_days.labels": 1.0,
        "by_video_age.7_to_30_days.hit_rate_at_1": 0.0,
        "by_video_age.7_to_30_days.hit_rate_at_2": 0.0,
        "by_video_age.out_of_vocabulary.labels": 1.0,
        "by_video_age.out_of_vocabulary.hit_rate_at_1": 0.0,
        "by_video_age.out_of_vocabulary.hit_rate_at_2": 0.0,
    }


@pytest.mark.parametrize(
    ("days", "bucket"),
    [
        (1.999, "under_2_days"),
        (2.0, "2_to_7_days"),
        (7.0, "7_to_30_days"),
        (30.0, "over_30_days"),
    ],
)
def test_a_bucket_of_video_age_begins_at_its_bound(days, bucket):
    uploads = np.array([np.nan, np.nan, 10.0 - days]) * DAY_US
    got = evaluate(
        ExactRanker(ModelScorer(LinearModel())),
        [sliced_cases()],
        (2,),
        sliced=True,
        upload_time_us=uploads,
    )
    # The videos of unknown age are in no bucket.
    labels = [n for n in got if n.endswith(".labels")]
    assert labels == [
        f"by_video_age.{bucket}.labels",
        "by_video_age.out_of_vocabulary.labels",
    ]


@pytest.mark.parametrize(
    ("seen", "bucket"),
    [(5, "0_to_5"), (6, "6_to_20"), (21, "21_to_100"), (101, "over_100")],
)
def test_a_bucket_of_activity_begins_at_its_bound(seen, bucket):
    scorer = Popularity(np.arange(200)[::-1])
    case = {
        "watch_history": np.array([[-1]]),
        "labels": np.array([[1]]),
        "seen": np.arange(seen)[None] + 1,
        "event_time_us": np.array([0]),
    }
    got = evaluate(ExactRanker(scorer), [case], (1,), sliced=True)
    assert got[f"by_activity.seen_{bucket}.hit_rate_at_1"] == 1.0
    assert sum(n.endswith(".cases") for n in got) == 1
