"""Recency bags: the last n watches as one vector, for several n.

The paper averages one bag of 50 (section 3.2). A bag may also be that of an
earlier moment, before the last j watches.
"""

from collections.abc import Sequence

import numpy as np

from models.keras_setup import tf
from schemas.model_config import Pooling


def pooled(
    vectors: tf.Tensor,
    present: tf.Tensor,
    first: int,
    moments: int,
    pooling: Pooling,
) -> tf.Tensor:
    """Pools, for each moment j, the bag of the watches j ... j + first - 1.

    Args:
      vectors: float32 [B, H, D], most recent first, zeros for unknown videos.
      present: float32 [B, H], 1 for a watch, known or not; 0 is padding.
      first: n, the longest bag.
      moments: how many, from the most recent on.
      pooling: an unknown video counts as the zero vector in all of them.

    Returns:
      float32 [B, moments, D]; zeros for an empty bag.
    """
    length = moments + first - 1
    missing = max(0, length - present.shape[1])
    present = tf.pad(present, [[0, 0], [0, missing]])[:, :length, None]
    vectors = tf.pad(vectors, [[0, 0], [0, missing], [0, 0]])[:, :length]
    # Row j is 1 from column j to j + first - 1.
    windows = tf.constant(
        np.tri(moments, length, first - 1) - np.tri(moments, length, -1),
        tf.float32,
    )
    count = tf.matmul(windows, present)
    if pooling == "max":
        vectors = tf.where(present > 0, vectors, vectors.dtype.min)
        highest = tf.nn.max_pool1d(vectors, first, 1, "VALID")
        return tf.where(count > 0, highest, 0.0)
    total = tf.matmul(windows, vectors)
    return total if pooling == "sum" else total / tf.maximum(count, 1.0)


def side_by_side(
    bags: tf.Tensor, lengths: Sequence[int], wanted: Sequence[int]
) -> tf.Tensor:
    """Bags of some lengths, one after the other.

    Args:
      bags: float32 [B, moments, P, D].
      lengths: of the P bags.
      wanted: p of these.

    Returns:
      float32 [B, moments, p D].
    """
    if list(wanted) != list(lengths):
        places = tf.constant([lengths.index(n) for n in wanted], tf.int32)
        bags = tf.gather(bags, places, axis=2)
    width = len(wanted) * bags.shape[3]  # 0 of a tower without bags.
    return tf.reshape(bags, [tf.shape(bags)[0], bags.shape[1], width])
