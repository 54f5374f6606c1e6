"""What a cell works with: its data, and models trained for it alone.

Data stages are shared by the cells of a seed and must be there; checkpoints
and logs of a training lie in a folder of the cell's own, so that cells can be
measured at the same time.
"""

import dataclasses
import functools
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from models import retrieval_evaluation
from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from models.retrieval_evaluation import ExactRanker, ModelScorer
from pipeline.model_training import Model, Trainer, Variant, Workers
from pipeline.run import Run
from pipeline.stages import DataStages
from schemas.artifacts import ArtifactStore


@dataclasses.dataclass(frozen=True)
class Bench:
    """The work bench of one cell.

    Attributes:
      run: its configuration, and the work directory with its data.
      setting: what is measured.
      scratch: a folder of its own.
      quick: whether a rough measurement will do.
      found: its data stages, if it reads any.
    """

    run: Run
    setting: str
    scratch: str
    quick: bool
    found: DataStages | None = None

    @property
    def data(self) -> DataStages:
        """The data stages, found and never built.

        Raises:
          ValueError: the experiment names none.
        """
        if self.found is None:
            raise ValueError("The experiment must name the `stages` it reads.")
        return self.found

    def truth(self, table: str) -> pa.Table:
        """A table of what the simulator knows and no log has."""
        path = self.data.events.file(f"truth/{table}.parquet")
        with FileSystems.open(path) as stream:
            return pq.read_table(stream)

    @functools.cached_property
    def trainer(self) -> Trainer:
        own = dataclasses.replace(self.run, store=ArtifactStore(self.scratch))
        return Trainer(own, self.data, Workers())

    @property
    def seed(self) -> int:
        return self.run.config.seed

    def train_retrieval(self, variant: Variant = "model") -> RetrievalModel:
        """Trains the retrieval model of the configuration."""
        return self._train("retrieval", variant)  # type: ignore[no-any-return]

    def train_ranking(self, variant: Variant = "model") -> RankingModel:
        """Trains the ranking model of the configuration."""
        return self._train("ranking", variant)  # type: ignore[no-any-return]

    def measure_retrieval(
        self, model: RetrievalModel, *, sliced: bool = False
    ) -> dict[str, float]:
        """Metrics on the test cases, of all videos ranked exactly.

        Args:
          model: trained.
          sliced: whether to add hit rates by activity.
        """
        holdout = self.data.retrieval_holdout()
        return retrieval_evaluation.evaluate(
            ExactRanker(ModelScorer(model)),
            self.trainer.retrieval_batches(holdout, "test"),
            self.run.config.evaluation.top_k,
            sliced=sliced,
        )

    def measure_ranking(self, model: RankingModel) -> dict[str, float]:
        """Metrics on the test's impressions."""
        return self.trainer.evaluate_ranking(
            model, self.data.ranking_holdout(), "test", prefix=""
        )

    def _train(self, which: Model, variant: Variant) -> Any:
        examples = {
            "retrieval": self.data.retrieval_examples,
            "ranking": self.data.ranking_examples,
        }[which]()
        return self.trainer.train(which, examples, variant).model
