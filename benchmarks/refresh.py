"""Is a refresh with one new day as good as a full retrain, and cheaper?

One simulated log. The earlier model is trained on all days but the newest
training day; then come the new day and two models that know it: one trained
from nothing on all days, one that begins with the earlier model's weights and
sees the new day's examples alone. Both are tested two days later.

    python benchmarks/refresh.py
    python benchmarks/refresh.py --quick         # does it run?

Everything goes through the command line; steps are those up to the epoch that
validation chose. The last line of output is one JSON object.
"""

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from beam_jobs.events import read_tables  # noqa: E402
from benchmarks.machine import describe  # noqa: E402
from models.baselines import history_rows  # noqa: E402
from models.retrieval import RetrievalModel  # noqa: E402
from models.retrieval_evaluation import (  # noqa: E402
    ExactRanker,
    ModelScorer,
    evaluate,
)
from models.warm_start import WarmStart  # noqa: E402
from pipeline.cli import main as watchnext  # noqa: E402
from pipeline.config import load_config  # noqa: E402
from pipeline.model_training import Trainer, Workers  # noqa: E402
from pipeline.run import Run  # noqa: E402
from pipeline.stages import DataStages  # noqa: E402
from schemas.artifacts import Artifact, ArtifactStore  # noqa: E402
from schemas.split import DAY_US  # noqa: E402
from schemas.vocabularies import read_vocabulary  # noqa: E402

FIRST = datetime.date(2024, 1, 1)
TOP_K = 100
# Validation and test are the last two days, so the newest training day of 17
# is the 15th, and 1/15 of an epoch has its examples.
FULL = {"num_users": 8_000, "num_videos": 3_000, "num_channels": 300}
QUICK = {"num_users": 300, "num_videos": 300, "num_channels": 40}
DAYS, QUICK_DAYS = 17, 8


def configuration(quick: bool, epochs: int) -> dict[str, Any]:
    """The demo's, smaller; enough epochs for the full retrain to converge."""
    size, days = (QUICK, QUICK_DAYS) if quick else (FULL, DAYS)
    return {
        "name": "refresh",
        "simulator": {
            **size,
            "num_days": days,
            "requests_per_user_day": 0.3,
            "start_date": str(FIRST),
        },
        "beam": {"num_shards": 4},
        "retrieval_examples": {
            "examples_per_user": 60,
            "equal_user_weights": False,
        },
        "retrieval": {
            "epochs": 2 if quick else epochs,
            "batch_size": 64 if quick else 512,
        },
    }


class Experiment:
    """The three models, by the command line, in a work directory."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.work, self.path = folder / "work", folder / "refresh.yaml"
        self.config = config
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text(yaml.safe_dump(config))
        days = config["simulator"]["num_days"]
        # Days are counted from 0: the last is the test's.
        self.new_day = FIRST + datetime.timedelta(days=days - 3)
        self.test_day = FIRST + datetime.timedelta(days=days - 1)

    def command(self, *arguments: str) -> None:
        options = ["--config", str(self.path), "--workdir", str(self.work)]
        if watchnext([*arguments, *options]):
            sys.exit(f"error: `watchnext {' '.join(arguments)}` failed.")

    def newest_model(self) -> Artifact:
        return ArtifactStore(str(self.work)).versions("retrieval_model")[-1]

    def earlier(self) -> Artifact:
        """Trained as of a day before: that day's split of the same log."""
        day_before = self.test_day - datetime.timedelta(days=1)
        split = ("--set", f"split.test_start={day_before}")
        self.command("simulate")
        self.command("prepare", *split)
        self.command("train", "retrieval", *split)
        return self.newest_model()

    def full(self) -> Artifact:
        self.command("prepare", "--last-days", "1")
        self.command("train", "retrieval")
        return self.newest_model()

    def refreshed(self, earlier: Artifact) -> Artifact:
        warm = ("--warm-start-from", earlier.path, "--last-days", "1")
        self.command("train", "retrieval", *warm)
        return self.newest_model()


