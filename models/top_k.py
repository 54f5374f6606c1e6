"""What every index of ours can do, and the exact one.

In: candidate embeddings [V, D] and biases [V] of the videos 1..V. Out: scores
and ids of the top k by u.v + b (paper, section 3.1: serving is a nearest
neighbour search). Exact, partitioned (`models/partitioned_top_k.py`) and
ScaNN's (`models/scann_top_k.py`) are called alike.
"""

import abc
import math
from typing import Any

import numpy as np

from models.keras_setup import tf, tfrs


class TopK(tfrs.layers.factorized_top_k.TopK, abc.ABC):
    """TensorFlow Recommenders' interface, with biases and true exclusions.

    Scores fall. Ids are 1..V unless `index` is given others. An excluded video
    is never returned: where fewer than k were found, the place holds id 0 and
    score -inf.
    """

    num_videos = 0  # V, set by `index`.

    @abc.abstractmethod
    def query_with_exclusions(
        self, queries: tf.Tensor, exclusions: tf.Tensor, k: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Leaves videos out of each query's answer.

        Args:
          queries: float32 [B, D].
          exclusions: int64 [B, E] ids; what is no id of ours is ignored.
          k: default that of the constructor.

        Returns:
          scores float32 [B, k], ids int64 [B, k].
        """

    def search(
        self, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns NumPy's ids int64 [B, k] and scores float32 [B, k].

        Raises:
          ValueError: k is not from 1 to V.
        """
        if not 1 <= k <= self.num_videos:
            raise ValueError(
                "`k` must be from 1 to the number of videos, "
                f"{self.num_videos}, got {k}. Set serving.candidates or "
                "index.neighbors."
            )
        scores, ids = self(np.asarray(queries, np.float32), k=k)
        return np.asarray(ids), np.asarray(scores)

    def _check_corpus(self, rows: int) -> None:
        """Raises ValueError if k is above V; notes V."""
        if rows < self._k:
            raise ValueError(
                f"`k` must be at most the number of videos, {rows}, got "
                f"{self._k}. Set serving.candidates."
            )
        self.num_videos = rows


def table(value: Any, dtype: tf.DType) -> tf.Variable:
    """A variable of a corpus; a graph's constants end at 2 GB."""
    return tf.Variable(tf.cast(value, dtype), trainable=False)


def without(
    scores: tf.Tensor, ids: tf.Tensor, exclusions: tf.Tensor, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best of an answer that was found with E to spare.

    Args:
      scores: float32 [B, K], K at least k; -inf is nothing.
      ids: int64 [B, K].
      exclusions: int64 [B, E].
    """
    excluded = tf.reduce_any(
        ids[:, :, tf.newaxis] == exclusions[:, tf.newaxis, :], axis=2
    )
    scores = tf.where(excluded, -math.inf, scores)
    scores, places = tf.math.top_k(scores, k)
    return scores, known(scores, tf.gather(ids, places, batch_dims=1))


def known(scores: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Ids, 0 where the score says that there is nothing."""
    return tf.where(scores > -math.inf, ids, tf.zeros_like(ids))


def with_bias(embeddings: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Appends the bias as one more dimension.

    Args:
      embeddings: float [V, D].
      biases: float [V].

    Returns:
      float32 [V, D + 1].

    Raises:
      ValueError: shapes do not fit or a value is not finite.
    """
    if embeddings.ndim != 2 or biases.shape != embeddings.shape[:1]:
        raise ValueError(
            "Expected embeddings [V, D] and biases [V], got shapes "
            f"{embeddings.shape} and {biases.shape}."
        )
    videos, dim = embeddings.shape
    vectors = np.empty((videos, dim + 1), np.float32)
    vectors[:, :-1], vectors[:, -1] = embeddings, biases
    # A row's sum is finite if its values are, unless it overflows: which is
    # no embedding either. No second array of the corpus is needed.
    bad = ~np.isfinite(vectors.sum(axis=1))
    if bad.any():
        raise ValueError(
            f"Candidate embeddings must be finite; {int(bad.sum())} of "
            f"{videos} are not. The retrieval model diverged."
        )
    return vectors


def with_one(queries: np.ndarray) -> np.ndarray:
    """Appends what the bias is multiplied by: float32 [B, D + 1]."""
    queries = np.asarray(queries, np.float32)
    ones = np.ones((len(queries), 1), np.float32)
    return np.concatenate([queries, ones], axis=1)


class ExactTopK(TopK):
    """Scores all videos; ties go to the smaller row."""

    def index(
        self,
        candidates: tf.Tensor,
        identifiers: tf.Tensor | None = None,
        biases: tf.Tensor | None = None,
    ) -> "ExactTopK":
        """Takes the corpus.

        Args:
          candidates: float32 [V, D].
          identifiers: int64 [V], distinct and above 0; default 1..V.
          biases: float32 [V]; default 0.

        Raises:
          ValueError: V is below k.
        """
        rows = int(candidates.shape[0])
        self._check_corpus(rows)
        if identifiers is None:
            identifiers = tf.range(1, rows + 1, dtype=tf.int64)
        if biases is None:
            biases = tf.zeros([rows])

        self._candidates = table(candidates, tf.float32)
        self._identifiers = table(identifiers, tf.int64)
        self._biases = table(biases, tf.float32)
        # From id to row: the ids in order, and whose row each is.
        order = tf.argsort(self._identifiers)
        self._sorted_ids = table(tf.gather(identifiers, order), tf.int64)
        self._rows = table(order, tf.int32)
        self._reset_tf_function_cache()
        return self

    def call(
        self, queries: tf.Tensor, k: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scores float32 [B, k] and ids int64 [B, k]."""
        scores, rows = tf.math.top_k(self._scores(queries), k or self._k)
        return scores, tf.gather(self._identifiers, rows)

    def query_with_exclusions(
        self, queries: tf.Tensor, exclusions: tf.Tensor, k: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `TopK`.

        The base class subtracts a constant from a longer top k; here the
        excluded rows are -inf before the search, so no score can pass.
        """
        scores = self._scores(queries)
        hits = self._places(exclusions)
        scores = tf.tensor_scatter_nd_update(
            scores, hits, tf.fill([tf.shape(hits)[0]], -math.inf)
        )
        scores, rows = tf.math.top_k(scores, k or self._k)
        return scores, known(scores, tf.gather(self._identifiers, rows))

    def is_exact(self) -> bool:
        return True

    def _places(self, exclusions: tf.Tensor) -> tf.Tensor:
        """(query, row) of the exclusions that are ids of ours, int32 [n, 2]."""
        wanted = tf.reshape(exclusions, [-1])
        place = tf.searchsorted(self._sorted_ids, wanted)
        place = tf.minimum(place, tf.size(self._sorted_ids) - 1)
        found = tf.gather(self._sorted_ids, place) == wanted
        queries, length = tf.unstack(tf.shape(exclusions))
        query = tf.repeat(tf.range(queries), length)
        row = tf.gather(self._rows, place)
        return tf.boolean_mask(tf.stack([query, row], axis=1), found)

    def _scores(self, queries: tf.Tensor) -> tf.Tensor:
        if not self.num_videos:
            raise ValueError("`index` must be called before a query.")
        product = tf.linalg.matmul(queries, self._candidates, transpose_b=True)
        return product + self._biases
