"""A built index: its choices, its recall, its bytes, its gate."""

import json
import os

import numpy as np
import pytest

from benchmarks.processes import run_module
from models.index import (
    DESCRIPTION_FILE,
    IndexRecall,
    build_index,
    load_scann,
    load_stock,
    refuse_below_gate,
)
from models.index_sweep import ExactAnswer
from models.partitioned_top_k import PartitionedTopK
from models.scann_top_k import blocks
from models.top_k import ExactTopK, with_bias
from schemas.config import IndexConfig
from schemas.errors import ArtifactError
from tests.models.test_top_k import corpus, numpy_top_k

# A corpus of thousands takes the ways of one of millions.
SMALL = {"exact_below": 500, "partition_from": 2000, "rows_per_piece": 16}


def built(folder, videos=3000, **settings):
    """Builds into `folder`; gives the corpus and 60 queries, k = 20."""
    embeddings, biases, queries = corpus(videos, 8, queries=60)
    config = IndexConfig(**{**SMALL, "neighbors": 20, **settings})
    os.makedirs(folder)
    recall = build_index(
        with_bias(embeddings, biases), queries, config, str(folder)
    )
    return embeddings, biases, queries, recall


def share_found(ids, expected):
    return np.mean(
        [len({*a} & {*b}) / len(b) for a, b in zip(ids, expected, strict=True)]
    )


@pytest.mark.parametrize(
    ("videos", "stock", "scann_exact"),
    [
        (5, ExactTopK, True),
        (499, ExactTopK, True),
        (500, ExactTopK, False),
        (2000, PartitionedTopK, False),
    ],
)
def test_both_searches_find_what_numpy_finds(
    tmp_path, videos, stock, scann_exact
):
    targets = {"scann_recall": 0.99, "stock_recall": 0.99}
    given = built(tmp_path / "written", videos, **targets)
    embeddings, biases, queries, recall = given
    # Published folders are renamed: no path inside may be absolute.
    os.rename(tmp_path / "written", tmp_path / "index")
    k = min(20, videos)
    expected, _ = numpy_top_k(queries, embeddings, biases, k)
    by_scann = load_scann(str(tmp_path / "index"), 20)
    served = load_stock(str(tmp_path / "index"), 20)
    assert isinstance(served, stock)
    assert by_scann.is_exact() == scann_exact
    for index, said in ((by_scann, recall.scann), (served, recall.stock)):
        ids, scores = index.search(queries, k)
        # What the folder says was measured on every other query.
        assert share_found(ids[1::2], expected[1::2]) == pytest.approx(
            said, abs=1e-3
        )
        assert said >= 0.94
        # Scores are exact, bias included, and fall.
        own = np.einsum("qd,qkd->qk", queries, embeddings[ids - 1])
        np.testing.assert_allclose(scores, own + biases[ids - 1], atol=1e-3)
        assert (np.diff(scores, axis=1) <= 1e-5).all()


