"""What the training loop asks of a model and of its configuration."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from models.keras_setup import tf

Batch = Mapping[str, Any]


class Trainable(Protocol):
    """What the loop asks of a model (a `tfrs.Model`)."""

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


class TrainingSection(Protocol):
    """The fields that the sections `retrieval` and `ranking` share."""

    @property
    def table_optimizer(self) -> Literal["rowwise_adagrad", "lazy_adam"]: ...
    @property
    def table_learning_rate(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def patience(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
