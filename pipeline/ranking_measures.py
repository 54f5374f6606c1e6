"""Measures ranking on the test requests: the model and its baselines.

Wiring of the evaluation stage: which files each side reads.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models import ranking_baselines, ranking_evaluation
from models.inputs import dataset
from models.ranking import RankingModel
from models.ranking_baselines import Baseline
from models.ranking_evaluation import Details
from models.ranking_predictions import Predictions
from models.ranking_slices import VideoFacts
from models.ranking_table import LABELS, Table, columns_of, read_table
from pipeline.console import say
from pipeline.model_training import Trainer
from pipeline.video_columns import video_column
from schemas.config import RankingBaselineName
from schemas.examples import ranking_keys
from schemas.vocabularies import read_vocabulary

_BATCH = 1024
_ABOUT = ("request_key", "candidate_count", "clicked")
Batches = Iterable[Mapping[str, Any]]


class RankingMeasures:
    """The metrics of everything that ranks, by their shared names.

    Args:
      trainer: runs the model, and trains what is measured beside it.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        data = self._data = trainer.data
        self._videos = read_vocabulary(data.vocabularies().path, "video")
        surfaces = read_vocabulary(data.vocabularies().path, "surface")
        config = data.run.config
        self._details = Details(
            VideoFacts(
                video_column(data, self._videos, "upload_time_us"),
                video_column(data, self._videos, "duration_s"),
                surfaces.terms.to_pylist(),
            ),
            config.evaluation.bootstrap_resamples,
            config.seed,
        )

    def of_all(self, trained: RankingModel) -> dict[str, float]:
        """Of the model, and of what the configuration names beside it."""
        predictions = self._predict(trained)
        values = self._measure(predictions, "")
        values |= self._trainer.expert_usage(
            trained, self._data.ranking_holdout(), "test", "ranking."
        )
        values |= self._of_baselines(predictions)
        if self._data.run.config.evaluation.click_model:
            clicks = self._trainer.train(
                "ranking", self._data.ranking_examples(), "click_model"
            ).model
            beside = self._predict(clicks)
            values |= self._measure(beside, "baselines.click_model.")
        return values

    def table(self, part: str, labels: Sequence[str] = LABELS) -> Table:
        """Impressions as rows: all of the test, else what is learnt from."""
        columns = columns_of(self._data.features)
        share = 1.0
        if part != "test":
            most = self._data.run.config.evaluation.ranking_baseline_impressions
            counts = self._data.ranking_examples().counts
            share = most / max(counts[f"{part}_candidates"], 1)
        keys = (*_ABOUT, *labels, *(f.name for f in columns))
        return read_table(self._batches(part, keys), columns, share, labels)

    def _predict(self, model: RankingModel) -> Predictions:
        return self._trainer.predict_ranking(
            model, self._data.ranking_holdout(), "test", detailed=True
        )

    def _of_baselines(self, shown: Predictions) -> dict[str, float]:
        """`baselines.<name>.ranking.*`, of those the configuration names.

        Args:
          shown: any predictions of the same impressions.
        """
        values: dict[str, float] = {}
        if not self._names:
            return values
        test = self.table("test")
        for name in self._names:
            say(f"  measuring baselines.{name}.ranking")
            outputs = self._build(name).outputs(test)
            predictions = dataclasses.replace(shown, outputs=outputs, loss=None)
            values |= self._measure(predictions, f"baselines.{name}.")
        return values

    @property
    def _names(self) -> Sequence[RankingBaselineName]:
        return self._data.run.config.evaluation.ranking_baselines

    def _measure(
        self, predictions: Predictions, prefix: str
    ) -> dict[str, float]:
        return ranking_evaluation.measure(
            predictions, f"{prefix}ranking.", self._details
        )

    def _build(self, name: RankingBaselineName) -> Baseline:
        if name == "popularity":
            counted = self._batches("train", ("video", *_ABOUT))
            return ranking_baselines.Popularity(counted, self._videos.size)
        if name == "logistic_regression":
            return ranking_baselines.LinearRanking(self.table("train"))
        return ranking_baselines.LightGbm(
            self.table("train"),
            self.table("valid"),
            self._data.run.config.seed,
        )

    def _batches(self, part: str, names: Sequence[str]) -> Batches:
        """Only the named keys, which saves most of the parsing."""
        data = self._data
        examples = (
            data.ranking_holdout()
            if part == "test"
            else data.ranking_examples()
        )
        width = data.run.config.ranking_examples.max_candidates
        keys = ranking_keys(data.features, data.schema, width)
        wanted = [k for k in keys if k.name in names]
        files = examples.files(f"{part}-")
        batches: Batches = dataset(files, wanted, _BATCH, padded_lengths={})
        return batches
