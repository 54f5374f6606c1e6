"""Sampled softmax with its correction (paper, section 3.1).

The model is a softmax over V videos, far too many to score at each step:
instead S negatives are drawn for the whole batch, and each logit is corrected
by how often its class is expected among them (Bengio and Senecal 2008, the
paper's [1]; Jean et al. 2015, [10]). Without the correction, popular videos,
which are drawn most, are pushed down for being popular.

Every draw is a pure function of (seed, step), so a resumed run, or one on
more workers, draws the same negatives; all shapes are static.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from models.keras_setup import tf


class Negatives(NamedTuple):
    """S classes drawn with replacement.

    ids: int64 [S], in 1..V.
    log_expected: float32 [S], ln of E = S p(id), the expected number of draws.
    """

    ids: tf.Tensor
    log_expected: tf.Tensor


class Sampler:
    """Draws S negatives of 1..V for a step.

    `log_uniform` needs ids by falling frequency: p(id) = ln(1 + 1/id) /
    ln(V + 1), about 1/id, as popularity falls. `uniform` needs nothing.

    Args:
      kind: the distribution.
      num_classes: V.
      num_negatives: S.
      seed: of the draws.

    Raises:
      ValueError: an unknown kind, or a size below 1.
    """

    def __init__(
        self,
        kind: Literal["log_uniform", "uniform"],
        num_classes: int,
        num_negatives: int,
        seed: int,
    ) -> None:
        if kind not in ("log_uniform", "uniform"):
            raise ValueError(
                "`sampler` must be 'log_uniform' or 'uniform', received "
                f"{kind!r}."
            )
        if num_classes < 1 or num_negatives < 1:
            raise ValueError(
                "A sampler needs at least one class and one negative, "
                f"received {num_classes} and {num_negatives}."
            )
        self.kind = kind
        self.num_classes = num_classes
        self.num_negatives = num_negatives
        self._seed = seed

    def log_expected(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns ln E(id), E = S p(id), in float32 of the ids' shape."""
        log_draws = math.log(self.num_negatives)
        if self.kind == "uniform":
            log_share = -math.log(self.num_classes)
            return tf.fill(tf.shape(ids), log_draws + log_share)
        # ln(1 + 1/id) loses its digits in float32 beyond ids of 10^7.
        share = tf.math.log1p(1.0 / tf.cast(ids, tf.float64))
        share /= math.log(self.num_classes + 1)
        return tf.cast(tf.math.log(share) + log_draws, tf.float32)

    def draw(self, step: tf.Tensor | int) -> Negatives:
        """Draws the negatives of one step, int64 []."""
        uniform = _uniform_float64(
            self.num_negatives, tf.stack([self._seed, tf.cast(step, tf.int64)])
        )
        if self.kind == "uniform":
            ids = 1 + tf.cast(tf.floor(uniform * self.num_classes), tf.int64)
        else:
            # The inverse of P(id <= k) = ln(k + 1) / ln(V + 1).
            log_size = math.log(self.num_classes + 1)
            ids = tf.cast(tf.floor(tf.exp(uniform * log_size)), tf.int64)
        # Rounding may reach V + 1.
        ids = tf.minimum(ids, self.num_classes)
        return Negatives(ids, self.log_expected(ids))


def sampled_softmax_loss(
    queries: tf.Tensor,
    labels: tf.Tensor,
    negatives: Negatives,
    lookup: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    label_log_expected: tf.Tensor,
) -> tf.Tensor:
    """Returns the cross-entropy of each label against the negatives.

    The logit of class j is u.v_j + b_j - ln E_j, for labels and negatives
    alike. A negative that is the row's own label (an accidental hit) has
    probability and gradient zero in that row.

    Args:
      queries: float32 [B, D], u.
      labels: int64 [B], in 1..V.
      negatives: the draw, shared by the batch.
      lookup: ids [n] -> (output embeddings [n, D], biases [n]); called once.
      label_log_expected: float32 [B], ln E of the labels; zeros, with zeros
        in `negatives.log_expected`, leave the correction out.

    Returns:
      float32 [B].
    """
    batch = tf.shape(labels)[0]
    embeddings, biases = lookup(tf.concat([labels, negatives.ids], axis=0))
    true_logits = tf.reduce_sum(queries * embeddings[:batch], axis=1)
    true_logits += biases[:batch] - label_log_expected
    sampled = tf.matmul(queries, embeddings[batch:], transpose_b=True)
    sampled += biases[batch:] - negatives.log_expected
    accidental = labels[:, None] == negatives.ids
    # exp(-inf) is exactly 0, and `where` passes no gradient to the other side.
    sampled = tf.where(accidental, -math.inf, sampled)
    logits = tf.concat([true_logits[:, None], sampled], axis=1)
    return tf.reduce_logsumexp(logits, axis=1) - true_logits


def _uniform_float64(count: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws float64 [count] in [0, 1) with 53 random bits each.

    Float32 has 24 bits: with them a tenth of a million ids has no u that
    leads to it.
    """
    bits = tf.random.stateless_uniform(
        [2, count], seed=seed, minval=None, maxval=None, dtype=tf.uint32
    )
    high = tf.cast(tf.bitwise.right_shift(bits[0], 5), tf.float64)
    low = tf.cast(tf.bitwise.right_shift(bits[1], 6), tf.float64)
    # 27 high and 26 low bits.
    return (high * 2.0**26 + low) * 2.0**-53
