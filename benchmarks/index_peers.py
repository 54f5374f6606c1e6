"""faiss's IVF and hnswlib on the corpus of `index.py`: one JSON object.

Run by an interpreter that has numpy and the library that is named, and none of
our packages. Each gets the fewest lists, or the shortest queue, with which it
reaches the wanted recall, and one thread to search with, as ours does.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.query_times import Times, query_times

Search = Callable[[np.ndarray, int], np.ndarray]
K = 100


def faiss_ivf(vectors: np.ndarray, lists: int) -> Search:
    """An inverted file with exact scores: search(queries, lists read)."""
    import faiss

    dim = vectors.shape[1]
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT
    )
    # As many rows and iterations for k-means as ours.
    index.cp.max_points_per_centroid = 64
    index.cp.niter = 6
    index.train(vectors)
    index.add(vectors)
    faiss.omp_set_num_threads(1)

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        index.nprobe = effort
        return index.search(queries, K)[1]

    return search


def hnsw(vectors: np.ndarray, links: int) -> Search:
    """A graph: search(queries, length of the queue)."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(len(vectors), M=links, ef_construction=200)
    index.add_items(vectors)
    index.set_num_threads(1)

    def search(queries: np.ndarray, effort: int) -> np.ndarray:
        index.set_ef(effort)
        return index.knn_query(queries, K)[0]

    return search


def least_effort(
    search: Search,
    efforts: list[int],
    queries: np.ndarray,
    exact_rows: np.ndarray,
    wanted: float,
) -> tuple[int, float]:
    """The first effort with the wanted recall, or the last one; and that."""
    recall = 0.0
    for effort in efforts:
        found = search(queries, effort)
        hits = sum(
            len(np.intersect1d(a, b))
            for a, b in zip(found, exact_rows, strict=True)
        )
        recall = hits / exact_rows.size
        if recall >= wanted:
            return effort, recall
    return efforts[-1], recall


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=["faiss", "hnswlib"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recall", type=float, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    args = parser.parse_args()
    vectors = np.load(args.folder / "vectors.npy")
    with np.load(args.folder / "exact.npz") as exact:
        queries, rows = exact["queries"], exact["rows"]
    build = {"faiss": faiss_ivf, "hnswlib": hnsw}[args.library]
    # Lists: 4 sqrt(V), as its authors advise for a million; links: 16.
    size = 16
    if args.library == "faiss":
        size = max(1, round(4 * len(vectors) ** 0.5))
    started = time.process_time()
    search = build(vectors, size)
    build_cpu_s = time.process_time() - started
    # Lists read at most all; a queue of a twentieth of the corpus.
    most = size if args.library == "faiss" else max(K, len(vectors) // 20)
    least = 1 if args.library == "faiss" else K
    steps = {round(least * 1.15**n) for n in range(100)}
    efforts = [*sorted(e for e in steps if e < most), most]
    half = len(queries) // 2
    # Chosen by one half, measured on the other, as ours.
    effort, _ = least_effort(
        search, efforts, queries[:half], rows[:half], args.recall
    )
    _, recall = least_effort(search, [effort], queries[half:], rows[half:], 0.0)
    times: Times = query_times(
        {"search": lambda query: search(query, effort)},
        queries[half:],
        args.rounds,
    )["search"]
    print(
        json.dumps(
            {
                "effort": effort,
                "size": size,
                "recall_at_100": recall,
                "build_cpu_s": build_cpu_s,
                **times.describe(),
            }
        )
    )


if __name__ == "__main__":
    main()
