"""What the job and its peers are given: a log, vocabularies, a graph.

The peers read the quantile knots out of the transform graph: all three write
the examples of one and the same transform.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from beam_jobs import transform
from beam_jobs.normalization import max_knots
from beam_jobs.watch_rows import PartName
from benchmarks.logs import Log, read_log
from schemas.config import Config
from schemas.examples import ExampleKey, retrieval_keys
from schemas.features import FeatureSet, feature_set
from schemas.vocabularies import read_vocabulary

PARTS: tuple[PartName, ...] = ("train", "valid")
# A region of the user in the vocabulary `region`, and so on.
USER_COLUMNS = ("region", "device", "language", "gender", "logged_in")


@dataclasses.dataclass(frozen=True)
class Given:
    """The inputs of retrieval examples.

    Attributes:
      log: its parts train and valid are read, and its users.
      graph: folder of the vocabularies and of `transform_fn/`.
      config: the configuration.
    """

    log: Log
    graph: str
    config: Config

    @classmethod
    def read(cls, log: str, graph: str) -> "Given":
        return cls(read_log(Path(log)), graph, Config())

    @property
    def features(self) -> FeatureSet:
        return feature_set(
            self.log.schema,
            self.config.retrieval_examples,
            self.config.ranking_examples,
        )

    def keys(self, part: str) -> tuple[ExampleKey, ...]:
        """What an example of a part holds."""
        retrieval = self.config.retrieval_examples
        if part == "train":
            return retrieval_keys(
                self.features, "train", example_age=retrieval.example_age
            )
        return retrieval_keys(self.features, "evaluation", example_age=False)

    def num_events(self) -> int:
        """Rows of all the files that retrieval examples are made from."""
        files = [*self.log.files("users")]
        for table in ("watches", "searches"):
            files += self.log.files(table, *PARTS)
        return num_rows(files)

    def vocabulary(self, space: str) -> dict[str, int]:
        """Term -> id, from 1."""
        terms = read_vocabulary(self.graph, space).terms.to_pylist()
        return {term: i for i, term in enumerate(terms, 1)}

    def age_knots(self) -> tuple[np.ndarray, np.ndarray]:
        """Knots float32 [m] and levels [m, 2] of `user_age` in the graph.

        See `beam_jobs.normalization` for what they mean.
        """
        together = self.features.select("query", "request", kind="continuous")
        width = max_knots(self.config.normalization.num_quantiles)
        wanted = [len(together), width, 3]
        path = Path(self.graph, transform.FOLDER, "transform_fn")
        model = saved_model_pb2.SavedModel()
        model.ParseFromString((path / "saved_model.pb").read_bytes())
        for node in model.meta_graphs[0].graph_def.node:
            if node.op != "Const":
                continue
            value = node.attr["value"].tensor
            if [d.size for d in value.tensor_shape.dim] == wanted:
                names = [f.name for f in together]
                knots = tf.make_ndarray(value)[names.index("user_age")]
                used = np.isfinite(knots[:, 0])
                return knots[used, 0], knots[used, 1:]
        raise ValueError(f"{path} has no knots of shape {wanted}.")


def num_rows(files: Sequence[str]) -> int:
    """Rows of Parquet files."""
    return sum(pq.read_metadata(f).num_rows for f in files)
