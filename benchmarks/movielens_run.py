"""Prepares, trains and evaluates one configuration of MovieLens-1M.

Stages that are there already are found again, and a training that was stopped
is resumed: the second run of a seed is over at once.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from pipeline.config import load_config
from pipeline.event_stage import make_events
from pipeline.model_stages import ModelStages
from pipeline.run import LEARNT, Run
from pipeline.stages import prepare
from schemas.artifacts import ArtifactStore

COSTS = ("training_s", "training_cpu_s")
# Evaluation's own oracle would train a second model.
_ALWAYS = ("evaluation.full_softmax_oracle=false",)


def measured(run: Run, record: Path) -> dict[str, Any]:
    """Metrics, epochs and seconds of a configuration.

    Args:
      run: of the configuration.
      record: where the cost of the training is kept, which happens once. Of
        a training that was stopped and resumed it stays unknown, null.
    """
    events = make_events(run)
    prepare(run, events)
    model_stages = ModelStages(run.building(*LEARNT), events=events)
    resumed = record.exists()
    if not resumed:
        record.write_text(json.dumps(dict.fromkeys(COSTS)))
    started, cpu_started = time.perf_counter(), time.process_time()
    model = model_stages.retrieval_model()
    if not resumed:
        seconds = time.perf_counter() - started
        cpu_s = time.process_time() - cpu_started
        cost = dict(zip(COSTS, (seconds, cpu_s), strict=True))
        record.write_text(json.dumps(cost))
    history = json.loads(Path(model.file("history.json")).read_text())
    metrics = model_stages.evaluation().metrics
    return {
        "metrics": {
            name: value
            for name, value in metrics.items()
            if name.startswith(("retrieval.", "baselines."))
        },
        "best_epoch": model.counts["best_epoch"],
        "epochs": len(history),
        "valid": history[model.counts["best_epoch"] - 1],
        "examples": model_stages.data.retrieval_examples().counts[
            "train_examples"
        ],
        **json.loads(record.read_text()),
    }


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--name", required=True, help="Of the cost's file.")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    config = load_config(args.config, [*args.overrides, *_ALWAYS])
    run = Run(config, ArtifactStore(str(args.workdir)))
    args.workdir.mkdir(parents=True, exist_ok=True)
    print(json.dumps(measured(run, args.workdir / f"{args.name}.json")))


if __name__ == "__main__":
    main()
