"""Training and measuring a model on its examples: the wiring of one run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from beam_jobs.events import read_tables
from models import (
    expert_usage,
    ranking_evaluation,
    ranking_predictions,
    retrieval_evaluation,
)
from models.inputs import dataset, max_lengths, naming_corrupt_files
from models.keras_setup import tf
from models.label_counts import label_counts
from models.lanes import training_dataset
from models.negatives import needs_label_counts
from models.ranking import RankingModel
from models.retrieval import LABEL, FullSoftmaxModel, RetrievalModel
from models.retrieval_evaluation import ExactRanker, ModelScorer
from models.warm_start import WarmStart
from pipeline.cluster import current_task
from pipeline.console import say
from pipeline.distribution import (
    START_TIMEOUT_S,
    StrategyName,
    make_strategy,
    worker_rows,
)
from pipeline.projector_files import (
    MOST_POINTS,
    video_labels,
    write_projector_files,
)
from pipeline.refresh import gentler
from pipeline.run import Run
from pipeline.stages import DataStages
from pipeline.tensorboard_logs import ProfileSteps
from pipeline.training import TrainingResult, train
from schemas.artifacts import Artifact, digest, join
from schemas.examples import (
    ExampleKey,
    ranking_keys,
    ranking_labels,
    retrieval_keys,
)
from schemas.model_config import RankingConfig, RetrievalConfig
from schemas.vocabularies import read_vocabulary

Model = Literal["retrieval", "ranking"]
Variant = Literal["model", "full_softmax", "click_model"]
_EVALUATION_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Workers:
    """How training is distributed, and which of its steps are profiled."""

    num_workers: int = 1
    strategy: StrategyName = "auto"
    tpu: str | None = None
    start_timeout_s: float = START_TIMEOUT_S
    profile: ProfileSteps | None = None


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains and measures models on examples of the data stages."""

    run: Run
    data: DataStages
    workers: Workers
    # Of one training's checkpoints and logs; None: by what it follows from.
    scratch: str | None = None

    def train(
        self,
        which: Model,
        examples: Artifact,
        variant: Variant = "model",
        *,
        recent: Artifact | None = None,
        earlier: Artifact | None = None,
        refit: Artifact | None = None,
        after_epoch: Callable[[Sequence[dict[str, float]]], None] | None = None,
    ) -> TrainingResult:
        """Trains on `train-*`, choosing the epoch on `valid-*`.

        Args:
          which: the model.
          examples: of that model.
          variant: the model itself, or a baseline trained beside it:
            retrieval by the full softmax, ranking by clicks alone.
          recent: if given, its `train-*` are trained on instead.
          earlier: retrieval model whose weights are the first ones.
          refit: if given, the chosen epoch's retrieval model goes on for
            `refit_epochs` on its `train-*`, training and validation together;
            `best_epoch` stays the chosen one.
          after_epoch: see `pipeline.training.train`.
        """
        strategy = make_strategy(
            self.workers.strategy,
            self.workers.tpu,
            self.workers.start_timeout_s,
        )
        section = _variant(getattr(self.run.config, which), variant)
        if earlier is not None:
            section = gentler(section)
        trained_on = recent or examples
        workdir = self.scratch or self._scratch(
            which,
            section,
            variant,
            trained_on.fingerprint("train-"),
            examples.fingerprint("valid-"),
            earlier.fingerprint() if earlier else None,
        )
        start = WarmStart.read(earlier.path) if earlier else None
        build = {
            "retrieval": functools.partial(
                self.new_retrieval, trained_on, variant, start
            ),
            "ranking": functools.partial(self._new_ranking, section),
        }[which]
        files = [*trained_on.files("train-"), *examples.files("valid-")]
        with naming_corrupt_files(files):
            metric, higher_is_better = watched_metric(section, which)
            result = train(
                build,
                self._batches(which, section, trained_on, strategy),
                self._evaluate(which, examples),
                metric=metric,
                higher_is_better=higher_is_better,
                config=section,
                workdir=workdir,
                strategy=strategy,
                total_steps=_steps(section, trained_on),
                after_epoch=after_epoch,
                profile=self.workers.profile if variant == "model" else None,
            )
        if refit is not None:
            result = self._refit(result, section, refit, workdir, strategy)
        if which == "retrieval" and current_task().is_chief:
            self._write_projector_files(result.model, join(workdir, "logs"))
        return result

    def _refit(
        self,
        chosen: TrainingResult,
        section: RetrievalConfig,
        examples: Artifact,
        workdir: str,
        strategy: tf.distribute.Strategy,
    ) -> TrainingResult:
        """Goes on with the chosen weights; its epochs follow the history."""
        section = gentler(section).model_copy(
            update={"epochs": section.refit_epochs, "warmup_steps": 0}
        )
        key = digest([examples.fingerprint("train-")])
        with naming_corrupt_files(examples.files("train-")):
            result = train(
                lambda: chosen.model,
                self._batches("retrieval", section, examples, strategy),
                lambda model: {},
                metric=None,
                config=section,
                workdir=join(workdir, f"refit-{key[:12]}"),
                strategy=strategy,
                total_steps=_steps(section, examples),
            )
        history = [*chosen.history, *result.history]
        return TrainingResult(result.model, chosen.best_epoch, history)

    def _batches(
        self,
        which: Model,
        section: Any,
        examples: Artifact,
        strategy: tf.distribute.Strategy,
    ) -> Callable[[int, int], tf.data.Dataset]:
        """(epoch, batches to skip) -> this process's part of `train-*`."""
        rows, keys = worker_rows(strategy), self._keys(which, "train")
        records = examples.records("train-")

        def batches(epoch: int, skip: int) -> tf.data.Dataset:
            return training_dataset(
                records,
                keys,
                section.batch_size,
                padded_lengths=max_lengths(self.data.features),
                seed=self.run.config.seed,
                epoch=epoch,
                skip_batches=skip,
                rows=rows,
                num_lanes=section.lanes,
            )

        return batches

    def _evaluate(
        self, which: Model, examples: Artifact
    ) -> Callable[[Any], Mapping[str, float]]:
        """Model -> metrics on `valid-*`."""
        if which == "ranking":
            return lambda model: self.evaluate_ranking(
                model, examples, "valid", prefix=""
            )
        return lambda model: retrieval_evaluation.evaluate(
            ExactRanker(ModelScorer(model)),
            self.retrieval_batches(examples, "valid"),
            self.run.config.evaluation.top_k,
        )

    def _write_projector_files(
        self, model: RetrievalModel, folder: str
    ) -> None:
        """Writes the most watched videos' output embeddings, to look at."""
        embeddings, _ = model.candidates()
        # Ids are by falling count.
        vectors = np.asarray(embeddings[:MOST_POINTS])
        labels = video_labels(
            read_vocabulary(self.data.vocabularies().path, "video"),
            self.data.entity_files("videos"),
            len(vectors),
        )
        write_projector_files(folder, vectors, labels)

    def _scratch(
        self, which: Model, section: Any, variant: str, *inputs: str | None
    ) -> str:
        """Checkpoints and logs of one training; survives a killed run."""
        key = digest(
            [
                which,
                variant,
                self.run.config.seed,
                section.model_dump(mode="json"),
                *inputs,
            ]
        )
        return join(self.run.workdir, "training", f"{which}-{key[:12]}")

    def new_retrieval(
        self,
        examples: Artifact,
        variant: Variant = "model",
        start: WarmStart | None = None,
    ) -> RetrievalModel:
        """A model before its first step on examples: from nothing, or warm."""
        full = variant == "full_softmax"
        counts = None
        if needs_label_counts(self.run.config.retrieval) and not full:
            counts = label_counts(
                examples.files("train-"), LABEL, self.data.sizes["video"]
            )
        kind = FullSoftmaxModel if full else RetrievalModel
        model = kind(
            self.data.features,
            self.data.sizes,
            self.run.config.retrieval,
            self.run.config.seed,
            example_age=self.run.config.retrieval_examples.example_age,
            label_counts=counts,
        )
        if start is not None:
            folder = self.data.vocabularies().path
            start.apply(model, folder, self._channels_and_topics())
        return model

    def _channels_and_topics(self) -> pa.Table | None:
        """Of each video of the log, as far as it tells them."""
        schema = self.data.schema
        if not schema.has("videos"):
            return None
        wanted = {"video_id", "channel_id", "topics"}
        columns = [f for f in schema.arrow("videos") if f.name in wanted]
        return read_tables(self.data.entity_files("videos"), pa.schema(columns))

    def _new_ranking(self, section: RankingConfig) -> RankingModel:
        schema = self.data.schema
        return RankingModel(
            self.data.features,
            self.data.sizes,
            section,
            self.run.config.seed,
            labels=ranking_labels(schema),
            positions=schema.has("impressions", "position"),
        )

    def _keys(
        self, which: Model, part: Literal["train", "evaluation"]
    ) -> Sequence[ExampleKey]:
        config = self.run.config
        if which == "ranking":
            return ranking_keys(
                self.data.features,
                self.data.schema,
                config.ranking_examples.max_candidates,
            )
        return retrieval_keys(
            self.data.features,
            part,
            example_age=config.retrieval_examples.example_age,
        )

    def retrieval_batches(
        self, examples: Artifact, part: str
    ) -> tf.data.Dataset:
        """Batches of evaluation cases of `valid` or `test`."""
        return dataset(
            examples.files(f"{part}-"),
            self._keys("retrieval", "evaluation"),
            _EVALUATION_BATCH,
            padded_lengths=max_lengths(self.data.features),
        )

    def evaluate_ranking(
        self,
        model: RankingModel,
        examples: Artifact,
        part: str,
        prefix: str = "ranking.",
    ) -> dict[str, float]:
        """Measures a ranking model on `valid`, or in short on `test`."""
        predictions = self.predict_ranking(model, examples, part)
        found = ranking_evaluation.measure(predictions, prefix)
        return found | self.expert_usage(model, examples, part, prefix)

    def predict_ranking(
        self,
        model: RankingModel,
        examples: Artifact,
        part: str,
        *,
        detailed: bool = False,
    ) -> ranking_predictions.Predictions:
        """A ranking model's predictions of `valid` or `test`."""
        return ranking_predictions.collect_predictions(
            model,
            self.ranking_batches(examples, part),
            ranking_predictions.group_by(
                self.data.schema.has("impressions", "request_id")
            ),
            utc_offset_hours=self.run.config.split.utc_offset_hours,
            detailed=detailed,
        )

    def expert_usage(
        self, model: RankingModel, examples: Artifact, part: str, prefix: str
    ) -> dict[str, float]:
        """How the gates use the experts, if there are any; says alarms."""
        if model.experts is None:
            return {}
        batches = self.ranking_batches(examples, part)
        usage = expert_usage.measure(model, batches)
        for alarm in expert_usage.alarms(usage):
            say(alarm)
        return {prefix + name: value for name, value in usage.items()}

    def ranking_batches(self, examples: Artifact, part: str) -> tf.data.Dataset:
        """Batches of the requests of a part, in file order."""
        return dataset(
            examples.files(f"{part}-"),
            self._keys("ranking", "evaluation"),
            _EVALUATION_BATCH,
            padded_lengths=max_lengths(self.data.features),
        )


def watched_metric(section: Any, which: Model) -> tuple[str, bool]:
    """What chooses the epoch, and whether a higher value is better."""
    if which == "ranking":
        return "loss", False
    return str(section.selection_metric), True


def _steps(section: Any, examples: Artifact) -> int:
    """Of all epochs."""
    records = sum(examples.records("train-").values())
    return int(section.epochs * (records // section.batch_size))


def _variant(section: RetrievalConfig | RankingConfig, variant: str) -> Any:
    """The section of a baseline that is trained beside the model."""
    if variant != "click_model":
        return section
    return section.model_copy(
        update={
            "tasks": ("clicked",),
            "task_weights": {"watch_time": 0.0},
            "score_weights": {"clicked": 1.0},
        }
    )
