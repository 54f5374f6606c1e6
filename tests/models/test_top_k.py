"""The three kinds of search against a NumPy sort of all scores."""

import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from models.keras_setup import tf
from models.partition import cut
from models.partitioned_top_k import PartitionedTopK
from models.principal_axes import principal_axes, turn_in_place
from models.scann_top_k import ScannTopK
from models.top_k import ExactTopK, with_bias
from schemas.config import IndexConfig


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


def pieces_of(embeddings, biases, width=8, leaves=5):
    """A partition by nothing in particular, some leaves empty."""
    vectors = with_bias(embeddings, biases)
    axes = principal_axes(vectors)
    turn_in_place(vectors, axes)
    leaf = np.random.default_rng(3).integers(leaves, size=len(vectors)) * 2
    return cut(vectors, leaf, width), axes


def exact(k, embeddings, ids, biases):
    return ExactTopK(k).index(embeddings, ids, biases)


def partitioned(k, embeddings, ids, biases):
    # All pieces are read, so the answer is exact.
    partition, axes = pieces_of(embeddings, biases)
    pieces = len(partition.members)
    layer = PartitionedTopK(k, partition, axes, pieces)
    return layer.index(embeddings, ids, biases)


def quartered(k, embeddings, ids, biases):
    return halved(k, embeddings, ids, biases, "int8")


def halved(k, embeddings, ids, biases, storage="bfloat16"):
    partition, axes = pieces_of(embeddings, biases)
    pieces = len(partition.members)
    layer = PartitionedTopK(k, partition, axes, pieces, storage, 10**6)
    return layer.index(embeddings, ids, biases)


def by_scann(k, embeddings, ids, biases):
    return ScannTopK(k).index(embeddings, ids, biases)


def by_scann_tree(k, embeddings, ids, biases):
    # All leaves are searched, all rows scored again.
    config = IndexConfig(exact_below=1, partition_from=1)
    layer = ScannTopK(k, config).index(embeddings, ids, biases)
    settings = layer.settings
    layer.settings = type(settings)(
        2 * settings.leaves + 2, len(embeddings), settings.neighbors
    )
    return layer


KINDS = [exact, partitioned, halved, quartered, by_scann, by_scann_tree]
SIZES = [(1, 4), (7, 1), (500, 8)]


@pytest.mark.parametrize(
    ("build", "videos", "dim"),
    [
        *((build, *size) for build in KINDS[:5] for size in SIZES),
        # ScaNN hashes no fewer than 16 rows.
        (by_scann_tree, *SIZES[-1]),
    ],
)
@pytest.mark.parametrize("k", [1, 5, 500])
def test_all_kinds_equal_numpy(build, videos, dim, k):
    k = min(k, videos)
    embeddings, biases, queries = corpus(videos, dim)
    layer = build(k, embeddings, None, biases)
    scores, ids = layer(queries)
    expected_ids, expected_scores = numpy_top_k(queries, embeddings, biases, k)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-4)
    again_ids, again_scores = layer.search(queries, k)
    np.testing.assert_array_equal(again_ids, expected_ids)
    np.testing.assert_allclose(again_scores, expected_scores, atol=1e-4)
    assert (layer.num_videos, ids.dtype, scores.dtype) == (
        videos,
        tf.int64,
        tf.float32,
    )
    assert layer.is_exact() == (build is not by_scann_tree)


@pytest.mark.parametrize("build", KINDS[:4])
@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(data=st.data())
def test_exclusions_never_come_back(build, data):
    videos = data.draw(st.integers(2, 60), label="videos")
    k = data.draw(st.integers(1, videos), label="k")
    width = data.draw(st.integers(0, 80), label="exclusions")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    embeddings = rng.normal(size=(videos, 3)).astype(np.float32)
    # Larger than a constant that could be subtracted instead, such as 1e5.
    biases = (rng.permutation(videos) * 1e6).astype(np.float32)
    queries = rng.normal(size=(2, 3)).astype(np.float32)
    # Other ids than the rows, in no order.
    ids = rng.permutation(1000)[:videos] + 1
    excluded = rng.choice([*ids, -1, 0, 10**12], size=(2, width))
    layer = build(k, embeddings, ids, biases)
    scores, got = layer.query_with_exclusions(
        queries, tf.constant(excluded, tf.int64)
    )
    all_scores = queries.astype(np.float64) @ embeddings.T + biases
    for row in range(2):
        allowed = [i for i in range(videos) if ids[i] not in excluded[row]]
        best = sorted(allowed, key=lambda i: -all_scores[row, i])[:k]
        missing = k - len(best)
        assert got[row].numpy().tolist() == [*ids[best], *[0] * missing]
        np.testing.assert_allclose(
            scores[row],
            [*all_scores[row, best], *[-np.inf] * missing],
            rtol=1e-5,
            atol=1,
        )


