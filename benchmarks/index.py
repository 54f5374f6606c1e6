"""Measures the searches of an index; prints one JSON object.

    python3 -m venv peer && peer/bin/pip install faiss-cpu hnswlib numpy
    python benchmarks/index.py --peer-python peer/bin/python

Corpora of a million vectors as a trained model makes them
(`embeddings_like_trained.py`). README.md says what each key means. Without
`--peer-python` only our own searches are measured.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

# Run as a script: the repository's root is not on the path yet.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.beam_jobs import DATA
from benchmarks.processes import JobFailed, Measured, run_module, say

CORPORA = {"1m_x_64": (1_000_000, 64), "1m_x_256": (1_000_000, 256)}
QUICK = {"20k_x_16": (20_000, 16)}
PEERS = ("faiss", "hnswlib")
NO_PEER = (
    "not measured: pass --peer-python, an interpreter that has numpy, "
    "faiss-cpu and hnswlib."
)


def measure(name: str, size: tuple[int, int], args: Any) -> Measured:
    """All figures of one corpus."""
    folder = args.data / name
    if not (folder / "exact.npz").exists():
        say(f"{name}: drawing vectors and answering exactly ...")
        run_module("embeddings_like_trained", folder, *size, args.queries)
        run_module("index_job", "exact", folder)
    if not (folder / "build.json").exists():
        say(f"{name}: building the index ...")
        shutil.rmtree(folder / "index", ignore_errors=True)
        built = run_module("index_job", "build", folder)
        (folder / "build.json").write_text(json.dumps(built))
    built = json.loads((folder / "build.json").read_text())
    say(f"{name}: searching ...")
    rounds = f"--rounds={args.rounds}"
    ours = run_module("index_job", "times", folder, rounds)
    stock, scann, exact = ours["stock"], ours["scann"], ours["exact"]
    results: Measured = {
        "scann_recall_at_100": scann["recall_at_100"],
        "stock_recall_at_100": stock["recall_at_100"],
        "stock_speedup_vs_exact": exact["p50_ms"] / stock["p50_ms"],
        "stock_p99_over_p50": stock["p99_ms"] / stock["p50_ms"],
        "cpu_stock_speedup_vs_exact": exact["cpu_p50_ms"] / stock["cpu_p50_ms"],
        "cpu_stock_p99_over_p50": stock["cpu_p99_ms"] / stock["cpu_p50_ms"],
        "build_memory_ratio": built["build_memory_ratio"],
        "build_cpu_s": built["build_cpu_s"],
        "times": {"exact": exact, "stock": stock, "scann": scann},
    }
    for peer in PEERS:
        if not args.peer_python:
            results[f"scann_vs_{peer}"] = None
            results[f"scann_vs_{peer}_note"] = NO_PEER
            continue
        say(f"{name}: {peer} ...")
        recall = f"--recall={scann['recall_at_100']}"
        run = run_module(
            "index_peers",
            peer,
            folder,
            recall,
            rounds,
            python=args.peer_python,
        )
        results[f"scann_vs_{peer}"] = scann["p50_ms"] / run["p50_ms"]
        results[f"cpu_scann_vs_{peer}"] = (
            scann["cpu_p50_ms"] / run["cpu_p50_ms"]
        )
        results["times"][peer] = run
    return results


def main() -> None:
    """Prints progress, then JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA / "index")
    parser.add_argument("--peer-python", help="with faiss-cpu and hnswlib")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--corpus", choices=CORPORA, action="append")
    parser.add_argument(
        "--quick", action="store_true", help="a corpus of 20,000, for a look"
    )
    args = parser.parse_args()
    corpora = {n: CORPORA[n] for n in args.corpus or CORPORA}
    if args.quick:
        corpora, args.queries = QUICK, min(args.queries, 200)
    results: Measured = {}
    for name, size in corpora.items():
        results[name] = measure(name, size, args)
    results["machine"] = run_module("machine")
    print(json.dumps(results))


if __name__ == "__main__":
    try:
        main()
    except JobFailed as error:
        sys.exit(f"error: {error}")
