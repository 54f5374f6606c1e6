"""Measures the retrieval model's training step; prints one JSON object.

    python benchmarks/retrieval_step.py             # about 3 minutes, 9 GiB
    python benchmarks/retrieval_step.py --quick     # small: does it run?

Batch 256, bags of 50, dimension 256, 2,000 negatives, tower 1024-512-256, ids
drawn uniformly at random: the worst case for a cache. README.md says what each
key means.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import JobFailed, run_module, say

_JOB = "retrieval_step_job"


def main() -> None:
    """Runs each measurement in a process of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--few_classes", type=int, default=10_000)
    parser.add_argument("--many_classes", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--stock_rounds", type=int, default=5)
    parser.add_argument(
        "--optimizer",
        choices=("rowwise_adagrad", "lazy_adam"),
        default="rowwise_adagrad",
    )
    args = parser.parse_args()
    if args.quick:
        sizes = {"few_classes": 1000, "many_classes": 20_000}
        vars(args).update(sizes, rounds=3, stock_rounds=1)
    few, many = args.few_classes, args.many_classes
    ours = f"--optimizer={args.optimizer}"
    machine = run_module("machine")
    turns = run_module(
        _JOB, "turns", ours, "--classes", few, many, "--rounds", args.rounds
    )
    seconds = turns["seconds"]
    step_s = seconds[f"step_{many}"]
    for name, value in seconds.items():
        say(f"{name:>16} {1e3 * value:8.1f} ms")
    stock = run_module(
        _JOB, "stock_adam", "--classes", many, "--rounds", args.stock_rounds
    )
    say(f"      stock Adam {1e3 * stock['seconds']:8.1f} ms")
    memory = run_module(_JOB, "memory", ours, "--classes", many, "--rounds", 5)
    added = memory["peak_bytes"] - memory["before_bytes"]
    cpu = turns["cpu_seconds"]
    result = {
        "step_ratio_1m_10k": step_s / seconds[f"step_{few}"],
        "speedup_vs_stock_adam": stock["seconds"] / step_s,
        "roofline_ratio": step_s / turns["roofline_s"],
        "memory_ratio": added / memory["state_bytes"],
        "cpu_step_ratio_1m_10k": cpu[f"step_{many}"] / cpu[f"step_{few}"],
        "cpu_speedup_vs_stock_adam": (
            stock["cpu_seconds"] / cpu[f"step_{many}"]
        ),
        "cpu_roofline_ratio": cpu[f"step_{many}"] / turns["roofline_cpu_s"],
        "optimizer": args.optimizer,
        "classes": [few, many],
        "turns": turns,
        "stock_adam": stock,
        "memory": memory,
        "machine": machine,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    try:
        main()
    except JobFailed as error:
        sys.exit(f"error: {error}")
