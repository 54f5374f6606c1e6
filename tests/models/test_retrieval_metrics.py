"""Retrieval metrics against hand numbers and a sort of the whole ranking."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from models.retrieval_metrics import metrics
from models.retrieval_ranks import NEVER, LabelRanks


def ranks_of(scores, labels, seen):
    return LabelRanks.of_scores(
        np.array(scores, np.float32),
        [np.array(row, np.int64) for row in labels],
        [np.array(row, np.int64) for row in seen],
    )


def metrics_of(scores, labels, seen=(), top_k=(1, 2, 10)):
    return metrics(ranks_of([scores], [labels], [seen]), top_k)


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
    # At 2: label 4 at place 2, of two that could be there.
    assert got["map_at_2"] == pytest.approx(0.5 / 2)
    # .63093 / 1.63093.
    assert got["ndcg_at_2"] == pytest.approx(0.38685, abs=1e-5)


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


def test_seen_videos_leave_precision_and_the_others_too():
    # Order 1, 2, 3, 4 of which 1 and 3 were seen; labels 3 (watched again)
    # and 4 stand at 2 and 3 once 1 is removed.
    got = metrics_of([0.9, 0.5, 0.4, 0.2], labels=[4, 3], seen=[1, 3])
    assert got["precision_at_2"] == 0.0
    assert got["precision_at_2_seen_removed"] == 0.5
    assert got["recall_at_10_seen_removed"] == 1.0
    # (1/2 + 2/3) / 2.
    assert got["map_at_10_seen_removed"] == pytest.approx(7 / 12)
    # For the hit rate 3 is no label, but seen: 4 is second behind 2.
    assert got["hit_rate_at_2_seen_removed"] == 1.0
    assert got["hit_rate_at_1_seen_removed"] == 0.0


def test_label_out_of_vocabulary_is_a_miss():
    got = metrics_of([0.9, 0.5], labels=[0], top_k=(2,))
    assert got.pop("cases") == 1.0
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
        everything = sorted(
            range(1, len(row) + 1), key=lambda v: (-row[v - 1], v in known)
        )
        out = {"cases": 1.0}
        for suffix, removed in (("", ()), ("_seen_removed", watched)):
            ranking = [v for v in everything if v in known or v not in removed]
            label = relevant[0]
            pool = [v for v in everything if v == label or v not in removed]
            # The last place among equals.
            pool.sort(key=lambda v: (-row[v - 1], v == label))
            # Precision at each place that holds a label, else 0.
            precisions = [
                (v in known)
                * sum(u in known for u in ranking[: i + 1])
                / (i + 1)
                for i, v in enumerate(ranking)
            ]
            gains = [
                (v in known) / math.log2(i + 2) for i, v in enumerate(ranking)
            ]
            ideal = [1 / math.log2(i + 2) for i in range(total)]
            for k in top_k:
                hits = sum(v in known for v in ranking[:k])
                at = f"_at_{k}{suffix}"
                out[f"hit_rate{at}"] = float(label in pool[:k])
                out[f"precision{at}"] = hits / k
                out[f"recall{at}"] = hits / total
                out[f"ndcg{at}"] = sum(gains[:k]) / sum(ideal[:k])
                out[f"map{at}"] = sum(precisions[:k]) / min(k, total)
            if not suffix:
                out["mean_average_precision"] = sum(precisions) / total
        rows.append(out)
    means = {n: sum(r[n] for r in rows) / len(rows) for n in rows[0]}
    return means | {"cases": float(len(rows))}


def in_chunks(case, chunk):
    return LabelRanks.concatenated(
        [
            ranks_of(*(column[start : start + chunk] for column in case))
            for start in range(0, len(case[0]), chunk)
        ]
    )


@given(cases(), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_equals_a_sort_of_the_whole_ranking(case, chunk):
    expected = oracle(*case, (1, 3, 10))
    got = metrics(in_chunks(case, chunk), (1, 3, 10))
    assert got == pytest.approx(expected, abs=1e-12)


def test_ndcg_equals_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    scores = rng.permuted(np.tile(np.arange(40.0), (30, 1)), axis=1)
    labels = [rng.choice(40, rng.integers(1, 15), False) + 1 for _ in scores]
    relevance = np.zeros(scores.shape)
    for row, own in zip(relevance, labels, strict=True):
        row[own - 1] = 1.0
    got = metrics(ranks_of(scores, labels, [[]] * 30), (1, 10, 40))
    for k in (1, 10, 40):
        expected = ndcg_score(relevance, scores, k=k)
        assert got[f"ndcg_at_{k}"] == pytest.approx(expected)


@given(cases(), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_the_ids_of_an_index_rank_as_its_scores_do(case, places):
    scores, labels, seen = case
    # Distinct scores: an index has its own order among equals.
    order = [
        sorted(range(len(r)), key=lambda v, r=r: (-r[v], v)) for r in scores
    ]
    distinct = np.zeros((len(scores), len(scores[0])))
    for row, best_first in zip(distinct, order, strict=True):
        row[best_first] = -np.arange(len(best_first))
    ids = np.zeros((len(scores), places), np.int64)
    for row, best_first in zip(ids, order, strict=True):
        best = best_first[:places]
        row[: len(best)] = np.array(best) + 1
    lists = [[np.array(v, np.int64) for v in c] for c in (labels, seen)]
    got = LabelRanks.of_ids(ids, *lists)
    exact = ranks_of(distinct, labels, seen)
    found = exact.position <= places
    for name in ("case", "video", "first"):
        assert getattr(got, name).tolist() == getattr(exact, name).tolist()
    for name in ("rank", "unseen_rank", "position", "unseen_position"):
        expected = np.where(found, getattr(exact, name), NEVER)
        assert getattr(got, name).tolist() == expected.tolist()


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
        metrics(LabelRanks.concatenated([]), (10,))


def test_refuses_a_k_below_1():
    with pytest.raises(ValueError, match="top_k"):
        metrics_of([0.1], labels=[1], top_k=(0, 10))
