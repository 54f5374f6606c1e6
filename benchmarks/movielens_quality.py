"""How well candidate generation ranks MovieLens-1M; prints one JSON object.

    export WATCHNEXT_DATA=...                      # has movielens_1m/
    python benchmarks/movielens_quality.py                # some hours
    python benchmarks/movielens_quality.py --only bags --seeds 1

The published protocol: each user's last watch is the test and is read once,
the one before it chooses the epoch; all movies are ranked. README.md says
what each key means. A run that was stopped goes on where it was.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Run as a script, this very file would hide the package beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import JobFailed, Measured, run_module, say

SECTIONS = ("bags", "best", "counts")
CONFIGS = {"bags": "movielens-1m", "best": "movielens-1m-best"}
# N, the labels a user may contribute -> epochs. All of them is `bags` itself;
# fewer get more epochs, though not as many steps: they overfit before.
COUNTS = {20: 60, 50: 36, 200: 28}
DATA = Path(tempfile.gettempdir(), "watchnext-benchmarks", "movielens")


class Bench:
    """The settings, and what was measured so far."""

    def __init__(self, data: Path, overrides: Sequence[str]) -> None:
        self._data, self._overrides = data, overrides
        self.results: Measured = {}
        self.details: Measured = {}

    def section(
        self, name: str, config: str, seeds: Sequence[int], *overrides: str
    ) -> None:
        """Measures a configuration over the seeds, as `<name>.<metric>`."""
        runs = [self._run(name, config, seed, overrides) for seed in seeds]
        self.details[name] = runs
        for metric in runs[0]["metrics"]:
            values = [run["metrics"][metric] for run in runs]
            self.results[f"{name}.{metric}"] = sum(values) / len(values)
            spread = max(values) - min(values)
            self.results[f"{name}.{metric}.spread"] = spread
        for cost in ("training_s", "training_cpu_s", "best_epoch"):
            # Of a training that was resumed the cost is not known.
            known = [run[cost] for run in runs if run[cost] is not None]
            self.results[f"{name}.{cost}"] = (
                sum(known) / len(known) if known else None
            )

    def _run(
        self, name: str, config: str, seed: int, overrides: Sequence[str]
    ) -> Measured:
        chosen = [f"seed={seed}", *overrides, *self._overrides]
        run = run_module(
            "movielens_run",
            config,
            self._data / name,
            f"--name={name}-seed-{seed}",
            *(f"--set={override}" for override in chosen),
        )
        found = run["metrics"]
        say(
            f"{name:>12} seed {seed}: hit rate @10 seen removed "
            f"{found['retrieval.hit_rate_at_10_seen_removed']:.4f}, @50 seen "
            f"kept {found['retrieval.hit_rate_at_50']:.4f}; training: "
            f"{run['training_s']} s, {run['training_cpu_s']} s of CPU"
        )
        return {"seed": seed, **run}


def main() -> None:
    """Runs the chosen sections; the last line is the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=SECTIONS, action="append")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    if "WATCHNEXT_DATA" not in os.environ:
        parser.error("set WATCHNEXT_DATA to the folder with movielens_1m/")
    bench = Bench(args.data, args.overrides)
    bench.details["machine"] = run_module("machine")
    for name in args.only or SECTIONS:
        say(f"-- {name}")
        if name != "counts":
            bench.section(name, CONFIGS[name], args.seeds)
            continue
        for count, epochs in COUNTS.items():
            # One seed: this compares N, not seeds.
            bench.section(
                f"counts.{count}",
                CONFIGS["bags"],
                args.seeds[:1],
                f"retrieval_examples.examples_per_user={count}",
                f"retrieval.epochs={epochs}",
                f"retrieval.patience={epochs}",
            )
    print(json.dumps(bench.results | bench.details))


if __name__ == "__main__":
    try:
        main()
    except JobFailed as error:
        sys.exit(f"error: {error}")
