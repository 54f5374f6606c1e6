"""Losses of a softmax over sampled classes (paper, section 3.1).

Each logit is corrected by how often its class is expected among the sampled
ones (Bengio and Senecal 2008, the paper's [1]; Jean et al. 2015, [10]):
without it, popular videos, which are drawn most, are pushed down for being
popular. A negative that is the row's own label (an accidental hit) has
probability and gradient zero in that row.
"""

import math
from collections.abc import Callable, Sequence

from models.keras_setup import tf, tfrs
from models.sampling import Negatives

# ids [...] -> (output embeddings [..., D], biases [...]).
Lookup = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
Parts = int | Sequence[int]


def sampled_softmax_loss(
    queries: tf.Tensor,
    labels: tf.Tensor,
    negatives: Negatives,
    lookup: Lookup,
    label_log_expected: tf.Tensor,
    parts: Parts = 1,
) -> tf.Tensor:
    """Returns the cross-entropy of each label against its negatives.

    The logit of class j is u.v_j + b_j - ln E_j, for labels and negatives
    alike. Where u and v are of several parts, each learns for itself: their
    cross-entropies are added.

    Args:
      queries: float32 [B, D], u.
      labels: int64 [B], in 1..V.
      negatives: [S], shared by the batch, or [B, K], each row its own: then
        this is the list-wise softmax, one positive first and K negatives.
      lookup: output embeddings and biases of ids.
      label_log_expected: float32 [B], ln E of the labels; zeros, with zeros
        in `negatives.log_expected`, leave the correction out.
      parts: how many equal pieces D has, or the width of each.

    Returns:
      float32 [B].
    """
    own, own_biases = lookup(labels)
    others, other_biases = lookup(negatives.ids)
    own_biases -= label_log_expected
    other_biases -= negatives.log_expected
    # In 32 bits, B S comparisons take half as long.
    accidental = tf.cast(labels, tf.int32)[:, None] == tf.cast(
        negatives.ids, tf.int32
    )
    losses = []
    for u, v, w in zip(
        *(tf.split(x, parts, axis=-1) for x in (queries, own, others)),
        strict=True,
    ):
        if negatives.ids.shape.rank == 1:
            sampled = tf.matmul(u, w, transpose_b=True)
        else:
            sampled = tf.linalg.matvec(w, u)
        # exp(-inf) is exactly 0, and `where` passes no gradient to the other
        # side.
        sampled = tf.where(accidental, -math.inf, sampled + other_biases)
        true = tf.reduce_sum(u * v, axis=1) + own_biases
        logits = tf.concat([true[:, None], sampled], axis=1)
        losses.append(
            tf.nn.sparse_softmax_cross_entropy_with_logits(
                tf.zeros_like(labels), logits
            )
        )
    return tf.add_n(losses)


def in_batch_softmax_loss(
    queries: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor,
    lookup: Lookup,
    log_expected: Callable[[tf.Tensor], tf.Tensor],
    extra: tf.Tensor | None = None,
    parts: Parts = 1,
) -> tf.Tensor:
    """Returns the weighted loss of each label against the batch's labels.

    The labels of all workers are candidates, and the extra ones (mixed
    negatives: Yang et al. 2020). Only ids are gathered: each worker looks
    their embeddings up in its own copy of the table, and gradients add up as
    all gradients do, so that N workers equal one.

    The task's own correction clips probabilities at 1e-6, which flattens the
    tail of a corpus of millions; so its scores come corrected, by a dimension
    in which the query has a one and the candidate b - ln E.

    Args:
      queries: float32 [B, D], this worker's.
      labels: int64 [B], this worker's.
      weights: float32 [B].
      lookup: output embeddings and biases of ids.
      log_expected: ids [n] -> ln of how often each is expected among the
        candidates, float32 [n]; zeros leave the correction out.
      extra: int64 [S], further negatives, the same on every worker.
      parts: as in `sampled_softmax_loss`.

    Returns:
      float32 [], the sum over this worker's rows.
    """
    ids = _own_first(labels)
    if extra is not None:
        ids = tf.concat([ids, extra], axis=0)
    embeddings, biases = lookup(ids)
    biases -= log_expected(ids)
    task = tfrs.tasks.Retrieval(remove_accidental_hits=True)
    ones = tf.ones_like(queries[:, :1])
    return tf.add_n(
        [
            task(
                tf.concat([u, ones], axis=1),
                tf.concat([v, biases[:, None]], axis=1),
                sample_weight=weights,
                candidate_ids=ids,
                compute_metrics=False,
            )
            for u, v in zip(
                *(tf.split(x, parts, axis=1) for x in (queries, embeddings)),
                strict=True,
            )
        ]
    )


def _own_first(labels: tf.Tensor) -> tf.Tensor:
    """All replicas' labels, int64 [G]; row i's own is candidate i."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return labels
    # An argument of the step is on no device yet, as gathering wants it to be.
    gathered = context.all_gather(tf.identity(labels), axis=0)
    own = context.replica_id_in_sync_group * tf.size(labels)
    return tf.roll(gathered, -own, axis=0)
