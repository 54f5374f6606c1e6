"""Which classes serve as negatives, and how often each is expected.

The model is a softmax over V videos, far too many to score at each step
(paper, section 3.1): instead S negatives are drawn for the whole batch, or K
for each example.

Every draw is a pure function of (seed, step), that of an example also of its
place in the global batch; a resumed run, or one on more workers, draws the
same negatives. All shapes are static.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from models.keras_setup import tf
from models.random_rows import Number, row_uniform_float64, uniform_float64

Kind = Literal["log_uniform", "unigram", "uniform"]
# Tells the negatives of examples from other draws of the same step.
_EXAMPLE_SALT = 2**19


class Negatives(NamedTuple):
    """Classes drawn with replacement.

    ids: int64 [S] of a batch or [B, K] of its examples, in 1..V.
    log_expected: float32, ln of the expected number of draws of each.
    """

    ids: tf.Tensor
    log_expected: tf.Tensor


class Sampler:
    """Draws S negatives of 1..V for a step.

    `log_uniform` needs ids by falling frequency: p(id) = ln(1 + 1/id) /
    ln(V + 1), about 1/id, as popularity falls. `unigram` follows measured
    counts: p(id) = (count + 1) / sum of them; the one keeps every class within
    reach. `uniform` needs nothing.

    Args:
      kind: the distribution.
      num_classes: V.
      num_negatives: S.
      seed: of the draws.
      counts: int [V], how often each of 1..V is a label; for `unigram`.

    Raises:
      ValueError: an unknown kind, a size below 1, or counts that do not fit.
    """

    def __init__(
        self,
        kind: Kind,
        num_classes: int,
        num_negatives: int,
        seed: int,
        counts: np.ndarray | None = None,
    ) -> None:
        if kind not in ("log_uniform", "unigram", "uniform"):
            raise ValueError(
                "`sampler` must be 'log_uniform', 'unigram' or 'uniform', "
                f"received {kind!r}."
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
        if kind == "unigram":
            shares = unigram_shares(counts, num_classes)
            kept, alias = alias_table(shares)
            self._log_shares = tf.constant(np.log(shares), tf.float32)
            self._kept = tf.constant(kept)
            self._alias = tf.constant(alias)

    def log_expected(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns ln E(id), E = S p(id), in float32 of the ids' shape."""
        log_draws = math.log(self.num_negatives)
        if self.kind == "uniform":
            log_share = -math.log(self.num_classes)
            return tf.fill(tf.shape(ids), log_draws + log_share)
        if self.kind == "unigram":
            return tf.gather(self._log_shares, ids - 1) + log_draws
        # ln(1 + 1/id) loses its digits in float32 beyond ids of 10^7.
        share = tf.math.log1p(1.0 / tf.cast(ids, tf.float64))
        share /= math.log(self.num_classes + 1)
        return tf.cast(tf.math.log(share) + log_draws, tf.float32)

    def draw(self, step: Number) -> Negatives:
        """Draws the negatives of one step, [S]; step is int64 []."""
        uniform = uniform_float64(self.num_negatives, (self._seed, step))
        return self._negatives(uniform)

    def draw_rows(
        self, step: Number, first_row: Number, rows: int
    ) -> Negatives:
        """Draws S negatives for each example, [rows, S].

        Args:
          step: int64 [].
          first_row: int64 [], index in the global batch of the first example;
            the others follow it.
          rows: how many examples.
        """
        key = (self._seed, step, _EXAMPLE_SALT)
        return self._negatives(
            row_uniform_float64(rows, self.num_negatives, key, first_row)
        )

    def _negatives(self, uniform: tf.Tensor) -> Negatives:
        """Turns u in [0, 1) into classes."""
        if self.kind == "log_uniform":
            # The inverse of P(id <= k) = ln(k + 1) / ln(V + 1).
            log_size = math.log(self.num_classes + 1)
            ids = tf.cast(tf.floor(tf.exp(uniform * log_size)), tf.int64)
        else:
            place = uniform * self.num_classes
            slot = tf.cast(tf.floor(place), tf.int64)
            ids = 1 + slot
            if self.kind == "unigram":
                # Rounding may reach slot V.
                slot = tf.minimum(slot, self.num_classes - 1)
                fraction = place - tf.cast(slot, tf.float64)
                kept = fraction < tf.gather(self._kept, slot)
                ids = tf.where(kept, ids, 1 + tf.gather(self._alias, slot))
        # Rounding may reach V + 1.
        ids = tf.minimum(ids, self.num_classes)
        return Negatives(ids, self.log_expected(ids))


def unigram_shares(counts: np.ndarray | None, num_classes: int) -> np.ndarray:
    """Returns (count + 1) / sum of them, float64 [V].

    Raises:
      ValueError: no counts, not V of them, or a negative one.
    """
    received = "none" if counts is None else f"shape {np.shape(counts)}"
    if counts is None or np.shape(counts) != (num_classes,):
        raise ValueError(
            f"Expected the label counts of {num_classes} classes, received "
            f"{received}. Measure them on the training examples "
            "(`models.label_counts`)."
        )
    smoothed = np.asarray(counts, np.float64) + 1.0
    if not smoothed.min() >= 1.0:
        raise ValueError(
            f"Label counts must be at least 0, received {smoothed.min() - 1}."
        )
    shares: np.ndarray = smoothed / smoothed.sum()
    return shares


def alias_table(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Builds Walker's and Vose's table, by which a draw takes constant time.

    V slots of equal probability each hold one class, and a second one where
    the first is too light to fill it. A light class's rest is filled by the
    first heavy class whose surplus is not used up by the light ones before; a
    heavy class that has given all and a bit more is itself filled by the next.
    As cumulative sums of needs and surpluses, no loop over V is needed.

    Args:
      shares: float [V], above 0, with the sum 1.

    Returns:
      The part of each slot that is its own class's, float64 [V], and the class
      of the rest, int64 [V], both from class 0.
    """
    weights = np.asarray(shares, np.float64) * len(shares)
    heaviest = np.argmax(weights)  # At least 1, but for rounding.
    weights[heaviest] = max(weights[heaviest], 1.0)
    kept, alias = np.ones(len(weights)), np.arange(len(weights))
    light = np.flatnonzero(weights < 1.0)
    heavy = np.flatnonzero(weights >= 1.0)
    need = np.cumsum(1.0 - weights[light])
    surplus = np.cumsum(weights[heavy] - 1.0)
    before = np.concatenate([[0.0], need[:-1]])
    # Rounding may leave a need of 1e-16 V beyond the last surplus.
    last = len(heavy) - 1
    giver = np.searchsorted(surplus, before, side="right")
    kept[light] = weights[light]
    alias[light] = heavy[np.minimum(giver, last)]
    if len(light):
        given = surplus[:-1]
        emptied_by = np.searchsorted(need, given, side="left")
        overdrawn = need[np.minimum(emptied_by, len(need) - 1)] - given
        overdrawn[given <= 0.0] = 0.0  # Had nothing to give.
        kept[heavy[:-1]] = np.clip(1.0 - overdrawn, 0.0, 1.0)
    alias[heavy[:-1]] = heavy[1:]
    return kept, alias
