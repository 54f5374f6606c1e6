"""Training and measuring a model on its examples: the wiring of one run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from models import ranking_evaluation, retrieval_evaluation
from models.inputs import dataset, max_lengths, naming_corrupt_files
from models.keras_setup import tf
from models.ranking import RankingModel
from models.retrieval import FullSoftmaxModel, RetrievalModel
from models.retrieval_evaluation import ModelScorer
from pipeline.distribution import (
    START_TIMEOUT_S,
    StrategyName,
    make_strategy,
    worker_rows,
)
from pipeline.run import Run
from pipeline.stages import DataStages
from pipeline.training import TrainingResult, train
from schemas.artifacts import Artifact, digest, join
from schemas.config import RankingConfig, RetrievalConfig
from schemas.examples import (
    ExampleKey,
    ranking_keys,
    ranking_labels,
    retrieval_keys,
)

Model = Literal["retrieval", "ranking"]
Variant = Literal["model", "full_softmax", "click_model"]
_EVALUATION_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Workers:
    """How training is distributed."""

    num_workers: int = 1
    strategy: StrategyName = "auto"
    tpu: str | None = None
    start_timeout_s: float = START_TIMEOUT_S


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains and measures models on examples of the data stages."""

    run: Run
    data: DataStages
    workers: Workers

    def train(
        self,
        which: Model,
        examples: Artifact,
        variant: Variant = "model",
    ) -> TrainingResult:
        """Trains on `train-*`, choosing the epoch on `valid-*`.

        Args:
          which: the model.
          examples: of that model.
          variant: the model itself, or a baseline trained beside it:
            retrieval by the full softmax, ranking by clicks alone.
        """
        strategy = make_strategy(
            self.workers.strategy,
            self.workers.tpu,
            self.workers.start_timeout_s,
        )
        rows = worker_rows(strategy)
        section = _variant(getattr(self.run.config, which), variant)
        keys = self._keys(which, "train")

        def batches(epoch: int, skip: int) -> tf.data.Dataset:
            return dataset(
                examples.files("train-"),
                keys,
                section.batch_size,
                padded_lengths=max_lengths(self.data.features),
                seed=self.run.config.seed,
                epoch=epoch,
                shuffle=True,
                drop_remainder=True,
                skip_batches=skip,
                rows=rows,
            )

        build = {
            "retrieval": functools.partial(self._new_retrieval, variant),
            "ranking": functools.partial(self._new_ranking, section),
        }[which]
        evaluate: Callable[[Any], Mapping[str, float]] = {
            "retrieval": lambda model: retrieval_evaluation.evaluate(
                ModelScorer(model),
                self.retrieval_batches(examples, "valid"),
                self.run.config.evaluation.top_k,
            ),
            "ranking": lambda model: self.evaluate_ranking(
                model, examples, "valid", prefix=""
            ),
        }[which]
        ranking = which == "ranking"
        with naming_corrupt_files(examples.files()):
            return train(
                build,
                batches,
                evaluate,
                metric="loss" if ranking else section.selection_metric,
                higher_is_better=not ranking,
                config=section,
                workdir=self._scratch(which, examples, section, variant),
                strategy=strategy,
            )

    def _scratch(
        self, which: Model, examples: Artifact, section: Any, variant: str
    ) -> str:
        """Checkpoints and logs of one training; survives a killed run."""
        key = digest(
            [
                which,
                variant,
                self.run.config.seed,
                section.model_dump(mode="json"),
                examples.fingerprint("train-", "valid-"),
            ]
        )
        return join(self.run.workdir, "training", f"{which}-{key[:12]}")

    def _new_retrieval(self, variant: str) -> RetrievalModel:
        kind = FullSoftmaxModel if variant == "full_softmax" else RetrievalModel
        return kind(
            self.data.features,
            self.data.sizes,
            self.run.config.retrieval,
            self.run.config.seed,
            example_age=self.run.config.retrieval_examples.example_age,
        )

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
        """Measures a ranking model on `valid` or `test`."""
        batches = dataset(
            examples.files(f"{part}-"),
            self._keys("ranking", "evaluation"),
            _EVALUATION_BATCH,
            padded_lengths=max_lengths(self.data.features),
        )
        return ranking_evaluation.evaluate(
            model,
            batches,
            ranking_evaluation.group_by(
                self.data.schema.has("impressions", "request_id")
            ),
            utc_offset_hours=self.run.config.split.utc_offset_hours,
            prefix=prefix,
        )


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
