"""A training step on all replicas of a strategy, and what it gives back.

Each process runs the same steps on its own batches; a step's numbers are sums
over all replicas, as one vector, so that it is one reduction.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal, Protocol

import numpy as np

from models.keras_setup import keras, tf
from models.loss_scale import LossScale
from models.norms import GRADIENT_NORM
from models.training_step import StepSection, Trainable, TrainingStep
from pipeline.cluster import current_task
from pipeline.learning_rates import rate_factor

# Losses are looked at in groups: reading each would wait for each step. Once
# a group, a step tells the norms of the gradients.
CHECK_EVERY = 50


class TrainingSection(StepSection, Protocol):
    """The fields that the sections `retrieval` and `ranking` share."""

    @property
    def schedule(self) -> Literal["constant", "cosine"]: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def patience(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


class DistributedSteps:
    """Runs the steps of a model; build it under the strategy's scope.

    Args:
      model: what is trained.
      config: its section.
      strategy: how the steps are distributed.
      total_steps: of all epochs; where `schedule: cosine` ends.
    """

    def __init__(
        self,
        model: Trainable,
        config: TrainingSection,
        strategy: tf.distribute.Strategy,
        total_steps: int | None,
    ) -> None:
        self._config, self._strategy = config, strategy
        self._total_steps = total_steps
        self._step = TrainingStep(model, config)
        self._factor: float | None = None
        # Of what a step gives beside the loss, with and without norms.
        self._names: dict[bool, list[str]] = {}
        self._plain = tf.function(self._distributed_step)
        self._with_norms = tf.function(
            functools.partial(self._distributed_step, with_norms=True)
        )

    @property
    def optimizers(
        self,
    ) -> tuple[keras.optimizers.Optimizer, keras.optimizers.Optimizer]:
        """Those of the tables and of the other weights, to be saved."""
        return self._step.tables, self._step.dense

    @property
    def loss_scale(self) -> LossScale | None:
        """That of float16, to be saved; None for other precisions."""
        return self._step.loss_scale

    def batches(self, dataset: tf.data.Dataset) -> Iterator[Any]:
        """One batch per replica of this process, from consecutive ones."""
        tasks = current_task().num_workers
        replicas = self._strategy.num_replicas_in_sync // tasks
        if replicas == 1:
            yield from dataset
            return
        source = iter(dataset)
        distribute = self._strategy.experimental_distribute_values_from_function
        while True:
            parts = [b for _, b in zip(range(replicas), source, strict=False)]
            if len(parts) < replicas:
                return
            ready = iter(parts)
            yield distribute(lambda _, ready=ready: next(ready))

    def run(self, batch: Any, step: int, told_to_stop: bool) -> tf.Tensor:
        """Runs one step on all replicas, and does not wait for it.

        Args:
          batch: of this process, from `batches`.
          step: steps done before.
          told_to_stop: whether this process was.

        Returns:
          float32 [2 + others]: the loss of the global batch, how many
          replicas were told to stop, and what `others` names.
        """
        self._set_rates(step)
        run = self._with_norms if _tells_norms(step) else self._plain
        told = tf.constant(float(told_to_stop))
        return run(batch, tf.constant(step, tf.int64), told)

    def others(self, step: int, values: np.ndarray) -> dict[str, float]:
        """What a step gave after its first two numbers, by name."""
        names = self._names[_tells_norms(step)]
        return {
            # Squares until here, so that those of replicas could be added.
            name: math.sqrt(value) if name.startswith(GRADIENT_NORM) else value
            for name, value in zip(names, values.tolist(), strict=True)
        }

    def _set_rates(self, step: int) -> None:
        factor = rate_factor(self._config, step, self._total_steps)
        if factor == self._factor:
            return
        self._factor, rates = factor, self._config
        self._step.tables.learning_rate = rates.table_learning_rate * factor
        self._step.dense.learning_rate = rates.learning_rate * factor

    def _distributed_step(
        self,
        batch: Any,
        step: tf.Tensor,
        told_to_stop: tf.Tensor,
        with_norms: bool = False,
    ) -> tf.Tensor:
        """Returns [loss, told to stop, *others], added over the replicas."""

        def replica(batch: Any, step: tf.Tensor, told: tf.Tensor) -> tf.Tensor:
            loss, others = self._step(batch, step, with_norms=with_norms)
            self._names[with_norms] = names = sorted(others)
            # One vector, so that it is one reduction.
            values = [loss, told, *(others[name] for name in names)]
            return tf.stack([tf.cast(value, tf.float32) for value in values])

        results = self._strategy.run(replica, args=(batch, step, told_to_stop))
        return self._strategy.reduce("sum", results, axis=None)


def _tells_norms(step: int) -> bool:
    """Whether a step gives the gradients' norms as well.

    Decided by the step alone, so that a resumed run does the same.
    """
    return (step + 1) % CHECK_EVERY == 0
