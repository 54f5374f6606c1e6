"""Finds the videos with the largest u.v + b, exactly or approximately.

In: candidate embeddings [V, D] and biases [V] of the videos 1..V. Out: the
ids and scores of the top k for query embeddings [B, D]. `ExactTopK` is made
of stock operations for SavedModels; `ScannIndex` searches corpora of millions
(paper, section 3.1: serving is a nearest neighbour search).
"""

import dataclasses
import math
import os
from typing import Any

import numpy as np

from models.keras_setup import scann, tf, tfrs
from schemas.config import IndexConfig
from schemas.errors import ArtifactError

# Below, exact search is as fast as any other; above, a partition pays off.
EXACT_BELOW = 20_000
PARTITION_FROM = 100_000
CANDIDATES_FILE = "candidates.npy"
_SCANN_FOLDER = "scann"
# On 120,000 normal vectors of 32 dimensions, the hardest kind, a fifth of the
# leaves and ten times k candidates give recall .945 at 100; a tenth of the
# leaves .840, four times k .882.
_SEARCHED_SHARE = 0.2
_RESCORED_PER_NEIGHBOR = 10
_RESCORED_LEAST = 1000
# Score rows of an exact search held at once.
_CHUNK_BYTES = 1 << 28


class ExactTopK(tfrs.layers.factorized_top_k.TopK):
    """Top k by dot product plus bias, in stock TensorFlow operations.

    Ids are 1..V unless `index` is given others; scores fall, ties go to the
    smaller row. An excluded video is never returned: where fewer than k are
    left, the place holds id 0 and score -inf.
    """

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(k=k, **kwargs)
        self._candidates: tf.Variable | None = None

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
        if rows < self._k:
            raise ValueError(
                f"`k` must be at most the number of videos, {rows}, got "
                f"{self._k}. Set serving.candidates."
            )
        if identifiers is None:
            identifiers = tf.range(1, rows + 1, dtype=tf.int64)
        if biases is None:
            biases = tf.zeros([rows])

        def variable(value: tf.Tensor, dtype: tf.DType) -> tf.Variable:
            # Not a constant: a graph's constants end at 2 GB.
            return tf.Variable(tf.cast(value, dtype), trainable=False)

        self._candidates = variable(candidates, tf.float32)
        self._identifiers = variable(identifiers, tf.int64)
        self._biases = variable(biases, tf.float32)
        # From id to row: the ids in order, and whose row each is.
        order = tf.argsort(self._identifiers)
        self._sorted_ids = variable(tf.gather(identifiers, order), tf.int64)
        self._rows = variable(order, tf.int32)
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
        """Leaves videos out of each query's answer.

        The base class subtracts a constant from a longer top k; here the
        excluded rows are -inf before the search, so no score can pass.

        Args:
          queries: float32 [B, D].
          exclusions: int64 [B, E] ids; what is no id of ours is ignored.
          k: default that of the constructor.

        Returns:
          scores float32 [B, k], ids int64 [B, k].
        """
        scores = self._scores(queries)
        hits = self._places(exclusions)
        scores = tf.tensor_scatter_nd_update(
            scores, hits, tf.fill([tf.shape(hits)[0]], -math.inf)
        )
        scores, rows = tf.math.top_k(scores, k or self._k)
        ids = tf.gather(self._identifiers, rows)
        return scores, tf.where(scores > -math.inf, ids, tf.zeros_like(ids))

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
        if self._candidates is None:
            raise ValueError("`index` must be called before a query.")
        product = tf.linalg.matmul(queries, self._candidates, transpose_b=True)
        return product + self._biases


