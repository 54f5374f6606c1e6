"""Exact and approximate top k against a NumPy sort of all scores."""

import os

import numpy as np
import pytest

from models.index import (
    EXACT_BELOW,
    ExactTopK,
    ScannIndex,
    build_scann,
    refuse_below_gate,
)
from models.keras_setup import tf
from schemas.config import IndexConfig
from schemas.errors import ArtifactError


def corpus(videos, dim, queries=20, seed=0):
    """Clusters, as embeddings have; biases of the size of the scores."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(64, dim))
    embeddings = centres[rng.integers(64, size=videos)]
    embeddings += 0.3 * rng.normal(size=(videos, dim))
    biases = rng.normal(size=videos)
    return (
        embeddings.astype(np.float32),
        biases.astype(np.float32),
        rng.normal(size=(queries, dim)).astype(np.float32),
    )


def numpy_top_k(queries, embeddings, biases, k):
    """Ids by falling score, ties by smaller id; float64."""
    scores = queries.astype(np.float64) @ embeddings.T + biases
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order + 1, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize("videos", [1, 7, 500])
@pytest.mark.parametrize("dim", [1, 8])
@pytest.mark.parametrize("k", [1, 5, 500])
def test_exact_top_k_equals_numpy(videos, dim, k, tmp_path):
    k = min(k, videos)
    embeddings, biases, queries = corpus(videos, dim)
    layer = ExactTopK(k).index(embeddings, biases=biases)
    scores, ids = layer(queries)
    expected_ids, expected_scores = numpy_top_k(queries, embeddings, biases, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
    assert layer.is_exact()


def test_exact_top_k_parts_ties_by_id():
    embeddings = np.ones((6, 2), np.float32)
    biases = np.array([0, 1, 0, 1, 0, 1], np.float32)
    _, ids = ExactTopK(5).index(embeddings, biases=biases)(np.ones((1, 2)))
    assert ids.numpy().tolist() == [[2, 4, 6, 1, 3]]


@pytest.mark.parametrize("own_ids", [False, True])
def test_exclusions_never_come_back(own_ids):
    embeddings, biases, queries = corpus(30, 4)
    # Other ids than the rows, in no order.
    ids = np.random.default_rng(1).permutation(1000)[:30] + 1
    ids = ids if own_ids else np.arange(1, 31)
    # Larger than the constant that a subtraction of 1e5 could outweigh.
    biases = biases * 1e6
    layer = ExactTopK(10).index(embeddings, ids if own_ids else None, biases)
    rng = np.random.default_rng(2)
    excluded = np.stack([rng.choice(ids, 12) for _ in queries])
    excluded[:, :3] = [-1, 0, 10**12]  # Padding, unknown, no id of ours.
    scores, got = layer.query_with_exclusions(queries, tf.constant(excluded))
    all_scores = queries.astype(np.float64) @ embeddings.T + biases
    for row in range(len(queries)):
        allowed = [i for i in range(30) if ids[i] not in set(excluded[row])]
        best = sorted(allowed, key=lambda i: -all_scores[row, i])[:10]
        assert got[row].numpy().tolist() == ids[best].tolist()
        np.testing.assert_allclose(
            scores[row], all_scores[row, best], rtol=1e-5
        )


def test_fewer_left_than_k_is_said_by_id_0():
    layer = ExactTopK(3).index(np.eye(3, dtype=np.float32))
    scores, ids = layer.query_with_exclusions(
        np.ones((1, 3), np.float32), tf.constant([[3, 1]], tf.int64)
    )
    assert ids.numpy().tolist() == [[2, 0, 0]]
    assert scores.numpy().tolist() == [[1.0, -np.inf, -np.inf]]


def test_exact_top_k_survives_a_saved_model(tmp_path):
    embeddings, biases, queries = corpus(50, 4)
    layer = ExactTopK(5).index(embeddings, biases=biases)
    module = tf.Module()
    module.layer = layer
    module.search = tf.function(
        layer.call, input_signature=[tf.TensorSpec([None, 4], tf.float32)]
    )
    tf.saved_model.save(module, str(tmp_path / "model"))
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    _, ids = loaded.search(queries)
    np.testing.assert_array_equal(
        ids, numpy_top_k(queries, embeddings, biases, 5)[0]
    )


def test_exact_top_k_refuses_k_above_the_corpus():
    with pytest.raises(ValueError, match=r"number of videos, 3, got 4"):
        ExactTopK(4).index(np.eye(3, dtype=np.float32))
    with pytest.raises(ValueError, match="before a query"):
        ExactTopK(4)(np.ones((1, 3), np.float32))


@pytest.mark.parametrize(
    ("videos", "least"),
    [
        (10, 1.0),
        (EXACT_BELOW - 1, 1.0),
        (EXACT_BELOW, 0.95),
        pytest.param(110_000, 0.95, marks=pytest.mark.slow),
    ],
)
def test_scann_finds_what_numpy_finds(videos, least, tmp_path):
    embeddings, biases, queries = corpus(videos, 16, queries=50)
    k = min(20, videos)
    config = IndexConfig(neighbors=k)
    index = build_scann(embeddings, biases, config)
    ids, scores = index.search(queries, k)
    expected, _ = numpy_top_k(queries, embeddings, biases, k)
    share = np.mean(
        [len(set(a) & set(b)) / k for a, b in zip(ids, expected, strict=True)]
    )
    assert share >= least
    assert index.recall(queries, k) == pytest.approx(share, abs=1e-3)
    # Scores are exact, bias included, and fall.
    own = np.einsum("qd,qkd->qk", queries, embeddings[ids - 1])
    np.testing.assert_allclose(scores, own + biases[ids - 1], atol=1e-3)
    assert (np.diff(scores, axis=1) <= 1e-5).all()

    folder = tmp_path / "written"
    folder.mkdir()
    index.save(str(folder))
    # Published folders are renamed: no path inside may be absolute.
    os.rename(folder, tmp_path / "published")
    loaded = ScannIndex.load(str(tmp_path / "published"))
    again_ids, again_scores = loaded.search(queries, k)
    np.testing.assert_array_equal(again_ids, ids)
    np.testing.assert_array_equal(again_scores, scores)


@pytest.mark.parametrize(
    "videos", [EXACT_BELOW, pytest.param(100_000, marks=pytest.mark.slow)]
)
def test_the_same_corpus_gives_the_same_bytes(videos, tmp_path):
    embeddings, biases, _ = corpus(videos, 8)
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        build_scann(embeddings, biases, IndexConfig()).save(str(folder))
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        contents.append([(p.name, p.read_bytes()) for p in files])
    assert contents[0] == contents[1]


def test_recall_counts_equal_scores_as_found():
    # All 50 videos score alike: any 10 are a right top 10.
    index = build_scann(np.ones((50, 2)), np.zeros(50), IndexConfig())
    assert index.recall(np.ones((3, 2)), 10) == 1.0


def test_recall_of_an_index_that_misses_half():
    class Half:
        """Finds the two best and two of the worst."""

        def search_batched(self, queries, **_):
            rows = np.tile([9, 8, 1, 0], (len(queries), 1))
            return rows.astype(np.uint32), np.zeros(rows.shape, np.float32)

    vectors = np.stack([np.arange(10.0), np.zeros(10)], 1).astype(np.float32)
    assert ScannIndex(Half(), vectors).recall(np.ones((3, 1)), 4) == 0.5


def test_an_index_below_its_gate_is_refused():
    config = IndexConfig(min_recall=0.95)
    refuse_below_gate(0.95, config)
    for recall in (0.9499, float("nan")):
        with pytest.raises(ArtifactError, match=r"0\.9500") as error:
            refuse_below_gate(recall, config)
        assert f"{recall:.4f}" in str(error.value)


def test_refuses_bad_corpora_and_folders(tmp_path):
    with pytest.raises(ValueError, match="must be finite"):
        build_scann(np.full((5, 2), np.nan), np.zeros(5), IndexConfig())
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(4,\)"):
        build_scann(np.ones((5, 2)), np.zeros(4), IndexConfig())
    with pytest.raises(ArtifactError, match="is no index"):
        ScannIndex.load(str(tmp_path))
    index = build_scann(np.ones((5, 2)), np.zeros(5), IndexConfig())
    with pytest.raises(ValueError, match="number of videos, 5, got 6"):
        index.search(np.ones((1, 2)), 6)
