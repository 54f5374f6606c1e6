"""Builds and times our searches of one corpus: one JSON object.

`exact` and `build` prepare files of the corpus's folder, each in a process of
its own (its peak memory is the build's); `times` measures.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.peak_memory import PeakMemory
from benchmarks.query_times import query_times
from models.index import build_index, load_scann, load_stock
from models.index_sweep import ExactAnswer
from models.keras_setup import tf
from models.top_k import ExactTopK, with_one
from schemas.config import IndexConfig

K = 100


def exact(folder: Path) -> dict[str, object]:
    """Writes the exact answers to all queries, which the peers need too."""
    vectors = np.load(folder / "vectors.npy")
    queries = with_one(np.load(folder / "queries.npy"))
    # In the order of `measured`: first what chooses, then what measures.
    queries = np.concatenate([queries[::2], queries[1::2]])
    answer = ExactAnswer.search(vectors, queries, K)
    np.savez(folder / "exact.npz", queries=queries, rows=answer.rows)
    return {}


def build(folder: Path) -> dict[str, object]:
    """Builds the index by the default configuration, of this size or none."""
    queries = np.load(folder / "queries.npy")
    corpus = [np.load(folder / "vectors.npy")]
    size = corpus[0].nbytes
    config = IndexConfig(exact_below=1, partition_from=1)
    (folder / "index").mkdir()
    started = time.process_time()
    with PeakMemory() as memory:
        without_corpus = memory.bytes_now() - size
        recall = build_index(
            corpus.pop(), queries, config, str(folder / "index")
        )
    return {
        "build_cpu_s": time.process_time() - started,
        "build_memory_ratio": (memory.peak_bytes - without_corpus) / size,
        "scann_recall_of_build": recall.scann,
        "stock_recall_of_build": recall.stock,
    }


def times(folder: Path, rounds: int) -> dict[str, object]:
    """Times exact, stock and ScaNN's search, one query at a time, in turns."""
    vectors = np.load(folder / "vectors.npy")
    queries = np.load(folder / "queries.npy")[1::2]
    with np.load(folder / "exact.npz") as answer:
        rows = answer["rows"][len(answer["rows"]) - len(queries) :]
    whole = ExactTopK(K)
    whole.index(vectors[:, :-1], biases=vectors[:, -1])
    stock = load_stock(str(folder / "index"), K)
    by_scann = load_scann(str(folder / "index"), K)
    spec = [tf.TensorSpec([None, queries.shape[1]], tf.float32)]
    contestants = {
        "exact": tf.function(whole.call, input_signature=spec),
        "stock": tf.function(stock.call, input_signature=spec),
        "scann": by_scann.search_one,
    }
    measured = {
        name: taken.describe()
        for name, taken in query_times(contestants, queries, rounds).items()
    }
    truth = ExactAnswer(
        vectors, with_one(queries), rows, _kth(vectors, queries, rows)
    )
    for name, index in (("stock", stock), ("scann", by_scann)):
        measured[name]["recall_at_100"] = truth.recall(
            index.search(queries, K)[0]
        )
    return dict(measured)


def _kth(
    vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    asked = with_one(queries)
    return np.array(
        [(vectors[r] @ q).min() for q, r in zip(asked, rows, strict=True)]
    )


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=["exact", "build", "times"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    if args.step == "exact":
        print(json.dumps(exact(args.folder)))
    elif args.step == "build":
        print(json.dumps(build(args.folder)))
    else:
        print(json.dumps(times(args.folder, args.rounds)))


if __name__ == "__main__":
    main()
