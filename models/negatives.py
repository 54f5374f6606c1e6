"""What a retrieval model learns against: drawn videos, or the batch's own.

In go queries with their labels, out comes their loss. `sampled`: videos drawn
once for the batch. `list_wise`: drawn for each case. `in_batch`: the labels
of the global batch. `mixed`: those, and videos drawn for the batch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.keras_setup import tf
from models.sampling import Negatives, Sampler, unigram_shares
from models.softmax import Lookup, in_batch_softmax_loss, sampled_softmax_loss
from schemas.model_config import RetrievalConfig

# Settings of `negatives` whose candidates are the batch's labels.
_IN_BATCH = ("in_batch", "mixed")


class Cases(NamedTuple):
    """What one step of a worker learns from.

    queries: float32 [n, D], u.
    labels: int64 [n], in 1..V.
    weights: float32 [n].
    first: int64 [], the first case's place among those of all workers.
    """

    queries: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor
    first: tf.Tensor | int


class NegativesLoss:
    """The corrected softmax loss of the configured negatives.

    Args:
      config: the model's section.
      videos: V.
      seed: of what is drawn.
      label_counts: int [V], how often each video is a label; needed where
        `needs_label_counts` says so.
      parts: dimensions of those that u and v are made of, each learning for
        itself.
    """

    def __init__(
        self,
        config: RetrievalConfig,
        videos: int,
        seed: int,
        label_counts: np.ndarray | None,
        parts: Sequence[int],
    ) -> None:
        self._config, self._parts = config, parts
        if config.negatives != "in_batch":
            self.sampler = Sampler(
                config.sampler, videos, config.num_negatives, seed, label_counts
            )
        if config.negatives in _IN_BATCH and config.logq_correction:
            # A batch's labels are as if drawn by their share.
            shares = unigram_shares(label_counts, videos)
            self._log_label_shares = tf.constant(np.log(shares), tf.float32)

    def __call__(
        self,
        cases: Cases,
        lookup: Lookup,
        step: tf.Tensor | int,
        global_batch_size: int,
    ) -> tf.Tensor:
        """Returns the weighted sum of a worker's losses, float32 [].

        Args:
          cases: this worker's.
          lookup: output embeddings and biases of ids.
          step: int64 [], names what is drawn.
          global_batch_size: cases of all workers.
        """
        if self._config.negatives in _IN_BATCH:
            return self._in_batch(cases, lookup, step, global_batch_size)
        losses = self._sampled(cases, lookup, step)
        return tf.reduce_sum(cases.weights * losses)

    def _sampled(
        self, cases: Cases, lookup: Lookup, step: tf.Tensor | int
    ) -> tf.Tensor:
        labels = cases.labels
        if self._config.negatives == "list_wise":
            rows = tf.shape(labels)[0]
            negatives = self.sampler.draw_rows(step, cases.first, rows)
        else:
            negatives = self.sampler.draw(step)
        expected = self.sampler.log_expected(labels)
        if not self._config.logq_correction:
            zeros = tf.zeros_like(negatives.log_expected)
            negatives = Negatives(negatives.ids, zeros)
            expected = tf.zeros_like(expected)
        return sampled_softmax_loss(
            cases.queries, labels, negatives, lookup, expected, self._parts
        )

    def _in_batch(
        self,
        cases: Cases,
        lookup: Lookup,
        step: tf.Tensor | int,
        global_batch_size: int,
    ) -> tf.Tensor:
        mixed = self._config.negatives == "mixed"

        def log_expected(ids: tf.Tensor) -> tf.Tensor:
            if not self._config.logq_correction:
                return tf.zeros(tf.shape(ids))
            # E = G p(label) + S q(negative): what both sources give.
            expected = tf.gather(self._log_label_shares, ids - 1)
            expected += math.log(global_batch_size)
            if not mixed:
                return expected
            return tf.reduce_logsumexp(
                [expected, self.sampler.log_expected(ids)], axis=0
            )

        return in_batch_softmax_loss(
            cases.queries,
            cases.labels,
            cases.weights,
            lookup,
            log_expected,
            self.sampler.draw(step).ids if mixed else None,
            self._parts,
        )


def needs_label_counts(config: RetrievalConfig) -> bool:
    """Whether training needs to know how often each video is a label."""
    in_batch = config.negatives in _IN_BATCH
    drawn = config.negatives != "in_batch"
    return (drawn and config.sampler == "unigram") or (
        in_batch and config.logq_correction
    )
