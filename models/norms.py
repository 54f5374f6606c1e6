"""Norms of gradients and embeddings: whether a training is healthy.

Gradient norms are taken in a graph of the step that runs once in many steps,
embedding norms once an epoch: no other step pays for them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.embeddings import local_component
from models.keras_setup import tf
from models.rows import merge_rows

# What `squared_gradient_norms` gives is named so.
GRADIENT_NORM = "gradient_norm/"
# A dense pass over a table holds so many rows at once.
_CHUNK_ROWS = 2**16


def squared_gradient_norms(
    tables: Sequence[tf.Variable],
    row_gradients: Sequence[tf.IndexedSlices | tf.Tensor | None],
    dense_gradients: Sequence[tf.Tensor | None],
) -> dict[str, tf.Tensor]:
    """Squares, so that those of several replicas may be added up.

    The root of such a sum is the norm of all replicas' gradients side by
    side, not of their sum.

    Args:
      tables: name the row gradients.
      row_gradients: one a table, None where the loss does not use it; rows
        that occur twice are added up first, as the optimiser does.
      dense_gradients: of all other weights, taken together.

    Returns:
      float32 [] by `gradient_norm/<table>`, and `gradient_norm/dense`.
    """
    squares = {
        f"{GRADIENT_NORM}{name_of(table)}": _square(gradient)
        for table, gradient in zip(tables, row_gradients, strict=True)
        if gradient is not None
    }
    dense = [_square(g) for g in dense_gradients if g is not None]
    return squares | {f"{GRADIENT_NORM}dense": tf.add_n([tf.zeros([]), *dense])}


def embedding_norms(tables: Sequence[tf.Variable]) -> dict[str, float]:
    """`embedding_norm/<name>`: mean length of a table's rows without row 0."""
    return {
        f"embedding_norm/{name_of(table)}": _mean_row_norm(
            local_component(table)
        )
        for table in tables
        if table.shape.rank == 2 and table.shape[0] > 1
    }


def name_of(variable: Any) -> str:
    """`video_table:0` -> `video`."""
    return str(variable.name).partition(":")[0].removesuffix("_table")


def _square(gradient: tf.IndexedSlices | tf.Tensor) -> tf.Tensor:
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.reduce_sum(tf.square(gradient))
    return tf.reduce_sum(tf.square(merge_rows(gradient).values))


def _mean_row_norm(table: tf.Variable) -> float:
    rows, total = int(table.shape[0]), 0.0
    for start in range(1, rows, _CHUNK_ROWS):
        chunk = table[start : start + _CHUNK_ROWS].numpy().astype(np.float64)
        total += float(np.linalg.norm(chunk, axis=1).sum())
    return total / (rows - 1)