@pytest.mark.parametrize("build", KINDS[:4])
def test_fewer_left_than_k_is_said_by_id_0(build):
    eye, biases = np.eye(3, dtype=np.float32), np.zeros(3, np.float32)
    scores, ids = build(3, eye, None, biases).query_with_exclusions(
        np.ones((1, 3), np.float32), tf.constant([[3, 1]], tf.int64)
    )
    assert ids.numpy().tolist() == [[2, 0, 0]]
    np.testing.assert_allclose(scores, [[1.0, -np.inf, -np.inf]], rtol=1e-6)


@pytest.mark.parametrize("build", KINDS)
def test_k_above_the_corpus_is_refused(build):
    embeddings, biases, queries = corpus(300, 4)
    with pytest.raises(ValueError, match=r"number of videos, 300, got 301"):
        build(301, embeddings, None, biases)
    layer = build(300, embeddings, None, biases)
    with pytest.raises(ValueError, match=r"number of videos, 300, got 301"):
        layer.search(queries, 301)


def test_a_search_before_index_is_refused():
    pieces = pieces_of(*corpus(20, 3)[:2])
    for layer in (ExactTopK(4), ScannTopK(4), PartitionedTopK(4, *pieces, 1)):
        with pytest.raises(ValueError, match="before a query"):
            layer(np.ones((1, 3), np.float32))


def test_exact_top_k_parts_ties_by_id():
    embeddings = np.ones((6, 2), np.float32)
    biases = np.array([0, 1, 0, 1, 0, 1], np.float32)
    _, ids = ExactTopK(5).index(embeddings, biases=biases)(np.ones((1, 2)))
    assert ids.numpy().tolist() == [[2, 4, 6, 1, 3]]


_SEARCH_ELSEWHERE = """
import sys
import numpy as np
import tensorflow as tf
with np.load(sys.argv[2]) as given:
    loaded = tf.saved_model.load(sys.argv[1])
    scores, ids = loaded.search(given["queries"], given["excluded"])
assert not {"scann", "tensorflow_recommenders"} & set(sys.modules)
np.savez(sys.argv[3], scores=scores, ids=ids)
"""


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_few_bytes_find_what_is_scored_again(storage):
    videos, k = 3000, 20
    embeddings, biases, queries = corpus(videos, 16)
    # One dimension is a hundred times as wide: its steps are its own.
    embeddings[:, 3] *= 100.0
    queries[:, 3] /= 100.0
    partition, axes = pieces_of(embeddings, biases)
    pieces = len(partition.members)
    layer = PartitionedTopK(k, partition, axes, pieces, storage, 3 * k)
    scores, ids = layer.index(embeddings, biases=biases)(queries)
    expected_ids, expected_scores = numpy_top_k(queries, embeddings, biases, k)
    found = [
        np.isin(*pair).mean() for pair in zip(expected_ids, ids, strict=True)
    ]
    assert np.mean(found) > 0.99
    # What is found has its exact score.
    np.testing.assert_allclose(scores[:, 0], expected_scores[:, 0], atol=1e-4)


@pytest.mark.parametrize("build", [exact, partitioned, halved, quartered])
def test_a_saved_model_answers_in_a_process_without_scann(build, tmp_path):
    embeddings, biases, queries = corpus(50, 4)
    layer = build(5, embeddings, None, biases)
    module = tf.Module()
    module.layer = layer
    module.search = tf.function(
        layer.query_with_exclusions,
        input_signature=[
            tf.TensorSpec([None, 4], tf.float32),
            tf.TensorSpec([None, None], tf.int64),
        ],
    )
    assert module.search.get_concrete_function().structured_outputs[
        0
    ].shape.as_list() == [None, 5]
    tf.saved_model.save(module, str(tmp_path / "model"))
    excluded = np.full((len(queries), 1), 3)
    given, answer = tmp_path / "given.npz", tmp_path / "answer.npz"
    np.savez(given, queries=queries, excluded=excluded)
    script = [sys.executable, "-c", _SEARCH_ELSEWHERE]
    subprocess.run(
        [*script, str(tmp_path / "model"), str(given), str(answer)],
        check=True,
        cwd=tmp_path,
    )
    biases[2] = -np.inf
    expected = numpy_top_k(queries, embeddings, biases, 5)
    with np.load(answer) as found:
        np.testing.assert_array_equal(found["ids"], expected[0])
        np.testing.assert_allclose(found["scores"], expected[1], atol=1e-4)
