"""ScaNN's search over embeddings whose last dimension is the bias.

It is the fastest on a CPU, but its operation loads in no stock TF Serving: it
serves evaluation and batch jobs here, and teaches the partition that the
SavedModels search (`models/partitioned_top_k.py`).
"""

import dataclasses
import math
import os
from typing import Any

import numpy as np

from models.keras_setup import scann, tf
from models.top_k import TopK, known, without
from schemas.config import IndexConfig

# Of a leaf for k-means; more do not move the centroids enough to be found.
_TRAINING_ROWS_PER_LEAF = 128
_PARTITIONER = "serialized_partitioner.pb"
_LEAF_OF_ROW = "datapoint_to_token.npy"


@dataclasses.dataclass(frozen=True)
class ScannSettings:
    """How much of the corpus a query reads.

    Attributes:
      leaves: of the tree that are searched; 0 where there is no tree.
      rescored: rows scored again exactly after the hashed search, for
        `neighbors` results; 0 where all scores are exact.
      neighbors: the k that they are chosen for.
    """

    leaves: int
    rescored: int
    neighbors: int


class ScannTopK(TopK):
    """ScaNN behind the common interface; eager only.

    Args:
      k: how many are returned.
      config: by which `index` builds.
      settings: of the search; default: `careful_settings` of the corpus.
    """

    def __init__(
        self,
        k: int,
        config: IndexConfig | None = None,
        settings: ScannSettings | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(k=k, **kwargs)
        self._config = config or IndexConfig()
        self.settings = settings
        self._searcher: Any = None
        self._identifiers: np.ndarray | None = None

    def index(
        self,
        candidates: tf.Tensor,
        identifiers: tf.Tensor | None = None,
        biases: tf.Tensor | None = None,
    ) -> "ScannTopK":
        """Builds a searcher; see `build_searcher`.

        Args:
          candidates: float32 [V, D].
          identifiers: int64 [V], distinct and above 0; default 1..V.
          biases: float32 [V]; default 0.

        Raises:
          ValueError: V is below k, shapes do not fit or a value is not finite.
        """
        candidates = np.asarray(candidates)
        if biases is None:
            biases = np.zeros(len(candidates), np.float32)
        vectors = with_bias(candidates, np.asarray(biases))
        self.attach(build_searcher(vectors, self._config), len(vectors))
        if identifiers is not None:
            self._identifiers = np.asarray(identifiers, np.int64)
        return self

    def attach(self, searcher: Any, num_videos: int) -> "ScannTopK":
        """Takes a searcher that was built, or loaded, of the videos 1..V."""
        self._check_corpus(num_videos)
        self._searcher = searcher
        if self.settings is None:
            self.settings = careful_settings(num_videos, self._config)
        return self

    def call(
        self, queries: tf.Tensor, k: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scores float32 [B, k] and ids int64 [B, k]."""
        scores, ids = self._best(queries, k or self._k)
        return scores, known(scores, ids)

    def query_with_exclusions(
        self, queries: tf.Tensor, exclusions: tf.Tensor, k: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `TopK`. Finds k + E and leaves the excluded ones out."""
        k = k or self._k
        scores, ids = self._best(queries, k + int(exclusions.shape[1]))
        return without(scores, ids, exclusions, k)

    def is_exact(self) -> bool:
        return self.settings is not None and not self.settings.rescored

    def _best(
        self, queries: tf.Tensor, most: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and ids of min(most, V) rows; -inf where none was found."""
        if self._searcher is None or self.settings is None:
            raise ValueError("`index` must be called before a query.")
        most, settings = min(most, self.num_videos), self.settings
        longer = max(1.0, most / settings.neighbors)
        rows, scores = self._searcher.search_batched(
            with_one(np.asarray(queries)),
            final_num_neighbors=most,
            pre_reorder_num_neighbors=max(
                most, min(self.num_videos, round(settings.rescored * longer))
            ),
            leaves_to_search=settings.leaves or None,
        )
        missing = np.isnan(scores)
        rows = np.where(missing, 0, rows).astype(np.int64)
        ids = rows + 1
        if self._identifiers is not None:
            ids = self._identifiers[rows]
        scores = np.where(missing, -np.inf, scores).astype(np.float32)
        return tf.constant(scores), tf.constant(ids)


def build_searcher(vectors: np.ndarray, config: IndexConfig) -> Any:
    """Builds ScaNN's searcher, the same bytes at each time.

    Below `config.exact_below` videos it is exact; below
    `config.partition_from` all are scored by hashes of 4 bits for 2 dimensions
    and the best ones again exactly; above, only those in the best of about
    sqrt(V) leaves.

    Args:
      vectors: float32 [V, D + 1], contiguous; ScaNN keeps a copy.
      config: sizes and `neighbors`.
    """
    videos = len(vectors)
    neighbors = min(config.neighbors, videos)
    builder = scann.scann_ops_pybind.builder(vectors, neighbors, "dot_product")
    # One thread here and no random centres below: the same bytes each time.
    builder = builder.set_n_training_threads(1)
    if videos < config.exact_below:
        return builder.score_brute_force().build()
    settings = careful_settings(videos, config)
    if settings.leaves:
        leaves = num_leaves(videos)
        builder = builder.tree(
            num_leaves=leaves,
            num_leaves_to_search=settings.leaves,
            training_sample_size=min(videos, leaves * _TRAINING_ROWS_PER_LEAF),
            random_init=False,
        )
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    return builder.reorder(settings.rescored).build()


def num_leaves(videos: int) -> int:
    """Of the tree: about the square root, as ScaNN's authors advise."""
    return round(math.sqrt(videos))


def careful_settings(videos: int, config: IndexConfig) -> ScannSettings:
    """The largest settings that a sweep would try."""
    neighbors = min(config.neighbors, videos)
    if videos < config.exact_below:
        return ScannSettings(0, 0, neighbors)
    rescored = min(videos, max(20 * neighbors, 1000))
    if videos < config.partition_from:
        return ScannSettings(0, rescored, neighbors)
    return ScannSettings(num_leaves(videos) // 2, rescored, neighbors)


def learned_leaves(scann_folder: str) -> np.ndarray | None:
    """int32 [V], the leaf of each row of a serialised searcher.

    None where the searcher has no tree.
    """
    if not os.path.exists(os.path.join(scann_folder, _PARTITIONER)):
        return None
    leaves: np.ndarray = np.load(os.path.join(scann_folder, _LEAF_OF_ROW))
    return leaves


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
