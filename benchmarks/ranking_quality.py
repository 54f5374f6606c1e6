"""How well the ranking model ranks KuaiRand, beside boosted trees.

    export WATCHNEXT_DATA=...                          # has kuairand_pure/
    python -m benchmarks.ranking_quality               # some 15 minutes
    python -m benchmarks.ranking_quality --seeds 1 --set ranking.dropout=0.2

Trained to 3 May 2022; 4 May chooses the epoch and the number of trees; 5 May is
the test. LightGBM is trained in the same run on the same features, those of
one value or one id, once for each objective that people use; our model is
compared with the best of them in each metric. benchmarks/README.md says what
each key means; the last line is one JSON object.
"""

import argparse
import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.processes import say
from benchmarks.ranking_scoring import scoring_times
from models import ranking_evaluation
from models.boosted_trees import BoostedTrees, Objective
from models.ranking_predictions import Predictions
from models.ranking_table import LABELS
from pipeline.config import load_config
from pipeline.event_stage import make_events
from pipeline.model_training import Trainer, Workers
from pipeline.ranking_measures import RankingMeasures
from pipeline.run import COMMANDS, Run
from pipeline.stages import DataStages, prepare
from schemas.artifacts import ArtifactStore, join

SECONDS = "expected_watch_time_s"
OBJECTIVES = {
    "click": Objective("binary", "clicked"),
    "long_view": Objective("binary", "long_view"),
    "weighted_click": Objective("binary", "clicked", weight="watch_time_s"),
    "watch_time": Objective("regression", "watch_time_s"),
    "watch_time_tweedie": Objective("tweedie", "watch_time_s"),
}
# Metric -> whether more is better.
COMPARED = {
    "auc_click": True,
    "auc_long_view": True,
    "watch_time_xauc": True,
    "weighted_per_user_loss": False,
}
DATA = Path(tempfile.gettempdir(), "watchnext-benchmarks", "kuairand")

Measured = dict[str, Any]


def main() -> None:
    """Prints a line a training, and the JSON object at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    args = parser.parse_args()
    if "WATCHNEXT_DATA" not in os.environ:
        parser.error("set WATCHNEXT_DATA to the folder with kuairand_pure/")
    runs = [_measured(s, args.data, args.overrides) for s in args.seeds]
    print(
        json.dumps(
            compared(runs)
            | scoring_times(_stages(args.seeds[0], args.data, args.overrides))
            | {"runs": runs, "machine": describe()}
        )
    )


def compared(runs: Sequence[Measured]) -> Measured:
    """Our model's means over the seeds, and what the trees leave of them.

    Args:
      runs: of each seed `ours` and `lightgbm.<objective>`, metrics by name,
        and `seconds`, of each training.
    """

    def mean(name: str, metric: str) -> float:
        # An objective says nothing of some metrics.
        return float(np.mean([run[name].get(metric, np.nan) for run in runs]))

    trees = [f"lightgbm.{objective}" for objective in OBJECTIVES]
    squared = trees.index("lightgbm.watch_time")
    found: Measured = {}
    for metric, more_is_better in COMPARED.items():
        ours = mean("ours", metric)
        theirs = [mean(name, metric) for name in trees]
        best = np.nanmax(theirs) if more_is_better else np.nanmin(theirs)
        found[metric] = ours
        found[f"{metric}_minus_lightgbm"] = ours - float(best)
        values = [run["ours"][metric] for run in runs]
        found[f"{metric}.spread"] = max(values) - min(values)
    mae = [mean(name, "watch_time_mae_s") for name in trees]
    found["watch_time_mae_s"] = mean("ours", "watch_time_mae_s")
    found["mae_vs_lightgbm"] = found["watch_time_mae_s"] / mae[squared]
    found["mae_vs_best_lightgbm"] = found["watch_time_mae_s"] / np.nanmin(mae)
    found["calibration"] = mean("ours", "calibration")
    for cost in ("seconds", "cpu_s"):
        of_trees = sum(mean(cost, name) for name in trees)
        found[f"train_vs_lightgbm.{cost}"] = mean(cost, "ours") / of_trees
    return found


def _stages(seed: int, data: Path, overrides: Sequence[str]) -> DataStages:
    config = load_config("kuairand", [f"seed={seed}", *overrides])
    run = Run(config, ArtifactStore(str(data)), builds=frozenset(COMMANDS))
    events = make_events(run)
    prepare(run, events)
    return DataStages(run, events)


def _measured(seed: int, folder: Path, overrides: Sequence[str]) -> Measured:
    data = _stages(seed, folder, overrides)
    trainer = Trainer(data.run, data, Workers())
    # From its first step on: a training that is found again costs nothing.
    shutil.rmtree(join(data.run.workdir, "training"), ignore_errors=True)
    clock = _Clock()
    model = trainer.train("ranking", data.ranking_examples()).model
    costs = {"ours": clock.taken()}
    shown = trainer.predict_ranking(model, data.ranking_holdout(), "test")
    run: Measured = {"seed": seed, "ours": _metrics(shown, shown.outputs)}
    measures = RankingMeasures(trainer)
    labels = (*LABELS, "long_view")
    train, valid, test = (
        measures.table(part, labels) for part in ("train", "valid", "test")
    )
    for name, objective in OBJECTIVES.items():
        clock = _Clock()
        predicted = BoostedTrees(train, valid, objective, seed).predict(test)
        costs[f"lightgbm.{name}"] = clock.taken()
        outputs = {"score": predicted, objective.label: predicted}
        if name == "weighted_click":
            outputs = {"score": predicted}
        elif objective.loss != "binary":
            outputs = {"score": predicted, SECONDS: np.maximum(predicted, 0.0)}
        run[f"lightgbm.{name}"] = _metrics(shown, outputs)
    for i, cost in enumerate(("seconds", "cpu_s")):
        run[cost] = {name: taken[i] for name, taken in costs.items()}
    for name, (seconds, _) in costs.items():
        say(f"seed {seed} {name:>27}: {_line(run[name])}, {seconds:.1f} s")
    return run


class _Clock:
    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def taken(self) -> tuple[float, float]:
        """Seconds by the clock, and of all processors."""
        wall, cpu = self._started
        return time.perf_counter() - wall, time.process_time() - cpu


def _metrics(
    shown: Predictions, outputs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    predictions = dataclasses.replace(shown, outputs=outputs, loss=None)
    return ranking_evaluation.measure(predictions, prefix="")


def _line(metrics: Mapping[str, float]) -> str:
    names = (*COMPARED, "watch_time_mae_s", "calibration")
    return ", ".join(f"{n} {metrics[n]:.4f}" for n in names if n in metrics)


if __name__ == "__main__":
    main()
