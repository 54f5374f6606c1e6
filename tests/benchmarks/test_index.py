"""The corpus of the index benchmark is what it says, and the run is whole."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.embeddings_like_trained import corpus
from benchmarks.index_peers import least_effort
from benchmarks.query_times import query_times

ROOT = Path(__file__).resolve().parents[2]


def test_the_corpus_has_a_trained_model_s_spectrum() -> None:
    vectors, queries = corpus(100_000, 64, 500)
    assert vectors.dtype == queries.dtype == np.float32
    assert (vectors.shape, queries.shape) == ((100_000, 65), (500, 64))
    embeddings, biases = vectors[:, :-1], vectors[:, -1]
    variances = np.linalg.eigvalsh(np.cov(embeddings.T))[::-1]
    # (1 + j / 6)^-2 of j = 1, 10, 30, 64: 0.735, 0.141, 0.028, 0.0073.
    for place, ratio in ((9, 5.2), (29, 26.4), (63, 100.0)):
        assert abs(variances[0] / variances[place] / ratio - 1) < 0.25
    # No coordinate axis is a principal one.
    assert embeddings.var(axis=0).max() < 0.5 * variances[0]
    lengths = np.linalg.norm(embeddings, axis=1)
    assert 0.9 < lengths.mean() < 1.1 and 0.15 < lengths.std() < 0.27
    assert 0.09 < biases.std() < 0.13
    # As many as the trained model had: the 1st, 10th and 100th neighbour.
    units = (embeddings / lengths[:, np.newaxis])[::29]
    cosines = -np.sort(-(units[:500] @ units.T), axis=1)
    near, tenth, hundredth = np.median(cosines[:, [1, 10, 100]], axis=0)
    assert 0.6 < near < 0.85 and 0.5 < tenth < 0.7 and 0.35 < hundredth < 0.5


def test_a_peer_gets_the_least_effort_that_suffices() -> None:
    rows = np.arange(10)[np.newaxis]

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        # Finds as many of the ten as its effort.
        return np.where(rows < effort, rows, 99)

    efforts, asked = [2, 5, 8, 10], np.zeros((1, 3))
    assert least_effort(search, efforts, asked, rows, 0.5) == (5, 0.5)
    assert least_effort(search, efforts, asked, rows, 0.51) == (8, 0.8)
    assert least_effort(search, [2, 5], asked, rows, 0.9) == (5, 0.5)


def test_every_query_is_timed_alone_and_in_turns() -> None:
    calls: list[tuple[str, float]] = []
    times = query_times(
        {
            "a": lambda query: calls.append(("a", query.item())),
            "b": lambda query: calls.append(("b", query.item())),
        },
        np.arange(3.0)[:, np.newaxis],
        rounds=2,
    )
    timed = calls[-12:]
    assert timed == [
        (n, q) for _ in "12" for q in (0.0, 1.0, 2.0) for n in "ab"
    ]
    assert times["a"].wall_s.shape == times["b"].cpu_s.shape == (6,)
    assert times["a"].describe().keys() == {
        "p50_ms",
        "p99_ms",
        "cpu_p50_ms",
        "cpu_p99_ms",
    }


@pytest.mark.slow
def test_the_quick_run_measures_all_but_the_peers(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/index.py", "--quick"]
    done = subprocess.run(
        [*command, f"--data={tmp_path}", "--queries=60"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)["20k_x_16"]
    assert found["scann_vs_faiss"] is None and found["scann_vs_hnswlib"] is None
    assert "--peer-python" in found["scann_vs_faiss_note"]
    assert found["scann_recall_at_100"] > 0.93
    assert found["stock_recall_at_100"] > 0.93
    times = found["times"]
    ratio = times["exact"]["p50_ms"] / times["stock"]["p50_ms"]
    assert found["stock_speedup_vs_exact"] == ratio
    assert found["stock_p99_over_p50"] >= 1
    assert found["build_memory_ratio"] > 1
