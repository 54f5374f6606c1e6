"""Loss scaling: gradients of float16 layers that do not vanish.

Float16 has no number between 0 and 6e-8, and a loss divided by the batch size
has gradients around it. So the loss is multiplied by a power of two before it
is differentiated, and the gradients are divided by it afterwards, both without
rounding in float32 ("Mixed Precision Training", Micikevicius et al. 2018,
section 3.2). Where a gradient becomes infinite nothing is updated and the scale
is halved; after so many steps without that it is doubled. The scale and the
count are variables, saved in checkpoints: a resumed run goes on with the bits.
"""

from collections.abc import Sequence
from typing import Any

from models.keras_setup import keras, tf

_FIRST, _LEAST, _MOST = 2.0**15, 1.0, 2.0**24
# Steps without an infinite gradient before the scale is doubled.
_PATIENCE = 2000


class LossScale(tf.Module):
    """The scale, under the strategy's scope that the model is built in.

    Args:
      first: the scale of the first step, a power of two.
      patience: steps after which it is doubled.
    """

    def __init__(
        self, first: float = _FIRST, patience: int = _PATIENCE
    ) -> None:
        super().__init__(name="loss_scale")
        self._patience = patience

        def variable(value: float, name: str) -> tf.Variable:
            return tf.Variable(
                value,
                trainable=False,
                dtype=tf.float32,
                # All replicas see the same gradients, and decide alike.
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                name=name,
            )

        self.scale = variable(first, "scale")
        self.good_steps = variable(0.0, "good_steps")

    def scaled(self, loss: tf.Tensor) -> tf.Tensor:
        """The loss that gradients are to be taken of."""
        return loss * self.scale

    def unscaled(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients of the loss itself: dense ones, of rows, or None."""
        inverse = 1.0 / self.scale
        return [
            tf.IndexedSlices(g.values * inverse, g.indices, g.dense_shape)
            if isinstance(g, tf.IndexedSlices)
            else None
            if g is None
            else g * inverse
            for g in gradients
        ]

    def update(self, finite: tf.Tensor) -> None:
        """Notes whether a step's gradients, of all replicas, were finite."""
        scale, good = self.scale.read_value(), self.good_steps + 1.0
        raised = good >= self._patience
        after_good = tf.where(raised, tf.minimum(scale * 2.0, _MOST), scale)
        after_bad = tf.maximum(scale / 2.0, _LEAST)
        self.scale.assign(tf.where(finite, after_good, after_bad))
        self.good_steps.assign(tf.where(finite & ~raised, good, 0.0))


def all_finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether no number of any gradient is infinite or NaN, bool []."""
    values = [
        g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients
    ]
    return tf.reduce_all(
        tf.stack([tf.reduce_all(tf.math.is_finite(v)) for v in values])
    )


class Skipping(keras.optimizers.Optimizer):
    """A part of an optimiser: leaves weights and state alone when told to.

    The condition is inside the update of each variable, where replicas wait
    for each other no more.
    """

    # Whether to update, bool []; None: always, without asking.
    applies: tf.Tensor | None = None

    def update_step(self, gradient: Any, variable: tf.Variable) -> None:
        """Calls `change`, or does not."""
        if self.applies is None:
            self.change(gradient, variable)
            return

        def changed() -> tf.Tensor:
            self.change(gradient, variable)
            return tf.constant(True)

        tf.cond(self.applies, changed, lambda: tf.constant(False))

    def change(self, gradient: Any, variable: tf.Variable) -> None:
        """The optimiser's rule for one variable."""
        raise NotImplementedError