def test_the_cheapest_setting_that_reaches_the_target_is_chosen(tmp_path):
    costs = []
    for target in (0.8, 0.99):
        folder = tmp_path / str(target)
        built(folder, scann_recall=target, stock_recall=target)
        said = json.loads((folder / DESCRIPTION_FILE).read_text())
        chosen = {**said["scann"]}
        chosen.pop("neighbors")
        reaching = [p for p in said["scann_curve"] if p["recall"] >= target]
        cheapest = min(reaching, key=lambda p: p["bytes_per_query"])
        assert chosen == {key: cheapest[key] for key in chosen}
        curve = {p["searched"]: p["recall"] for p in said["stock_curve"]}
        searched = said["stock"]["searched"]
        assert curve[searched] >= target
        # No fewer of the curve do, unless they have no room for k.
        assert all(
            recall < target for n, recall in curve.items() if n < searched
        ) or searched == -(-4 * 20 // 16)
        assert curve[max(curve)] == 1.0
        costs.append((cheapest["bytes_per_query"], searched))
    assert costs[0] < costs[1]


def test_more_are_returned_than_the_settings_were_chosen_for(tmp_path):
    # At this target, few of the pieces of 16 rows are read for a top 20.
    embeddings, biases, queries, _ = built(tmp_path / "i", stock_recall=0.5)
    said = json.loads((tmp_path / "i" / DESCRIPTION_FILE).read_text())
    assert said["stock"]["searched"] * 16 < 500
    ids, scores = load_stock(str(tmp_path / "i"), 500).search(queries, 500)
    assert all(len({*row}) == 500 for row in ids) and ids.min() >= 1
    own = np.einsum("qd,qkd->qk", queries, embeddings[ids - 1])
    np.testing.assert_allclose(scores, own + biases[ids - 1], atol=1e-3)


@pytest.mark.parametrize(
    ("videos", "settings"),
    [
        (3000, {}),
        # ScaNN learns from a sample of these rows, at full size.
        pytest.param(
            100_000,
            {"exact_below": 20_000, "partition_from": 100_000},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_same_corpus_gives_the_same_bytes(tmp_path, videos, settings):
    contents = []
    for name in ("a", "b"):
        built(tmp_path / name, videos, **settings)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file())
        contents.append([(p.name, p.read_bytes()) for p in files])
    assert len(contents[0]) > 8
    assert contents[0] == contents[1]


def test_an_index_on_another_file_system(tmp_path):
    _, _, queries, _ = built(tmp_path / "here")
    # TensorFlow's own file system in memory stands for an object store.
    import models.index as module

    with module._writing("ram://index") as local:
        module._copy_tree(str(tmp_path / "here"), local)
        assert local != "ram://index"
    for load in (load_scann, load_stock):
        near, far = load(str(tmp_path / "here"), 20), load("ram://index", 20)
        np.testing.assert_array_equal(
            near.search(queries, 20)[0], far.search(queries, 20)[0]
        )


def test_recall_counts_equal_scores_as_found():
    # All 50 score alike: any 10 are a right top 10; nothing is id 0.
    vectors = np.ones((50, 2), np.float32)
    exact = ExactAnswer.search(vectors, np.ones((2, 2), np.float32), 10)
    others = np.arange(41, 51)
    assert exact.recall(np.stack([others, others])) == 1.0
    assert exact.recall(np.stack([others, np.zeros(10, int)])) == 0.5


def test_recall_of_an_answer_that_misses_half():
    # Row i scores i: the top 4 are the ids 7 to 10.
    vectors = np.stack([np.arange(10.0), np.zeros(10)], 1).astype(np.float32)
    exact = ExactAnswer.search(vectors, np.ones((1, 2), np.float32), 4)
    assert sorted(exact.rows[0]) == [6, 7, 8, 9]
    assert exact.kth.tolist() == [6.0]
    assert exact.recall(np.array([[10, 9, 2, 1]])) == 0.5


def test_an_index_below_its_gate_is_refused():
    config = IndexConfig(min_recall=0.95)
    refuse_below_gate(IndexRecall(0.95, 0.95), config)
    for recall in (0.9499, float("nan")):
        for pair in (IndexRecall(recall, 1.0), IndexRecall(1.0, recall)):
            with pytest.raises(ArtifactError, match=r"0\.9500") as error:
                refuse_below_gate(pair, config)
            assert f"{recall:.4f}" in str(error.value)


def test_refuses_bad_corpora_and_folders(tmp_path):
    with pytest.raises(ValueError, match="must be finite; 5 of 5"):
        with_bias(np.full((5, 2), np.nan), np.zeros(5))
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(4,\)"):
        with_bias(np.ones((5, 2)), np.zeros(4))
    for load in (load_scann, load_stock):
        with pytest.raises(ArtifactError, match="is no index"):
            load(str(tmp_path), 5)
    with pytest.raises(ValueError, match="at least 2 validation queries"):
        build_index(
            np.ones((5, 3), np.float32),
            np.ones((1, 2)),
            IndexConfig(),
            str(tmp_path),
        )


@pytest.mark.slow
def test_a_build_takes_two_and_a_half_times_the_embeddings(tmp_path):
    # 260 MB of vectors; what ScaNN takes whatever their number is 0.6 of it.
    for step in (
        ["embeddings_like_trained", tmp_path, 1_000_000, 64, 40],
        ["index_job", "build", tmp_path],
    ):
        found = run_module(*step)
    assert 1.5 < found["build_memory_ratio"] <= 2.5


def test_blocks_put_the_hashes_where_the_variance_is():
    # All alike, 10 dimensions, at most 8 hashes.
    # Six alone and two pairs: 6 x .0115 + 4 x .12 = .55. With one of three
    # and seven alone: .08 + .69 = .77.
    assert blocks(np.ones(10)) == [(6, 1), (2, 2)]
    # All of it in the first two: they are hashed alone.
    falling = np.array([8, 4, *[0.01] * 8])
    division = blocks(falling)
    assert division[0][0] >= 2 and division[0][1] == 1
    assert sum(number * size for number, size in division) == 10
    assert sum(number for number, _ in division) <= 8
    assert blocks(np.ones(1)) == [(1, 1)]
