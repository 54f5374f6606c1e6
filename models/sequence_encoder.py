"""Self-attention over a user's last watches: one more candidate generator.

"What to Watch Next" (2019, section 3) retrieves by sequence as well. In go
the vectors of the watch history, most recent first; out comes, for every
moment of that history, a vector of what the user had watched by then. The
attention is causal, so the moments of one example can all be trained: each
knows only what was watched before its own next watch.

The layers are gated pointwise attention (HSTU; Zhai et al. 2024, section 3):
a watch's weight is its own sigmoid-gated match, not a share of one, so that
how often something was watched is not normalised away.
"""

import zlib

import numpy as np

from models.keras_setup import keras, tf
from models.towers import dropped

# Of layer normalisation.
_EPSILON = 1e-6


class SequenceEncoder(tf.Module):
    """Causal self-attention layers, [B, L, D] -> [B, L, D].

    Args:
      length: L, how many watches are seen.
      dim: D, of the watches' vectors; a multiple of `heads`.
      layers: how many.
      heads: attention heads of D / heads dimensions each.
      dropout: share of the inputs and of each layer's output that is dropped.
      seed: initial weights and dropout follow from it.

    Raises:
      ValueError: a dimension that the heads do not divide.
    """

    def __init__(
        self,
        length: int,
        dim: int,
        layers: int,
        heads: int,
        dropout: float,
        seed: int,
    ) -> None:
        super().__init__(name="sequence_encoder")
        if dim % heads:
            raise ValueError(
                "`embedding_dim` must be a multiple of `sequence.heads`, "
                f"received {dim} and {heads}."
            )
        self.length, self.dropout = length, dropout
        self._seed = seed ^ zlib.crc32(b"sequence_encoder")
        # Vectors come at the small scale of embedding tables.
        self._scale = float(np.sqrt(dim))
        self.layers = [
            _Layer(length, dim, heads, self._seed + 2 * i, name=f"layer_{i}")
            for i in range(layers)
        ]
        self.norm = _norm(dim, "norm")

    def __call__(
        self,
        vectors: tf.Tensor,
        present: tf.Tensor,
        *,
        training: bool = False,
        step: tf.Tensor | int = 0,
        first_row: tf.Tensor | int = 0,
    ) -> tf.Tensor:
        """Encodes each moment of the histories.

        Args:
          vectors: float32 [B, L, D], of the watches, most recent first.
          present: float32 [B, L], 0 where there is no known watch.
          training, step, first_row: of dropout, see `towers.Tower`.

        Returns:
          float32 [B, L, D]; moment j has seen the watches j, j + 1, ...
        """

        def drop(x: tf.Tensor, salt: int) -> tf.Tensor:
            if not training:
                return x
            key = (self._seed, step, salt)
            return dropped(x, self.dropout, key, first_row)

        # [B, 1, L, L]: moment j sees watch k if k is not after it.
        older = np.triu(np.ones([self.length] * 2, np.float32))
        visible = older * present[:, None, None, :]
        x = drop(vectors * self._scale, 0)
        for i, layer in enumerate(self.layers):
            x += drop(layer(x, visible), 1 + i)
        return self.norm(x)


class _Layer(tf.Module):
    """One layer's change: gated, of pointwise attention.

    u, v, q, k = silu(norm(x) W + c); y = norm(A v) * u, where A_jk =
    silu(q_j k_k + r_(k - j)) / L over the visible k; the change is y W' + c'.
    r, one number per distance and head, is where the order comes in.
    """

    def __init__(
        self, length: int, dim: int, heads: int, seed: int, name: str
    ) -> None:
        super().__init__(name=name)
        self._length, self._dim, self._heads = length, dim, heads
        self.norm, self.attended_norm = _norm(dim, "in"), _norm(dim, "attended")
        self.inward = _dense(dim, 4 * dim, "silu", seed, "inward")
        self.outward = _dense(dim, dim, None, seed + 1, "outward")
        self.distance_biases = tf.Variable(
            tf.zeros([heads, length]), name="distance_biases"
        )
        slots = np.arange(length)
        self._distances = np.maximum(slots[None, :] - slots[:, None], 0)

    def __call__(self, x: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
        """float32 [B, L, D] and [B, 1, L, L] -> [B, L, D]."""
        gate, values, queries, keys = tf.split(
            self.inward(self.norm(x)), 4, axis=-1
        )
        biases = tf.gather(self.distance_biases, self._distances, axis=1)
        match = tf.matmul(
            self._split(queries), self._split(keys), transpose_b=True
        )
        weights = tf.nn.silu(match + biases) * visible / self._length
        attended = tf.transpose(
            tf.matmul(weights, self._split(values)), [0, 2, 1, 3]
        )
        attended = tf.reshape(attended, [-1, self._length, self._dim])
        return self.outward(self.attended_norm(attended) * gate)

    def _split(self, x: tf.Tensor) -> tf.Tensor:
        """[B, L, D] -> [B, heads, L, D / heads]."""
        shape = [-1, self._length, self._heads, self._dim // self._heads]
        return tf.transpose(tf.reshape(x, shape), [0, 2, 1, 3])


def _norm(dim: int, name: str) -> keras.layers.LayerNormalization:
    layer = keras.layers.LayerNormalization(epsilon=_EPSILON, name=name)
    layer.build([None, None, dim])
    return layer


def _dense(
    inputs: int, units: int, activation: str | None, seed: int, name: str
) -> keras.layers.Dense:
    layer = keras.layers.Dense(
        units,
        activation,
        kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
        name=name,
    )
    layer.build([None, inputs])
    return layer
