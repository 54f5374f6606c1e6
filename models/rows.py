"""Rows of embedding tables: sums over bags of them, and of their gradients.

A table has millions of rows of which a step sees some thousands. What costs
time is moving rows through memory, so each distinct row is gathered once, and
no [B, L, D] tensor is made: neither of the rows of a batch of bags nor of
their gradients.

XLA needs shapes that do not depend on values, and has no sparse segment sum:
where it compiles (`jit_compile=True`, a TPU) the same sums are made with
padding. Numbers agree up to the order of additions.
"""

from collections.abc import Sequence
from typing import Any

from models.keras_setup import tf


def in_xla() -> bool:
    """Whether what is being traced will be compiled by XLA."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False


def merge_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Adds the rows that have the same index, in their order.

    Args:
      gradient: values [n, ...], indices [n].

    Returns:
      The same gradient with distinct indices, in order of first occurrence.
      In XLA n rows, by rising index; the places that are left hold zeros and
      an index past the table's end, which a compiled scatter drops.
    """
    if in_xla():
        return _merge_statically(gradient)
    values = gradient.values
    distinct, position = tf.unique(gradient.indices)

    def merged() -> tf.Tensor:
        order = tf.argsort(position, stable=True)
        return tf.sparse.segment_sum(values, order, tf.gather(position, order))

    # Those of `sum_prefixes` are distinct already.
    repeated = tf.size(distinct) < tf.size(position)
    values = tf.cond(repeated, merged, lambda: values)
    return tf.IndexedSlices(values, distinct, gradient.dense_shape)


def _merge_statically(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    order = tf.argsort(gradient.indices, stable=True)
    indices = tf.gather(gradient.indices, order)
    count = indices.shape[0]
    begins = tf.concat([[0], tf.cast(indices[1:] != indices[:-1], tf.int32)], 0)
    segment = tf.cumsum(begins)
    values = tf.math.unsorted_segment_sum(
        tf.gather(gradient.values, order), segment, count
    )
    past_the_end = tf.cast(gradient.dense_shape[0], indices.dtype)
    distinct = tf.fill([count], past_the_end)
    distinct = tf.tensor_scatter_nd_min(distinct, segment[:, None], indices)
    return tf.IndexedSlices(values, distinct, gradient.dense_shape)


def sum_prefixes(
    table: tf.Variable, ids: tf.Tensor, firsts: Sequence[int | None]
) -> tf.Tensor:
    """Adds a table's rows over several prefixes of bags.

    Its gradient for the table has distinct rows.

    Args:
      table: float32 [V + 1, D].
      ids: int64 [B, L]; 0 and -1 add nothing.
      firsts: P prefix lengths; None means L.

    Returns:
      float32 [B, P, D].
    """
    longest = None if None in firsts else max(f for f in firsts if f)
    ids = ids[:, :longest]
    slots = tf.range(tf.shape(ids)[1])
    if in_xla():
        within = [slots < first if first else slots >= 0 for first in firsts]
        weights = tf.cast(tf.stack(within) & (ids > 0)[:, None, :], tf.float32)
        return tf.matmul(weights, tf.gather(table, tf.maximum(ids, 0)))
    # The prefixes' ends, in order, cut a bag into P pieces; prefix k is the
    # sum of the first k pieces.
    ends = sorted(first for first in firsts if first)
    piece = tf.zeros_like(slots)
    for end in ends:
        piece += tf.cast(slots >= end, tf.int32)
    bags, prefixes = tf.shape(ids)[0], len(firsts)
    piece = tf.range(bags)[:, None] * prefixes + piece
    entries = tf.where(tf.reshape(ids > 0, [-1]))[:, 0]
    distinct, position = tf.unique(tf.gather(tf.reshape(ids, [-1]), entries))
    sums = _sum_segments(
        tf.gather(table, distinct),
        position,
        tf.gather(tf.reshape(piece, [-1]), entries),
        bags * prefixes,
    )
    sums = tf.reshape(sums, [bags, prefixes, table.shape[1]])
    lengths = [*ends, *[None] * (prefixes - len(ends))]
    places = [lengths.index(first) for first in firsts]
    return tf.gather(tf.cumsum(sums, axis=1), places, axis=1)


@tf.custom_gradient
def _sum_segments(
    rows: tf.Tensor, position: tf.Tensor, segment: tf.Tensor, count: tf.Tensor
) -> Any:
    """Adds rows[position[i]] to segment[i], which does not fall.

    TensorFlow's own gradient of the sparse segment sum takes twice as long as
    the sum the other way round.
    """
    sums = tf.sparse.segment_sum(rows, position, segment, num_segments=count)

    def gradient(upstream: tf.Tensor) -> tuple[Any, ...]:
        order = tf.argsort(position, stable=True)
        # Every row has its position among them: the last is the row count.
        back = tf.sparse.segment_sum(
            upstream, tf.gather(segment, order), tf.gather(position, order)
        )
        return back, None, None, None

    return sums, gradient
