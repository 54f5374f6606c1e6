"""Towers of fully connected layers (paper, sections 3.2 and 4.1)."""

import zlib
from collections.abc import Sequence
from typing import Literal

from models.keras_setup import keras, tf
from models.precision import dense
from models.random_rows import Number, row_uniform


class Tower(tf.Module):
    """ReLU layers with inverted dropout after each hidden one.

    The paper's towers halve: 1024, 512, 256. Dropout is a pure function of
    (seed, step, global row), so a resumed run, or one on more workers, drops
    the same units.

    Args:
      input_dim: width of the input's last axis.
      hidden_units: widths of the layers; the last is the output. Without
        any, the input is.
      output_activation: of the last layer; the others are rectified.
      dropout: share of units dropped after each layer but the last.
      seed: initial weights and dropout follow from (seed, name).
      name: tells towers of one model apart.

    Raises:
      ValueError: a dropout outside [0, 1).
    """

    def __init__(
        self,
        input_dim: int,
        hidden_units: Sequence[int],
        output_activation: Literal["relu", "linear"] = "relu",
        dropout: float = 0.0,
        seed: int = 0,
        name: str = "tower",
    ) -> None:
        super().__init__(name=name)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(
                f"A tower needs a dropout in [0, 1), received {dropout}."
            )
        self.input_dim, self.dropout = input_dim, dropout
        self._seed = seed ^ zlib.crc32(name.encode())
        self.layers = []
        last = len(hidden_units) - 1
        for i, units in enumerate(hidden_units):
            activation = "relu" if i < last else output_activation
            # He's scale where the layer is rectified, Glorot's where not.
            initializer = (
                keras.initializers.HeUniform
                if activation == "relu"
                else keras.initializers.GlorotUniform
            )
            layer = keras.layers.Dense(
                units,
                activation,
                kernel_initializer=initializer(seed=self._seed + i),
                name=f"{name}_{i}",
            )
            layer.build([None, input_dim])
            self.layers.append(layer)
            input_dim = units

    @property
    def output_dim(self) -> int:
        """Width of the output."""
        return int(self.layers[-1].units) if self.layers else self.input_dim

    def __call__(
        self,
        inputs: tf.Tensor,
        *,
        training: bool = False,
        step: tf.Tensor | int = 0,
        first_row: tf.Tensor | int = 0,
        dtype: tf.DType = tf.float32,
    ) -> tf.Tensor:
        """Applies the layers.

        Args:
          inputs: float32 [B, ..., input_dim].
          training: whether to drop units.
          step: int64 [], the training step.
          first_row: int64 [], index in the global batch of the first of the
            B rows (`example_index[0]`); the others follow it.
          dtype: what the layers compute in.

        Returns:
          float32 [B, ..., output_dim].
        """
        outputs = inputs
        for i, layer in enumerate(self.layers):
            outputs = dense(layer, outputs, dtype)
            if training and i < len(self.layers) - 1:
                key = (self._seed, step, i)
                outputs = dropped(outputs, self.dropout, key, first_row)
        return tf.cast(outputs, tf.float32)


def dropped(
    values: tf.Tensor,
    rate: float,
    key: tuple[Number, Number, Number],
    first_row: Number,
) -> tf.Tensor:
    """Inverted dropout: floats [B, ...] at the rate in [0, 1).

    `key` and `first_row` name what is dropped, as in `row_uniform`.
    """
    if not rate:
        return values
    kept = row_uniform(tf.shape(values), key, first_row) >= rate
    return values * tf.cast(kept, values.dtype) / (1.0 - rate)
