"""Counts the trainings whose gates polarise, with gate dropout and without.

    python -m benchmarks.gate_polarisation             # some 2 minutes
    python -m benchmarks.gate_polarisation --seeds 1 --steps 9

A small ranking problem with what makes gates of ReLU experts polarise (Zhao et
al. 2019, section 5): tasks that conflict, of very unequal loss, at a high
learning rate. Each seed draws its own problem and initial weights, and trains
the ranking model once for each rate of `ranking.experts.gate_dropout`; nothing
else differs. A training is polarised if, on impressions it was not trained on,
an expert's mean gate weight is below 1 % on any task. Progress goes to the
error stream; the last line is one JSON object of counts.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from pipeline.experiments.gate_problem import config, summary, usage

RATES = (0.0, 0.1)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints each training, and the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=range(1, 21))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    args = parser.parse_args(argv)
    start = time.monotonic()
    counts: dict[str, Any] = {}
    for rate in RATES:
        section = config(rate, args.experts, args.learning_rate)
        runs = []
        for seed in args.seeds:
            runs.append(summary(usage(seed, section, args.steps)))
            line = f"gate_dropout {rate} seed {seed}: {json.dumps(runs[-1])}"
            print(line, file=sys.stderr, flush=True)
        counts[f"gate_dropout_{rate}"] = {
            "polarised": sum(bool(run["polarised"]) for run in runs),
            "with_dead_experts": sum(bool(run["dead_experts"]) for run in runs),
        }
    about = {
        "trainings": len(args.seeds),
        "steps": args.steps,
        "experts": args.experts,
        "learning_rate": args.learning_rate,
        "seconds": round(time.monotonic() - start),
    }
    print(json.dumps(counts | about))


if __name__ == "__main__":
    main()