@dataclasses.dataclass(frozen=True)
class ScannIndex:
    """A ScaNN searcher over embeddings whose last dimension is the bias.

    Attributes:
      searcher: ScaNN's own, over `vectors`.
      vectors: float32 [V, D + 1]; a query gets a last dimension of 1.
    """

    searcher: Any
    vectors: np.ndarray

    @property
    def num_videos(self) -> int:
        """V."""
        return len(self.vectors)

    def search(
        self, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the (approximately) best videos.

        Args:
          queries: float [B, D].
          k: at most V.

        Returns:
          ids int64 [B, k] in 1..V and scores float32 [B, k], falling; id 0
          and -inf where the searched leaves held fewer than k videos.
        """
        _check_k(k, len(self.vectors))
        rows, scores = self.searcher.search_batched(
            _with_one(queries),
            final_num_neighbors=k,
            pre_reorder_num_neighbors=_rescored(k, len(self.vectors)),
        )
        missing = np.isnan(scores)
        ids = np.where(missing, 0, rows.astype(np.int64) + 1)
        return ids, np.where(missing, -np.inf, scores).astype(np.float32)

    def recall(self, queries: np.ndarray, k: int) -> float:
        """Share of the exact top k that the index returns, mean of queries.

        A returned video is of the top k if it scores no less than the exact
        k-th, so that equal scores cost nothing.
        """
        vectors, found = _with_one(queries), 0
        chunk = max(1, _CHUNK_BYTES // (4 * len(self.vectors)))
        for start in range(0, len(vectors), chunk):
            part = slice(start, start + chunk)
            scores = vectors[part] @ self.vectors.T
            kth = np.partition(scores, -k, axis=1)[:, -k]
            ids, _ = self.search(queries[part], k)
            own = np.take_along_axis(scores, np.maximum(ids - 1, 0), axis=1)
            found += int(((own >= kth[:, None]) & (ids > 0)).sum())
        return found / (len(vectors) * k)

    def save(self, folder: str) -> None:
        """Writes the index into an existing local folder."""
        scann_folder = os.path.join(folder, _SCANN_FOLDER)
        os.makedirs(scann_folder)
        # Relative, since the folder is renamed when it is published.
        self.searcher.serialize(scann_folder, relative_path=True)
        np.save(os.path.join(folder, CANDIDATES_FILE), self.vectors)

    @classmethod
    def load(cls, folder: str) -> "ScannIndex":
        """Reads what `save` wrote.

        Raises:
          ArtifactError: the folder holds no index.
        """
        path = os.path.join(folder, CANDIDATES_FILE)
        if not os.path.exists(path):
            raise ArtifactError(
                f"{folder} is no index: it has no {CANDIDATES_FILE}. Run "
                "`watchnext index` again."
            )
        scann_folder = os.path.join(folder, _SCANN_FOLDER)
        searcher = scann.scann_ops_pybind.load_searcher(scann_folder)
        return cls(searcher, np.load(path))


def build_scann(
    embeddings: np.ndarray, biases: np.ndarray, config: IndexConfig
) -> ScannIndex:
    """Builds the index that fits the size of the corpus.

    Below `EXACT_BELOW` videos it is exact; below `PARTITION_FROM` all videos
    are scored by asymmetric hashes and the best ones again exactly; above,
    only those in the best of about sqrt(V) leaves.

    Args:
      embeddings: float [V, D].
      biases: float [V].
      config: `neighbors` is the k it is tuned for.

    Raises:
      ValueError: shapes do not fit or a value is not finite.
    """
    vectors = _with_bias(embeddings, biases)
    videos, neighbors = len(vectors), min(config.neighbors, len(vectors))
    builder = scann.scann_ops_pybind.builder(vectors, neighbors, "dot_product")
    # One thread here and no random centres below: the same bytes each time.
    builder = builder.set_n_training_threads(1)
    if videos < EXACT_BELOW:
        return ScannIndex(builder.score_brute_force().build(), vectors)
    if videos >= PARTITION_FROM:
        leaves = round(math.sqrt(videos))
        builder = builder.tree(
            num_leaves=leaves,
            num_leaves_to_search=round(leaves * _SEARCHED_SHARE),
            training_sample_size=min(videos, 250_000),
            random_init=False,
        )
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    builder = builder.reorder(_rescored(neighbors, videos))
    return ScannIndex(builder.build(), vectors)


def refuse_below_gate(recall: float, config: IndexConfig) -> None:
    """Checks an index's recall before it is published.

    Raises:
      ArtifactError: it is below `index.min_recall`; names both.
    """
    # Written so that NaN is refused too.
    if not recall >= config.min_recall:
        raise ArtifactError(
            f"The index finds {recall:.4f} of the exact top "
            f"{config.neighbors}, the gate is {config.min_recall:.4f}; it is "
            "not published. Lower index.min_recall or index.neighbors, or "
            "train a larger retrieval.embedding_dim."
        )


def _rescored(k: int, videos: int) -> int:
    """How many candidates of the hashed search are scored exactly."""
    return min(videos, max(_RESCORED_PER_NEIGHBOR * k, _RESCORED_LEAST))


def _with_bias(embeddings: np.ndarray, biases: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(embeddings, np.float32)
    biases = np.asarray(biases, np.float32)
    if embeddings.ndim != 2 or biases.shape != embeddings.shape[:1]:
        raise ValueError(
            "Expected embeddings [V, D] and biases [V], got shapes "
            f"{embeddings.shape} and {biases.shape}."
        )
    vectors = np.concatenate([embeddings, biases[:, None]], axis=1)
    if not np.isfinite(vectors).all():
        raise ValueError(
            "Candidate embeddings must be finite; "
            f"{int((~np.isfinite(vectors)).any(axis=1).sum())} of "
            f"{len(vectors)} are not. The retrieval model diverged."
        )
    return np.ascontiguousarray(vectors)


def _with_one(queries: np.ndarray) -> np.ndarray:
    queries = np.asarray(queries, np.float32)
    ones = np.ones((len(queries), 1), np.float32)
    return np.concatenate([queries, ones], axis=1)


def _check_k(k: int, videos: int) -> None:
    if not 1 <= k <= videos:
        raise ValueError(
            f"`k` must be from 1 to the number of videos, {videos}, got {k}. "
            "Set serving.candidates or index.neighbors."
        )
