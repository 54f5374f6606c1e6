"""Rows of embedding tables: sums over bags of them, and of their gradients.

A table has millions of rows of which a step sees some thousands. What costs
time is moving rows through memory, so each distinct row is gathered once, and
no [B, L, D] tensor is made: neither of the rows of a batch of bags nor of
their gradients.

XLA needs shapes that do not depend on values, and has no sparse segment sum:
where it compiles (`jit_compile=True`, a TPU) the same sums are made with
padding. So they are in a graph for other runtimes (`padded_sums`). Numbers
agree up to the order of additions.
"""

import contextlib
import contextvars
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from models.keras_setup import tf

_PADDED = contextvars.ContextVar("padded_sums", default=False)


@contextlib.contextmanager
def padded_sums() -> Iterator[None]:
    """Traces sums over bags inside as a gather and a matrix product.

    Every runtime has these two; few have a sparse segment sum.
    """
    token = _PADDED.set(True)
    try:
        yield
    finally:
        _PADDED.reset(token)


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
    if _are_distinct(gradient.indices):
        return gradient
    values = gradient.values
    distinct, position = tf.unique(gradient.indices)

    def merged() -> tf.Tensor:
        count = tf.size(position)
        return tf.sparse.segment_sum(
            values, *_ordered(tf.range(count), position, count)
        )

    repeated = tf.size(distinct) < tf.size(position)
    values = tf.cond(repeated, merged, lambda: values)
    return tf.IndexedSlices(values, distinct, gradient.dense_shape)


def gathered(table: tf.Variable, indices: tf.Tensor) -> tf.Tensor:
    """Rows as they are before the step's update of the table.

    Where the graph shows that the loss has gathered the very same rows, they
    are not read again: at 1M rows, that takes a tenth of a step.

    Args:
      table: [V + 1, ...], not written to since the loss read it.
      indices: [n], of a gradient.

    Returns:
      [n, ...].
    """
    if not tf.executing_eagerly():
        handle = indices.graph.capture(table.handle)
        for op in _origin(indices).consumers():
            if op.type == "ResourceGather" and op.inputs[0] is handle:
                return op.outputs[0]
    return tf.gather(table, indices)


def _are_distinct(indices: tf.Tensor) -> bool:
    """Whether the graph shows it: those of one `sum_prefixes` are."""
    if tf.executing_eagerly():
        return False
    origin = _origin(indices)
    return origin.op.type == "Unique" and origin.op.outputs[0] is origin


def _origin(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor of which a symbolic one is a copy."""
    while tensor.op.type in ("Reshape", "Identity"):
        tensor = tensor.op.inputs[0]
    return tensor


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
    if in_xla() or _PADDED.get():
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
    # Not `cumsum`, which takes a third of the time of gathering the rows.
    up_to = list(itertools.accumulate(tf.unstack(sums, axis=1), tf.add))
    lengths = [*ends, *[None] * (prefixes - len(ends))]
    return tf.stack([up_to[lengths.index(first)] for first in firsts], axis=1)


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
        # Every row has its position among them: the last is the row count.
        back = tf.sparse.segment_sum(
            upstream, *_ordered(segment, position, count)
        )
        return back, None, None, None

    return sums, gradient


def _ordered(
    source: tf.Tensor, target: tf.Tensor, num_sources: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Orders pairs by target; those of one target stay in their order.

    Sorting 100,000 pairs takes 8 ms, and there is no operation for what they
    allow, counting. But the transpose of a sparse matrix counts: pairs are its
    entries, each with its own target as the value.

    Args:
      source: int32 [n], not falling.
      target: int32 [n].
      num_sources: int32 [], above every source.

    Returns:
      The sources and the targets, int32 [n].
    """
    pairs = tf.cast(tf.stack([source, target], axis=1), tf.int64)
    # Of no pairs the maximum is the least number there is.
    num_targets = 1 + tf.maximum(tf.reduce_max(target), 0)
    matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=pairs,
        values=tf.cast(target, tf.float64),  # Exact, as float32 is not.
        dense_shape=tf.cast(tf.stack([num_sources, num_targets]), tf.int64),
    )
    transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix, type=tf.float64)
    parts = tf.raw_ops.CSRSparseMatrixComponents(
        csr_sparse_matrix=transposed, index=0, type=tf.float64
    )
    return parts.col_inds, tf.cast(parts.values, tf.int32)
