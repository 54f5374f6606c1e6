"""Dropout that treats all candidates of a request alike.

So they are compared on equal terms; and a draw does not depend on how requests
are spread over workers.
"""

from models.keras_setup import tf
from models.random_rows import Number, row_uniform

# Keeps the dropout of embeddings apart from that of layers and experts.
_EMBEDDINGS = 3000


def kept_units(
    index: tf.Tensor,
    units: int,
    key: tuple[Number, Number, Number],
    rate: float,
) -> tf.Tensor:
    """Inverted dropout: 0 with probability `rate`, else 1 / (1 - rate).

    Args:
      index: int64 [B], requests' places in the global batch, one after another.
      units: U.
      key: (seed, step, layer) that name the draw.
      rate: below 1.

    Returns:
      float32 [B, U].
    """
    shape = tf.stack([tf.size(index), units])
    uniform = row_uniform(shape, key, index[0])
    return tf.cast(uniform >= rate, tf.float32) / (1.0 - rate)


def kept_embeddings(
    index: tf.Tensor, features: int, key: tuple[Number, Number], rate: float
) -> tf.Tensor:
    """Likewise, of whole embeddings of so many features.

    Returns:
      float32 [B, features + 1]; the last column, for inputs that are never
      dropped, is 1.
    """
    kept = kept_units(index, features, (*key, _EMBEDDINGS), rate)
    return tf.pad(kept, [[0, 0], [0, 1]], constant_values=1.0)
