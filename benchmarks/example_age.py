"""Measures what the example age does for new videos (paper, section 3.3).

    python -m benchmarks.example_age             # some 20 minutes on 2 cores
    python -m benchmarks.example_age --quick     # small: does it run?

The demo's simulated platform, on which a video's pull rises after its upload,
peaks and decays, is simulated for each seed. On the same log the retrieval
model is trained twice, with and without `retrieval_examples.example_age`; all
else is equal, and both choose their epoch alike. Hit rates @100 are over every
watch of the two days after training (validation and test) of a video of the
vocabulary; a video is young if it was uploaded less than 2 days before.
The last line is one JSON object: `lift_young` and `change_rest` are hit rates
with the age over those without, as mean over the seeds, least and greatest.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from models.retrieval import RetrievalModel
from models.retrieval_evaluation import ExactRanker, ModelScorer, evaluate
from models.slice_buckets import VIDEO_AGE
from pipeline.config import load_config
from pipeline.event_stage import make_events
from pipeline.model_stages import ModelStages
from pipeline.model_training import Trainer, Workers
from pipeline.run import COMMANDS, Run
from pipeline.video_columns import video_column
from schemas.artifacts import ArtifactStore
from schemas.vocabularies import read_vocabulary

K = 100
YOUNG = VIDEO_AGE[0][0]
_QUICK = (
    "simulator.num_users=2000",
    "simulator.num_videos=1500",
    "simulator.num_channels=100",
    "retrieval.epochs=2",
)


def hit_rates(workdir: str, overrides: Sequence[str]) -> dict[str, float]:
    """Trains one model and measures it.

    Returns:
      `young` and `rest`, their numbers of watches `young_watches` and
      `rest_watches`, and `all`, where watches of videos that are not in the
      vocabulary are misses.
    """
    run = Run(
        load_config("demo", overrides),
        ArtifactStore(workdir),
        ("--runner=FnApiRunner",),
        frozenset(COMMANDS),
    )
    stages = ModelStages(run, events=make_events(run))
    data = stages.data
    trainer = Trainer(run, data, Workers())
    videos = read_vocabulary(data.vocabularies().path, "video")
    model = RetrievalModel.load(stages.retrieval_model().path)
    found: dict[str, float] = {}
    watches: dict[str, float] = {}
    for part, examples in (
        ("valid", data.retrieval_examples()),
        ("test", data.retrieval_holdout()),
    ):
        measured = evaluate(
            ExactRanker(ModelScorer(model)),
            trainer.retrieval_batches(examples, part),
            (K,),
            sliced=True,
            upload_time_us=video_column(data, videos, "upload_time_us"),
        )
        for name, number in measured.items():
            if not name.endswith(".labels"):
                continue
            bucket = name.split(".")[1]
            rate = measured[name.replace("labels", f"hit_rate_at_{K}")]
            watches[bucket] = watches.get(bucket, 0) + number
            found[bucket] = found.get(bucket, 0) + number * rate
    old = [name for name, *_ in VIDEO_AGE[1:] if name in watches]
    rest = sum(watches[name] for name in old)
    return {
        "young": found[YOUNG] / watches[YOUNG],
        "rest": sum(found[name] for name in old) / rest,
        "all": sum(found.values()) / sum(watches.values()),
        "young_watches": watches[YOUNG],
        "rest_watches": rest,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the hit rates of each training, and the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workdir", type=Path)
    args = parser.parse_args(argv)
    folder = args.workdir or Path(tempfile.mkdtemp(prefix="example-age-"))
    settings = [*(_QUICK if args.quick else ()), *args.overrides]
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        for age in (True, False):
            measured = hit_rates(
                str(folder / f"seed-{seed}"),
                [
                    *settings,
                    f"seed={seed}",
                    f"retrieval_examples.example_age={str(age).lower()}",
                ],
            )
            runs.append({"seed": seed, "example_age": age, **measured})
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    ratios = {
        name: _ratios(runs, side)
        for name, side in (
            ("lift_young", "young"),
            ("change_rest", "rest"),
            ("change_all", "all"),
        )
    }
    print(json.dumps({**ratios, "runs": runs, "machine": describe()}))


def _ratios(runs: Sequence[dict[str, Any]], side: str) -> dict[str, float]:
    """With the age over without it, seed by seed."""
    with_age, without = (
        np.array([run[side] for run in runs if run["example_age"] is age])
        for age in (True, False)
    )
    ratio = with_age / without
    return {
        "mean": float(ratio.mean()),
        "least": float(ratio.min()),
        "greatest": float(ratio.max()),
    }


if __name__ == "__main__":
    main()