class Measured:
    """What is asked of a model, on the days after the newest training day."""

    def __init__(self, experiment: Experiment) -> None:
        config = load_config(str(experiment.path), ())
        store = ArtifactStore(str(experiment.work))
        run = Run(config, store)
        self.data, self.config = DataStages(run), config
        self.trainer = Trainer(run, self.data, Workers())
        start = (experiment.new_day - datetime.date(1970, 1, 1)).days * DAY_US
        videos = read_tables(
            self.data.entity_files("videos"), self.data.schema.arrow("videos")
        )
        uploaded = videos.column("upload_time_us").to_numpy()
        on_day = (uploaded >= start) & (uploaded < start + DAY_US)
        terms = read_vocabulary(self.data.vocabularies().path, "video")
        ids = terms.ids(videos.column("video_id"))[on_day]
        self.new_ids = ids[ids > 0]
        self.uploaded = int(on_day.sum())

    def batches(self, part: str) -> Iterable[Any]:
        examples = (
            self.data.retrieval_holdout()
            if part == "test"
            else self.data.retrieval_examples()
        )
        return self.trainer.retrieval_batches(examples, part)

    def of(self, model: RetrievalModel) -> dict[str, float]:
        """Test metrics, and how the new day's videos fare on both days."""
        scorer = ModelScorer(model)
        metrics = evaluate(
            ExactRanker(scorer), self.batches("test"), (10, 50, TOP_K)
        )
        hits = labels = 0
        shown: set[int] = set()
        for part in ("valid", "test"):
            for batch in self.batches(part):
                scores = scorer.scores(batch)
                top = 1 + np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K]
                shown |= set(np.intersect1d(top, self.new_ids).tolist())
                for row, watched in enumerate(history_rows(batch["labels"])):
                    new = watched[np.isin(watched, self.new_ids)]
                    labels += new.size
                    hits += int(np.isin(new, top[row]).sum())
        return {
            f"hit_rate_at_{TOP_K}": metrics[f"hit_rate_at_{TOP_K}"],
            "hit_rate_at_10": metrics["hit_rate_at_10"],
            "cases": metrics["cases"],
            "new_videos_labels": labels,
            "new_videos_hit_rate": hits / max(labels, 1),
            "new_videos_retrieved": len(shown) / max(len(self.new_ids), 1),
        }

    def moved(self, earlier: Artifact) -> RetrievalModel:
        """The earlier model under the new ids, before any step."""
        start = WarmStart.read(earlier.path)
        return self.trainer.new_retrieval(
            self.data.retrieval_examples(), start=start
        )


def steps(model: Artifact, examples: int, batch_size: int) -> int:
    """Training steps up to the epoch that was kept."""
    return model.counts["best_epoch"] * (examples // batch_size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--data", type=Path, help="A new folder to keep the stages in."
    )
    args = parser.parse_args()
    folder = args.data or Path(tempfile.mkdtemp())
    if folder.exists() and any(folder.iterdir()):
        # Each model is the newest one there after its training.
        parser.error(f"{folder} is not empty; name a new folder.")
    experiment = Experiment(folder, configuration(args.quick, args.epochs))
    earlier = experiment.earlier()
    full = experiment.full()
    refreshed = experiment.refreshed(earlier)
    measured = Measured(experiment)
    batch_size = measured.config.retrieval.batch_size
    data = measured.data
    by_model = {
        "full": measured.of(RetrievalModel.load(full.path)),
        "refresh": measured.of(RetrievalModel.load(refreshed.path)),
        "moved": measured.of(measured.moved(earlier)),
    }
    number = {
        name: artifact.counts["train_examples"]
        for name, artifact in (
            ("full", data.retrieval_examples()),
            ("refresh", data.recent_examples(1)),
        )
    }
    taken = {
        "full": steps(full, number["full"], batch_size),
        "refresh": steps(refreshed, number["refresh"], batch_size),
    }
    key = f"hit_rate_at_{TOP_K}"
    result = {
        "quality_ratio": by_model["refresh"][key] / by_model["full"][key],
        "quality_ratio_before_any_step": by_model["moved"][key]
        / by_model["full"][key],
        "steps_ratio": taken["refresh"] / taken["full"],
        "new_videos_hit_rate_refresh": by_model["refresh"][
            "new_videos_hit_rate"
        ],
        "new_videos_hit_rate_full": by_model["full"]["new_videos_hit_rate"],
        "new_videos": {
            "uploaded": measured.uploaded,
            "in_vocabulary": len(measured.new_ids),
        },
        "steps": taken,
        "examples": number,
        "models": by_model,
        "machine": describe(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
