"""One training step: the loss, its gradients and both optimisers' updates.

In: a batch of examples and the number of the step. The step is a pure
function of (weights, optimiser state, batch, step) with static shapes, so it
is compiled by XLA as it stands (`tf.function(step, jit_compile=True)`), which
is what a TPU does.
"""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from models.embeddings import local_component
from models.keras_setup import tf
from models.loss_scale import LossScale, all_finite
from models.norms import squared_gradient_norms
from models.optimizers import DenseAdam, table_optimizer
from schemas.model_config import Precision

Batch = Mapping[str, Any]


class Trainable(Protocol):
    """What a step asks of a model (a `tfrs.Model`)."""

    @property
    def table_variables(self) -> tuple[tf.Variable, ...]:
        """Embedding tables and alike, whose rows are updated sparsely."""

    @property
    def dense_variables(self) -> tuple[tf.Variable, ...]:
        """All other weights."""

    def compute_loss(
        self,
        inputs: Batch,
        *,
        training: bool,
        step: tf.Tensor,
        global_batch_size: int,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns sum over the rows / global batch size, and such metrics."""


class StepSection(Protocol):
    """The fields of a model's section that a step reads."""

    @property
    def table_optimizer(self) -> Literal["rowwise_adagrad", "lazy_adam"]: ...
    @property
    def table_learning_rate(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def precision(self) -> Precision: ...


class TrainingStep:
    """The step of a model, and its optimisers.

    Call it in a replica's context: `strategy.run(step, args=(batch, step))`.

    Args:
      model: built under the same strategy's scope as this.
      config: optimisers, learning rates and the global batch size.
    """

    def __init__(self, model: Trainable, config: StepSection) -> None:
        self._model, self._batch_size = model, config.batch_size
        self.tables = table_optimizer(
            config.table_optimizer, config.table_learning_rate
        )
        self.dense = DenseAdam(config.learning_rate)
        # Before they are tracked: they list their variables once.
        self.tables.build(model.table_variables)
        self.dense.build(model.dense_variables)
        # Of float16 alone: the others have the range of float32.
        self.loss_scale: LossScale | None = None
        if config.precision == "mixed_float16":
            self.loss_scale = LossScale()

    def __call__(
        self, batch: Batch, step: tf.Tensor, *, with_norms: bool = False
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Updates the model by this replica's rows.

        Args:
          batch: tensors [B, ...] by name.
          step: int64 [].
          with_norms: whether to give the gradients' norms.

        Returns:
          The loss and metrics of `compute_loss`, before the update; if asked,
          with the metrics `models.norms.squared_gradient_norms`.
        """
        tables = self._model.table_variables
        dense = self._model.dense_variables
        with tf.GradientTape() as tape:
            loss, metrics = self._model.compute_loss(
                batch,
                training=True,
                step=step,
                global_batch_size=self._batch_size,
            )
            scale = self.loss_scale
            objective = loss if scale is None else scale.scaled(loss)
        # Rows were gathered from this replica's copies: see embeddings.
        copies = [local_component(table) for table in tables]
        row_grads, dense_grads = tape.gradient(objective, (copies, list(dense)))
        if scale is not None:
            row_grads = scale.unscaled(row_grads)
            dense_grads = scale.unscaled(dense_grads)
            self._apply_if_finite(
                scale, _present(row_grads, tables), _present(dense_grads, dense)
            )
        else:
            self.tables.apply_gradients(_present(row_grads, tables))
            self.dense.apply_gradients(
                _present(_after(row_grads, dense_grads), dense)
            )
        if with_norms:
            norms = squared_gradient_norms(tables, row_grads, dense_grads)
            metrics = metrics | norms
        return loss, metrics

    def _apply_if_finite(
        self, scale: LossScale, of_rows: list[Any], of_dense: list[Any]
    ) -> None:
        """Updates everything or, on all replicas, nothing but the scale."""
        pairs = (self.tables, of_rows), (self.dense, of_dense)
        # Sums over the replicas: one that is infinite makes the sum so.
        summed = [(o, list(o.aggregate_gradients(given))) for o, given in pairs]
        finite = all_finite([g for _, given in summed for g, _ in given])
        for optimizer, given in summed:
            optimizer.applies = finite
            optimizer.apply_gradients(given, skip_gradients_aggregation=True)
        scale.update(finite)


def _after(first: Any, gradients: Any) -> list[Any]:
    """Holds gradients back until others are there.

    The update of the rows ends the longest path of a step, and much of it runs
    on one core: what nothing waits for belongs beside it, not before it.
    """
    present = [g for g in first if g is not None]
    with tf.control_dependencies(tf.nest.flatten(present, True)):
        return [None if g is None else tf.identity(g) for g in gradients]


def _present(gradients: Any, variables: Any) -> list[tuple[Any, Any]]:
    """Pairs, without the variables that the loss does not use."""
    pairs = zip(gradients, variables, strict=True)
    return [(g, v) for g, v in pairs if g is not None]
