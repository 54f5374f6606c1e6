"""The training step of candidate generation at the paper's size.

Batch 256, bags of 50, dimension 256, 2,000 negatives, tower 1024-512-256, ids
drawn uniformly at random: the worst case for a cache. The step is the
product's own, `models.training_step`.
"""

import time
from collections.abc import Iterator

import numpy as np

from models.keras_setup import keras, tf
from models.retrieval import FullSoftmaxModel, RetrievalModel
from models.training_step import TrainingStep
from schemas.features import Feature, FeatureSet
from schemas.model_config import RetrievalConfig

BATCH, BAG, DIM, NEGATIVES = 256, 50, 256, 2000
HIDDEN = (1024, 512)  # And the query embedding itself: 1024-512-256.
_WARM_UP = 5
Batch = dict[str, tf.Tensor]


class StepBench:
    """The model of `classes` videos and its step.

    Args:
      classes: V.
      optimizer: of the tables; `stock_adam` is tf_keras's own, not ours.
      full_softmax: over all V classes, without negatives.
    """

    def __init__(
        self,
        classes: int,
        optimizer: str = "rowwise_adagrad",
        full_softmax: bool = False,
    ) -> None:
        features = (Feature("watch_history", "bag", "query", "video", BAG),)
        config = RetrievalConfig(
            embedding_dim=DIM,
            recency_bags=(BAG,),
            hidden_units=HIDDEN,
            output_activation="relu",
            dropout=0.0,
            num_negatives=NEGATIVES,
            table_optimizer=(
                "rowwise_adagrad" if optimizer == "stock_adam" else optimizer
            ),
            table_learning_rate=0.05,
            batch_size=BATCH,
        )
        kind = FullSoftmaxModel if full_softmax else RetrievalModel
        self.model = kind(
            FeatureSet(features),
            {"video": classes},
            config,
            0,
            example_age=False,
        )
        self.step = TrainingStep(self.model, config)
        if optimizer == "stock_adam":
            self.step.tables = keras.optimizers.Adam(jit_compile=False)
            self.step.tables.build(self.model.table_variables)
        self._run = tf.function(self.step)
        self._batches = self._draw(np.random.default_rng(classes), classes)
        self._done = 0
        slow = full_softmax or optimizer == "stock_adam"
        for _ in range(1 if slow else _WARM_UP):
            self.seconds()

    def seconds(self) -> float:
        """Time of one more step, by the clock, on ids not seen before."""
        batch = next(self._batches)
        number = tf.constant(self._done, tf.int64)
        self._done += 1
        started = time.perf_counter()
        self._run(batch, number)[0].numpy()
        return time.perf_counter() - started

    def state_bytes(self) -> int:
        """Tables, weights and what the optimisers keep of them."""
        variables = [
            *self.model.table_variables,
            *self.model.dense_variables,
            *self.step.tables.variables,
            *self.step.dense.variables,
        ]
        return sum(v.dtype.size * int(np.prod(v.shape)) for v in variables)

    @staticmethod
    def _draw(rng: np.random.Generator, classes: int) -> Iterator[Batch]:
        while True:
            yield {
                "watch_history": tf.constant(
                    rng.integers(1, classes + 1, size=(BATCH, BAG))
                ),
                "label": tf.constant(rng.integers(1, classes + 1, size=BATCH)),
                "example_weight": tf.ones([BATCH]),
                "example_index": tf.range(BATCH, dtype=tf.int64),
            }
