"""The model stages: train, index, export, evaluate. Wiring only."""

import functools
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from pydantic import BaseModel

from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from models.warm_start import check_layers, keep_terms
from pipeline import generator_lists
from pipeline.cluster import current_task
from pipeline.console import say
from pipeline.distribution import launch_local_workers
from pipeline.lineage import refuse_strangers
from pipeline.model_training import Model, Trainer, Workers
from pipeline.ranking_measures import RankingMeasures
from pipeline.refresh import FROM_NOTHING, Refresh
from pipeline.retrieval_measures import RetrievalMeasures
from pipeline.run import Run, Sections
from pipeline.stages import DataStages
from schemas.artifacts import Artifact, ArtifactWriter
from schemas.requests import RawInput, raw_inputs

_STATISTICS = "statistics.parquet"
_EXPORTED = (
    *("retrieval_model", "ranking_model", "index", "transform"),
    "candidate_lists",
)


class ModelStages:
    """The stages after the data stages, each found or, if allowed, built."""

    def __init__(
        self,
        run: Run,
        workers: Workers | None = None,
        events: Artifact | None = None,
    ) -> None:
        self.run, self.workers = run, workers or Workers()
        self.data = DataStages(run, events)
        self._trainer = Trainer(run, self.data, self.workers)

    # Retrieval ------------------------------------------------------------

    def retrieval_model(self, refresh: Refresh = FROM_NOTHING) -> Artifact:
        """Trains candidate generation, or finds the newest that fits.

        A command that does not train goes on with whichever model was trained
        last for the configuration and its examples, refreshed or not.
        """
        examples = self.data.retrieval_examples()
        if "retrieval_model" in self.run.builds:
            return self._trained("retrieval", examples, refresh)
        sections: Sections = {"retrieval": self.run.config.retrieval}
        inputs = self._training_inputs(examples)
        return self.run.newest("retrieval_model", sections, inputs)

    def index(self) -> Artifact:
        """Builds ScaNN's index and the stock one; both pass the gate."""
        config, model = self.run.config.index, self.retrieval_model()
        examples = self.data.retrieval_examples()

        def write(writer: ArtifactWriter) -> None:
            from models.index import build_index, refuse_below_gate
            from models.top_k import with_bias

            loaded = RetrievalModel.load(model.path)
            cases = (
                self._trainer.retrieval_batches(examples, "valid")
                .unbatch()
                .batch(config.num_queries)
                .take(1)
            )
            queries = [np.asarray(loaded.query_embedding(b)) for b in cases]
            embeddings, biases = map(np.asarray, loaded.candidates())
            writer.counts["videos"] = len(biases)
            vectors = [with_bias(embeddings, biases)]
            # Nothing else holds the corpus while the index is built.
            del loaded, embeddings, biases
            recall = build_index(
                vectors.pop(), np.concatenate(queries), config, writer.path
            )
            refuse_below_gate(recall, config)
            writer.metrics["index.recall_at_100"] = recall.scann
            writer.metrics["index.stock_recall_at_100"] = recall.stock

        inputs = {
            "retrieval_model": model.fingerprint(),
            "retrieval_examples": examples.fingerprint("valid-"),
        }
        # What is in the folder, beside the configuration that chose it.
        sections: Sections = {"index": config, "partition": "spreads"}
        return self.run.stage("index", sections, inputs, write)

    def candidate_lists(self) -> Artifact | None:
        """Builds the lists of the generators that look candidates up.

        Returns:
          None where none is configured, or nothing would rank candidates of
          several generators, whose scores do not compare.
        """
        config = self.run.config.serving
        wanted = generator_lists.wanted(self.data)
        if config.generators and not self.has_ranking:
            if "candidate_lists" not in self.run.told:
                say(
                    "serving.generators is left out: without impressions there "
                    "is no ranking model, and their scores do not compare."
                )
                self.run.told.add("candidate_lists")
            return None
        if not wanted:
            return None
        names = ",".join(
            f"{g.name}:{g.candidates}:{g.recent_days}" for g in wanted
        )
        sections: Sections = {
            "generators": names,
            "retrieval_examples": self.run.config.retrieval_examples,
            "ranking_examples": self.run.config.ranking_examples,
        }
        return self.run.stage(
            "candidate_lists",
            sections,
            generator_lists.inputs(self.data),
            functools.partial(generator_lists.write, self.data),
        )

    # Ranking --------------------------------------------------------------

    @property
    def has_ranking(self) -> bool:
        return self.data.schema.has("impressions")

    def ranking_model(self) -> Artifact:
        """Trains ranking."""
        return self._trained("ranking", self.data.ranking_examples())

    # Export ---------------------------------------------------------------

    def parts(self) -> dict[str, Artifact]:
        """Stage -> what is exported, and what it was learnt from."""
        parts = {
            "vocabularies": self.data.vocabularies(),
            "transform": self.data.transform(),
            "retrieval_examples": self.data.retrieval_examples(),
            "retrieval_model": self.retrieval_model(),
            "index": self.index(),
        }
        if self.has_ranking:
            parts["ranking_examples"] = self.data.ranking_examples()
            parts["ranking_model"] = self.ranking_model()
        if (lists := self.candidate_lists()) is not None:
            parts["candidate_lists"] = lists
        return parts

    def export(self) -> Artifact:
        """Writes the SavedModels."""
        parts = self.parts()
        refuse_strangers(parts)
        index, lists = parts["index"], parts.get("candidate_lists")
        inputs = {
            name: parts[name].fingerprint()
            for name in _EXPORTED
            if name in parts
        } | {"videos": self.data.events.fingerprint("videos-")}
        if self.has_ranking and self._has_lagged:
            # The ranking SavedModel carries their newest values.
            examples = self.data.ranking_examples()
            inputs["statistics"] = examples.fingerprint(_STATISTICS)

        def write(writer: ArtifactWriter) -> None:
            from models import recommender, serving

            config = self.run.config.serving
            retrieval = RetrievalModel.load(parts["retrieval_model"].path)
            graph, inputs = self.data.transform_graph, self.raw_inputs
            video_ids = self.data.vocabularies().file("video.txt")
            serving.export_retrieval(
                retrieval,
                graph,
                inputs,
                video_ids,
                writer.file(serving.RETRIEVAL),
                1,
                top_k=config.candidates,
                index=index.path,
            )
            if not self.has_ranking:
                return
            ranking = RankingModel.load(parts["ranking_model"].path)
            lagged = self.lagged_table()
            serving.export_ranking(
                ranking, graph, inputs, lagged, writer.file(serving.RANKING), 1
            )
            recommender.export_recommender(
                retrieval,
                ranking,
                graph,
                inputs,
                generator_lists.catalogue(self.data, lists),
                lagged,
                writer.file(serving.RECOMMENDER),
                1,
                config,
                index=index.path,
            )

        sections = {"serving": self.run.config.serving}
        return self.run.stage("export", sections, inputs, write)

    @property
    def _has_lagged(self) -> bool:
        return self.run.config.ranking_examples.lagged_statistics

    def lagged_table(self) -> Any:
        from models.lagged_table import LaggedTable

        if not self._has_lagged:
            return None
        statistics = _read_table(
            [self.data.ranking_examples().file(_STATISTICS)]
        )
        videos = _read_table(self.data.entity_files("videos"))
        return LaggedTable.build(statistics, videos)

    # Evaluation -----------------------------------------------------------

    def evaluation(self) -> Artifact:
        """Reads the test, once, beside the baselines."""
        inputs = {
            "retrieval_model": self.retrieval_model().fingerprint(),
            "retrieval_holdout": self.data.retrieval_holdout().fingerprint(),
            "watches": self.data.split().fingerprint(
                *(f"{part}/watches-" for part in self.data.learnt_parts)
            ),
            "events": self.data.events.fingerprint("videos-"),
        }
        if self.run.config.evaluation.through_index:
            inputs["index"] = self.index().fingerprint()
        if self.has_ranking:
            inputs |= {
                "ranking_model": self.ranking_model().fingerprint(),
                "ranking_holdout": self.data.ranking_holdout().fingerprint(),
                # For the baselines.
                "ranking_examples": self.data.ranking_examples().fingerprint(
                    "train-", "valid-"
                ),
            }

        def write(writer: ArtifactWriter) -> None:
            writer.metrics |= self._retrieval_metrics()
            if self.has_ranking:
                model = RankingModel.load(self.ranking_model().path)
                writer.metrics |= RankingMeasures(self._trainer).of_all(model)

        config = self.run.config
        sections: dict[str, BaseModel | str | None]
        sections = {"evaluation": config.evaluation}
        if config.evaluation.full_softmax_oracle:
            sections["retrieval"] = config.retrieval
        if config.evaluation.click_model:
            sections["ranking"] = config.ranking
        return self.run.stage("evaluation", sections, inputs, write)

    def _retrieval_metrics(self) -> dict[str, float]:
        config = self.run.config.evaluation
        holdout = self.data.retrieval_holdout()
        measures = RetrievalMeasures(
            self.data, lambda: self._trainer.retrieval_batches(holdout, "test")
        )
        trained = RetrievalModel.load(self.retrieval_model().path)
        metrics = measures.of_baselines() | measures.of_model(trained)
        if config.through_index:
            metrics |= measures.of_index(trained, self.index())
        if config.full_softmax_oracle:
            oracle = self._trainer.train(
                "retrieval",
                self.data.retrieval_examples(),
                "full_softmax",
                refit=self._refit_examples(),
            ).model
            metrics |= measures.of_model(oracle, "baselines.full_softmax")
        return metrics

    # Training -------------------------------------------------------------

    @property
    def raw_inputs(self) -> tuple[RawInput, ...]:
        config = self.run.config
        return raw_inputs(
            self.data.schema, config.retrieval_examples, config.ranking_examples
        )

    def _training_inputs(self, examples: Artifact) -> dict[str, str]:
        return {
            examples.stage: examples.fingerprint("train-", "valid-"),
            "vocabularies": self.data.vocabularies().fingerprint(),
        }

    def _refit_examples(self, last_days: int | None = None) -> Artifact | None:
        """Of training and validation; None where nothing is refit."""
        if not self.run.config.retrieval.refit_epochs:
            return None
        return self.data.refit_examples(last_days)

    def _trained(
        self,
        which: Model,
        examples: Artifact,
        refresh: Refresh = FROM_NOTHING,
    ) -> Artifact:
        section = getattr(self.run.config, which)
        earlier, recent, refit = refresh.earlier, None, None
        inputs = self._training_inputs(examples)
        if earlier is not None:
            # Here, so that workers do not start to say it each.
            check_layers(
                earlier.path,
                self.data.features,
                self.run.config.retrieval,
                self.run.config.retrieval_examples.example_age,
            )
            inputs["earlier_model"] = earlier.fingerprint()
        if refresh.last_days is not None:
            recent = self.data.recent_examples(refresh.last_days)
            inputs["recent_examples"] = recent.fingerprint("train-")
        if which == "retrieval":
            refit = self._refit_examples(refresh.last_days)
        if refit is not None:
            inputs["refit_examples"] = refit.fingerprint("train-")
        name = f"{which}_model"
        sections: Sections = {which: section}
        train = functools.partial(
            self._trainer.train,
            which,
            examples,
            recent=recent,
            earlier=earlier,
            refit=refit,
        )

        def write(writer: ArtifactWriter) -> None:
            result = train()
            result.model.save(writer.path)
            if which == "retrieval":
                vocabularies = self.data.vocabularies().path
                keep_terms(writer.path, result.model, vocabularies)
            writer.counts["best_epoch"] = result.best_epoch
            history = json.dumps(result.history, indent=1)
            with FileSystems.create(writer.file("history.json")) as stream:
                stream.write(history.encode())

        several = self.workers.num_workers > 1 and "TF_CONFIG" not in os.environ
        if self.workers.profile and self.run.find(name, sections, inputs):
            raise self.workers.profile.too_late(name)
        if not current_task().is_chief:
            # The chief alone writes; the others compute with it.
            if self.run.find(name, sections, inputs) is None:
                train()
            sys.exit(0)
        if several and self.run.find(name, sections, inputs) is None:
            self._launch(which, refresh.options)
            return self.run.building().stage(name, sections, inputs, write)
        return self.run.stage(name, sections, inputs, write)

    def _launch(self, which: Model, options: Sequence[str]) -> None:
        """Runs this very training as a cluster of local processes."""
        command = [sys.executable, "-m", "pipeline.cli", "train", which]
        options = ["--workdir", self.run.workdir, *options]
        if self.workers.profile:
            options += ["--profile-steps", str(self.workers.profile)]
        self.run.save_config()
        say(f"Starting {self.workers.num_workers} local workers.")
        code = launch_local_workers(
            self.workers.num_workers, [*command, *options]
        )
        if code:
            sys.exit(code)


def _read_table(files: Sequence[str]) -> pa.Table:
    tables = []
    for path in files:
        with FileSystems.open(path) as stream:
            tables.append(pq.read_table(stream))
    return pa.concat_tables(tables)
