"""ScaNN's search over embeddings whose last dimension is the bias.

It is the fastest on a CPU, but its operation loads in no stock TF Serving: it
serves evaluation and batch jobs here, and teaches the partition that the
SavedModels search (`models/partitioned_top_k.py`).
"""

import dataclasses
import importlib
import math
import os
from typing import Any

import numpy as np
from google.protobuf import text_format

from models.keras_setup import scann, tf
from models.principal_axes import principal_axes, turn_in_place
from models.top_k import TopK, known, with_bias, with_one, without
from schemas.config import IndexConfig

# Its module may be imported only after `keras_setup` has.
scann_pb2 = importlib.import_module("scann.proto.scann_pb2")

# Of a leaf for k-means: more move no centroid by what a query would notice.
_TRAINING_ROWS_PER_LEAF = 64
_TRAINING_ITERATIONS = 6
# Blocks of hashed dimensions: half a byte of a row each.
_BLOCKS_PER_DIMENSION = 0.8
HASHED_BYTES_PER_DIMENSION = _BLOCKS_PER_DIMENSION / 2
# Share of the variance that 16 centroids leave, by the dimensions that they
# are for; normal numbers. One is Lloyd and Max's table.
_LEFT_BY_DIMENSIONS = {1: 0.0115, 2: 0.12, 3: 0.23, 4: 0.33, 6: 0.47, 8: 0.57}
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
        self._axes: np.ndarray | None = None
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
        axes = principal_axes(vectors)
        turn_in_place(vectors, axes)
        searcher = build_searcher(vectors, self._config)
        if identifiers is not None:
            self._identifiers = np.asarray(identifiers, np.int64)
        return self.attach(searcher, axes, len(vectors))

    def attach(
        self, searcher: Any, axes: np.ndarray, num_videos: int
    ) -> "ScannTopK":
        """Takes a searcher that was built, or loaded, of the videos 1..V.

        Args:
          searcher: ScaNN's own, of vectors with their bias, turned.
          axes: float32 [D + 1, D + 1], to which they were turned.
          num_videos: V.
        """
        self._check_corpus(num_videos)
        self._searcher, self._axes = searcher, axes
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

    def search_one(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The quickest way to ask once, without TensorFlow.

        Args:
          query: float32 [1, D].

        Returns:
          rows uint32 [k] of 0..V - 1 and scores float32 [k].
        """
        if self._searcher is None or self.settings is None:
            raise ValueError("`index` must be called before a query.")
        turned = with_one(query)[0] @ self._axes
        return self._searcher.search(turned, **self._efforts(self._k))

    def _efforts(self, k: int) -> dict[str, Any]:
        """ScaNN's parameters of a search for k rows."""
        assert self.settings is not None  # Both callers have checked.
        longer = max(1.0, k / self.settings.neighbors)
        rescored = round(self.settings.rescored * longer)
        # -1: as it was built.
        return {
            "final_num_neighbors": k,
            "pre_reorder_num_neighbors": max(k, min(self.num_videos, rescored)),
            "leaves_to_search": self.settings.leaves or -1,
        }

    def _best(
        self, queries: tf.Tensor, most: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and ids of min(most, V) rows; -inf where none was found."""
        if self._searcher is None or self.settings is None:
            raise ValueError("`index` must be called before a query.")
        rows, scores = self._searcher.search_batched(
            with_one(np.asarray(queries)) @ self._axes,
            **self._efforts(min(most, self.num_videos)),
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
    `config.partition_from` all are scored by hashes and the best ones again
    exactly; above, only those in the best of `num_leaves`.

    Args:
      vectors: float32 [V, D + 1], turned so that variances fall; ScaNN keeps
        a copy.
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
            training_iterations=_TRAINING_ITERATIONS,
            random_init=False,
        )
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    builder = builder.reorder(settings.rescored)
    # Not `var`, which makes a second corpus.
    variances = np.einsum("vd,vd->d", vectors, vectors) / videos
    variances -= vectors.mean(axis=0) ** 2
    text = _in_blocks(builder.create_config(), blocks(variances))
    return scann.scann_ops_pybind.create_searcher(vectors, text, 1)


def blocks(variances: np.ndarray) -> list[tuple[int, int]]:
    """Which dimensions share a hash of 4 bits: (blocks, dimensions of each).

    The first ones, where the variance is, have a hash of their own; the tail
    shares, so that all cost as much as blocks of 1 / _BLOCKS_PER_DIMENSION.
    Of all such divisions, the one that leaves the least variance unhashed.

    Args:
      variances: float [D], falling.
    """
    dim = len(variances)
    most = max(1, round(_BLOCKS_PER_DIMENSION * dim))
    options = []
    for alone in range(min(most, dim) + 1):
        for size, left in _LEFT_BY_DIMENSIONS.items():
            shared = -(-(dim - alone) // size)
            if alone + shared <= most:
                error = _LEFT_BY_DIMENSIONS[1] * variances[:alone].sum()
                error += left * variances[alone:].sum()
                options.append((float(error), alone, size))
    if not options:  # Fewer blocks than even the largest ones would need.
        return [(1, dim)]
    _, alone, size = min(options)
    full, rest = divmod(dim - alone, size)
    division = [(alone, 1), (full, size), (1 if rest else 0, rest)]
    return [block for block in division if block[0]]


def _in_blocks(config: str, division: list[tuple[int, int]]) -> str:
    """ScaNN's configuration, which its builder writes for equal blocks."""
    parsed = text_format.Parse(config, scann_pb2.ScannConfig())
    projection = parsed.hash.asymmetric_hash.projection
    dim = projection.input_dim
    projection.Clear()
    projection.input_dim = dim
    projection.projection_type = projection.VARIABLE_CHUNK
    for number, size in division:
        projection.variable_blocks.add(
            num_blocks=number, num_dims_per_block=size
        )
    return text_format.MessageToString(parsed)


def num_leaves(videos: int) -> int:
    """Of the tree.

    More would leave fewer rows to read, but ScaNN holds a copy of its codebook
    for each leaf while it serialises: 0.27 MB at 64 dimensions, 1.1 GB for
    4 sqrt(V) leaves of a million vectors, which are 0.26 GB themselves.
    """
    return round(math.sqrt(videos))


def careful_settings(videos: int, config: IndexConfig) -> ScannSettings:
    """The largest settings that a sweep would try."""
    neighbors = min(config.neighbors, videos)
    if videos < config.exact_below:
        return ScannSettings(0, 0, neighbors)
    rescored = min(videos, max(50 * neighbors, 1000))
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
