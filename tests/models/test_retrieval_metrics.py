"""Retrieval metrics against hand numbers and a sort of the whole ranking."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval_metrics import RetrievalMetrics


def metrics_of(scores, labels, seen=(), top_k=(1, 2, 10)):
    metrics = RetrievalMetrics(top_k)
    metrics.update(
        np.array([scores], np.float32),
        [np.array(labels, np.int64)],
        [np.array(seen, np.int64)],
    )
    return metrics.result()


def test_hand_numbers_of_one_case():
    # Ranking: id 2 (.9), 4 (.8), 1 (.5), 3 (.1); labels 1, 4 and one unknown:
    # positions 2 and 3 of three relevant videos.
    got = metrics_of([0.5, 0.9, 0.1, 0.8], labels=[1, 4, 0])
    assert got["hit_rate_at_2"] == 0.0  # First label 1 is third.
    assert got["hit_rate_at_10"] == 1.0
    assert got["precision_at_1"] == 0.0
    assert got["precision_at_2"] == 0.5
    assert got["precision_at_10"] == 0.2
    assert got["recall_at_2"] == pytest.approx(1 / 3)
    assert got["recall_at_10"] == pytest.approx(2 / 3)
    # (1/2 + 2/3) / 3 = 7/18.
    assert got["mean_average_precision"] == pytest.approx(7 / 18)
    # (1/log2 3 + 1/log2 4) / (1/log2 2 + 1/log2 3 + 1/log2 4)
    #   = (.63093 + .5) / (1 + .63093 + .5) = .53071.
    assert got["ndcg_at_10"] == pytest.approx(0.53072, abs=1e-5)


def test_tie_counts_against_us():
    # All equal: the label is last of four, not first.
    got = metrics_of([1.0, 1.0, 1.0, 1.0], labels=[2], top_k=(3, 4))
    assert got["hit_rate_at_3"] == 0.0
    assert got["hit_rate_at_4"] == 1.0
    assert got["mean_average_precision"] == 0.25


def test_seen_videos_leave_the_ranking():
    # Better than label 3 (.2): ids 1 and 2, of which 1 was seen.
    got = metrics_of([0.9, 0.5, 0.2], labels=[3], seen=[1])
    assert got["hit_rate_at_2"] == 0.0
    assert got["hit_rate_at_2_seen_removed"] == 1.0
    assert got["hit_rate_at_1_seen_removed"] == 0.0


def test_label_seen_before_stays_in_the_ranking():
    got = metrics_of([0.9, 0.5], labels=[1], seen=[1, 0, -1])
    assert got["hit_rate_at_1_seen_removed"] == 1.0


def test_label_out_of_vocabulary_is_a_miss():
    got = metrics_of([0.9, 0.5], labels=[0], top_k=(2,))
    assert set(got.values()) == {0.0}


def test_video_watched_twice_is_one_label():
    once = metrics_of([0.1, 0.9, 0.5], labels=[3, 2])
    assert metrics_of([0.1, 0.9, 0.5], labels=[3, 2, 3]) == once


def test_more_labels_than_the_depth_of_ndcg():
    # Twelve labels in the first twelve places: ideal is ten of them.
    got = metrics_of(np.arange(20.0)[::-1], labels=np.arange(1, 13))
    assert got["ndcg_at_10"] == pytest.approx(1.0)
    assert got["recall_at_10"] == pytest.approx(10 / 12)


@st.composite
def cases(draw):
    videos = draw(st.integers(1, 12))
    # Few levels, so that ties are common.
    scores = draw(
        st.lists(
            st.lists(
                st.sampled_from([-1.0, 0.0, 0.25, 1.0]),
                min_size=videos,
                max_size=videos,
            ),
            min_size=1,
            max_size=6,
        )
    )
    ids = st.integers(0, videos)
    labels = [draw(st.lists(ids, min_size=1, max_size=8)) for _ in scores]
    seen = [draw(st.lists(ids, max_size=8)) for _ in scores]
    return scores, labels, seen


def oracle(scores, labels, seen, top_k):
    """Sorts whole rankings: pessimistic order, then the textbook sums."""
    rows = []
    for row, relevant, watched in zip(scores, labels, seen, strict=True):
        known = {v for v in relevant if v}
        total = len(known) + relevant.count(0)
        ranking = sorted(
            range(1, len(row) + 1), key=lambda v: (-row[v - 1], v in known)
        )
        out = {}
        for k in top_k:
            top = ranking[:k]
            hits = sum(v in known for v in top)
            out[f"precision_at_{k}"] = hits / k
            out[f"recall_at_{k}"] = hits / total
            for suffix, removed in (("", ()), ("_seen_removed", watched)):
                label = relevant[0]
                pool = [v for v in ranking if v == label or v not in removed]
                # The last place among equals.
                pool.sort(key=lambda v: (-row[v - 1], v == label))
                hit = label in pool[:k]
                out[f"hit_rate_at_{k}{suffix}"] = float(hit)
        gains = [
            1 / math.log2(i + 2)
            for i, v in enumerate(ranking[:10])
            if v in known
        ]
        ideal = [1 / math.log2(i + 2) for i in range(min(total, 10))]
        out["ndcg_at_10"] = sum(gains) / sum(ideal)
        precisions = [
            sum(u in known for u in ranking[: i + 1]) / (i + 1)
            for i, v in enumerate(ranking)
            if v in known
        ]
        out["mean_average_precision"] = sum(precisions) / total
        rows.append(out)
    return {n: sum(r[n] for r in rows) / len(rows) for n in rows[0]}


@given(cases(), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_equals_a_sort_of_the_whole_ranking(case, chunk):
    scores, labels, seen = case
    metrics = RetrievalMetrics((1, 3, 10))
    for start in range(0, len(scores), chunk):
        part = slice(start, start + chunk)
        metrics.update(
            np.array(scores[part], np.float32),
            [np.array(v, np.int64) for v in labels[part]],
            [np.array(v, np.int64) for v in seen[part]],
        )
    expected = oracle(scores, labels, seen, (1, 3, 10))
    assert metrics.result() == pytest.approx(expected, abs=1e-12)
    assert metrics.cases == len(scores)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, float("nan")], [1], "NaN"),
        ([0.1, 0.2], [3], "different vocabularies"),
        ([0.1, 0.2], [], "one or more labels"),
    ],
)
def test_refuses_what_cannot_be_ranked(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics_of(scores, labels)


def test_refuses_a_result_without_cases():
    with pytest.raises(ValueError, match="No evaluation case"):
        RetrievalMetrics((10,)).result()
