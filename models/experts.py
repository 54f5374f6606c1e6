"""Multi-gate mixture of experts (Zhao et al. 2019, section 4.2).

In: x, the output of the ranking model's shared layers. Out: a logit per task.

    x [N, U] --+-- expert 1, ReLU layers --> [N, D] --+
               +-- ...                                +--> sum --> head of task
               +-- expert E ----------------> [N, D] --+    ^
               +-- gate of each task, softmax(W x) --> [N, E]

Experts and gates read the shared layers' output, as in the paper, not their
input, which is wider by far: what belongs to a request goes through the first
shared layer once a request, and no expert sees it again.

A gate may come to use one expert alone, or none of what an expert says may
reach a task ("polarised"). Gate dropout makes that rarer: see `kept`.
"""

from collections.abc import Callable, Sequence

from models.keras_setup import keras, tf
from models.precision import dense
from models.random_rows import Number, row_uniform
from models.towers import Tower
from schemas.model_config import ExpertsConfig

# Keeps this dropout apart from those of layers and positions.
_SALT = 2000
# A gate's logit of an expert that is out of use: e^-1e9 is 0.
_OUT = -1e9
# Of the variance, in normalisation.
_EPSILON = 1e-6


class Experts(tf.Module):
    """Experts shared by all tasks, and a gate for each task.

    Args:
      input_dim: U.
      tasks: T, how many gates.
      config: number E, layers and dropout.
      seed: of initial weights and gate dropout.
    """

    def __init__(
        self, input_dim: int, tasks: int, config: ExpertsConfig, seed: int
    ) -> None:
        super().__init__(name="experts")
        self.config, self._tasks, self._seed = config, tasks, seed
        self.towers = [
            Tower(
                input_dim, config.units, "relu", seed=seed, name=f"expert_{e}"
            )
            for e in range(config.number)
        ]
        # Linear, as in the paper: no bias.
        self.gate = keras.layers.Dense(
            tasks * config.number,
            use_bias=False,
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            name="gates",
        )
        self.gate.build([None, input_dim])

    @property
    def output_dim(self) -> int:
        """D."""
        return self.towers[0].output_dim

    def outputs(
        self,
        x: tf.Tensor,
        drop: Callable[[tf.Tensor, int], tf.Tensor],
        dtype: tf.DType = tf.float32,
    ) -> list[tf.Tensor]:
        """Returns each expert's last layer, E of float32 [N, D].

        Args:
          x: float32 [N, U].
          drop: applied after each layer, to its output and its number among
            all layers of all experts.
          dtype: what the layers compute in.
        """
        found = []
        for e, tower in enumerate(self.towers):
            hidden = x
            for i, layer in enumerate(tower.layers):
                hidden = dense(layer, hidden, dtype)
                hidden = drop(hidden, e * len(tower.layers) + i)
            found.append(tf.cast(hidden, tf.float32))
        return found

    def weights(self, x: tf.Tensor, kept: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the gates, float32 [N, T, E], that sum up to 1 over E.

        Args:
          x: float32 [N, U].
          kept: bool [N, T, E], the experts in use; all without it.
        """
        logits = tf.reshape(self.gate(x), [-1, self._tasks, len(self.towers)])
        if kept is not None:
            # The softmax over those in use is the softmax over all, put to 0
            # and renormalised, but never 0 / 0, however polarised.
            logits = tf.where(kept, logits, _OUT)
        return tf.nn.softmax(logits)

    def kept(self, rows: Number, step: Number, first_row: Number) -> tf.Tensor:
        """Draws the experts in use: gate dropout (2019, section 5).

        One draw for a request, as the tower's dropout: its candidates are
        compared on equal terms. An expert is out with probability
        r - r^E / E, r being `gate_dropout`: should all be out, the one drawn
        highest stays.

        Args:
          rows: B, requests.
          step: int64 [].
          first_row: int64 [], index in the global batch of the first request.

        Returns:
          bool [B, T, E], a pure function of seed, step and global row; at
          least one of each E is true.
        """
        shape = tf.stack([rows, self._tasks, len(self.towers)])
        uniform = row_uniform(shape, (self._seed, step, _SALT), first_row)
        highest = tf.reduce_max(uniform, axis=-1, keepdims=True)
        return uniform >= tf.minimum(self.config.gate_dropout, highest)

    def logits(
        self,
        outputs: Sequence[tf.Tensor],
        weights: tf.Tensor,
        head: keras.layers.Dense,
    ) -> tf.Tensor:
        """Mixes by task, and applies each task's head: float32 [N, T].

        A head is linear, so that the head of a mixture is the mixture of the
        heads: no [N, T, D] is made.

        Args:
          outputs: E of float32 [N, D].
          weights: float32 [N, T, E].
          head: its column t is the head of task t.
        """
        if self.config.normalize:
            outputs = [normalized(output) for output in outputs]
        by_expert = [tf.matmul(output, head.kernel) for output in outputs]
        mixed = tf.reduce_sum(tf.stack(by_expert, axis=2) * weights, axis=2)
        return mixed + head.bias


def normalized(values: tf.Tensor) -> tf.Tensor:
    """Brings each row of float32 [N, D] to mean 0 and variance 1.

    Without weights of its own: the heads, linear, are next. An expert with
    all units at 0 stays 0.
    """
    mean = tf.reduce_mean(values, axis=1, keepdims=True)
    centred = values - mean
    variance = tf.reduce_mean(centred**2, axis=1, keepdims=True)
    return centred * tf.math.rsqrt(variance + _EPSILON)
