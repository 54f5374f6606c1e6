"""Approximate search by stock TensorFlow operations, for SavedModels.

A SavedModel with ScaNN's own operation does not load in stock TF Serving; this
one does. The pieces of a partition (`models/partition.py`) lie one after the
other in a table. A query says of each piece what its best video may score, the
most promising pieces are gathered, their videos scored exactly, and the best k
returned.
"""

import math
from typing import Any, Literal

import numpy as np

from models.keras_setup import tf
from models.partition import PADDING, Partition
from models.top_k import TopK, known, table, without

Storage = Literal["float32", "bfloat16", "int8"]
_LARGEST_INT8 = 127


class PartitionedTopK(TopK):
    """Scores the videos of the most promising pieces.

    All queries cost the same: `searched` pieces of W rows are read, whatever
    is in them. Reading them is most of the cost, so they may be stored in
    fewer bytes, and the best `rescored` scored again exactly, from a float32
    table beside. `int8`: a quarter of the bytes, each dimension in 255 steps
    of its own; 1.25 times the memory. `bfloat16`: half the bytes, 1.5 times
    the memory; faster only where the processor multiplies bfloat16
    (AVX512_BF16, AMX).

    Args:
      k: how many are returned.
      partition: of the rows with their bias as the last dimension.
      axes: float32 [D + 1, D + 1] to which the partition's rows were turned.
      searched: pieces read for a query.
      storage: of the rows that are scored first.
      rescored: at least k; unless the storage is `float32`.

    Raises:
      ValueError: the searched pieces cannot hold k rows.
    """

    def __init__(
        self,
        k: int,
        partition: Partition,
        axes: np.ndarray,
        searched: int,
        storage: Storage = "float32",
        rescored: int = 400,
        **kwargs: Any,
    ) -> None:
        super().__init__(k=k, **kwargs)
        pieces, self._width = partition.members.shape
        self._searched = min(searched, pieces)
        self._room = self._searched * self._width
        if self._room < k:
            raise ValueError(
                f"{self._searched} pieces of {self._width} rows cannot hold "
                f"{k} videos. Set serving.candidates lower or "
                "index.rows_per_piece higher."
            )
        # Keras would copy a dataclass's arrays into its own containers.
        self._members = partition.members
        self._axes = table(axes, tf.float32)
        self._profile = table(partition.profile[:, None], tf.float32)
        # Read as a whole, and that takes half the time across the pieces.
        self._promising = table(partition.promising().T, tf.float32)
        self._storage, self._rescored = storage, max(rescored, k)

    def index(
        self,
        candidates: tf.Tensor,
        identifiers: tf.Tensor | None = None,
        biases: tf.Tensor | None = None,
    ) -> "PartitionedTopK":
        """Takes the corpus that the partition is of.

        Args:
          candidates: float32 [V, D].
          identifiers: int64 [V], distinct and above 0; default 1..V.
          biases: float32 [V]; default 0.

        Raises:
          ValueError: V is below k, or is not that of the partition.
        """
        vectors = np.asarray(candidates, np.float32)
        videos = len(vectors)
        self._check_corpus(videos)
        held = int((self._members != PADDING).sum())
        width = vectors.shape[1] + 1
        if held != videos or width != self._profile.shape[0]:
            raise ValueError(
                f"The partition is of {held} vectors of "
                f"{self._profile.shape[0]} dimensions with the bias, got "
                f"{videos} of {width}. Build the index again."
            )
        ids = np.arange(1, videos + 1) if identifiers is None else identifiers
        ids = np.asarray(ids, np.int64)
        padding = self._members == PADDING
        rows = np.empty((*self._members.shape, width), np.float32)
        rows[..., :-1] = vectors[self._members]
        rows[..., -1] = 0.0
        if biases is not None:
            rows[..., -1] = np.asarray(biases)[self._members]
        rows[padding] = 0.0
        stored = rows
        if self._storage == "int8":
            steps = np.abs(rows).max(axis=(0, 1)) / _LARGEST_INT8
            steps = np.maximum(steps, np.finfo(np.float32).tiny)
            self._steps = table(steps, tf.float32)
            self._padding = table(np.where(padding, -math.inf, 0), tf.float32)
            stored = np.rint(rows / steps)
        # Its score is -inf: the last dimension of a query is 1.
        rows[padding, -1] = -math.inf
        # A piece is [D + 1, W]: a row times such a matrix is the quickest
        # product on a CPU. Read by gathering only: a variable that is also
        # read as a whole is copied at each call.
        stored = np.swapaxes(stored, 1, 2)
        self._pieces = table(stored, tf.as_dtype(self._storage))
        # Id 0 is padding, and no answer.
        self._ids = table(
            np.where(padding, 0, ids[self._members]).ravel(), tf.int64
        )
        if self._storage != "float32":
            self._rows = table(rows.reshape(-1, width), tf.float32)
        self._reset_tf_function_cache()
        return self

    def call(
        self, queries: tf.Tensor, k: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scores float32 [B, k] and ids int64 [B, k]."""
        k = k or self._k
        scores, ids = self._filled(*self._best(queries, k), k)
        return scores, known(scores, ids)

    def query_with_exclusions(
        self, queries: tf.Tensor, exclusions: tf.Tensor, k: int | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """See `TopK`. Finds k + E and leaves the excluded ones out."""
        k = k or self._k
        most = k + tf.shape(exclusions)[1]
        scores, ids = self._filled(*self._best(queries, most), k)
        return without(scores, ids, exclusions, k)

    def is_exact(self) -> bool:
        return self._searched == len(self._members)

    def _filled(
        self, scores: tf.Tensor, ids: tf.Tensor, k: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """At least k places, where the searched pieces have room for fewer."""
        missing = [[0, 0], [0, max(0, k - self._room)]]
        scores = tf.pad(scores, missing, constant_values=-math.inf)
        return scores, tf.pad(ids, missing)

    def _best(
        self, queries: tf.Tensor, most: int | tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and ids [B, min(most, room)] of the searched pieces."""
        if not self.num_videos:
            raise ValueError("`index` must be called before a query.")
        ones = tf.ones([tf.shape(queries)[0], 1])
        queries = tf.concat([tf.cast(queries, tf.float32), ones], axis=1)
        _, pieces = tf.math.top_k(
            self._promise(queries), self._searched, sorted=False
        )
        # One query at a time: a batch's rows would be gigabytes at once. A
        # single one pays for no loop.
        scores = tf.cond(
            tf.equal(tf.shape(queries)[0], 1),
            lambda: self._scores_in_pieces((pieces[0], queries[0]))[None],
            lambda: tf.map_fn(
                self._scores_in_pieces,
                (pieces, queries),
                fn_output_signature=tf.TensorSpec([self._room], tf.float32),
            ),
        )
        first = tf.minimum(most, self._room)
        if self._storage != "float32":
            first = tf.minimum(tf.maximum(most, self._rescored), self._room)
        scores, places = tf.math.top_k(scores, first)
        piece = tf.gather(pieces, places // self._width, batch_dims=1)
        rows = piece * self._width + places % self._width
        if self._storage != "float32":
            scores = tf.linalg.matvec(tf.gather(self._rows, rows), queries)
            scores, places = tf.math.top_k(scores, tf.minimum(most, first))
            rows = tf.gather(rows, places, batch_dims=1)
        return scores, tf.gather(self._ids, rows)

    def _promise(self, queries: tf.Tensor) -> tf.Tensor:
        """As `Partition.promise`, of turned queries."""
        queries = tf.linalg.matmul(queries, self._axes)
        variance = tf.linalg.matmul(tf.square(queries), self._profile)
        with_deviation = tf.concat([queries, tf.sqrt(variance)], axis=1)
        return tf.linalg.matmul(with_deviation, self._promising)

    def _scores_in_pieces(
        self, piece_and_query: tuple[tf.Tensor, tf.Tensor]
    ) -> tf.Tensor:
        """float32 [room] of one query: pieces int32 [L], query [D + 1]."""
        pieces, query = piece_and_query
        rows = tf.gather(self._pieces, pieces)
        if self._storage == "int8":
            rows, query = tf.cast(rows, tf.float32), query * self._steps
        query = tf.cast(query, rows.dtype)[tf.newaxis, tf.newaxis]
        by_piece = tf.repeat(query, self._searched, axis=0)
        scores = tf.reshape(tf.linalg.matmul(by_piece, rows), [self._room])
        scores = tf.cast(scores, tf.float32)
        if self._storage == "int8":
            padding = tf.gather(self._padding, pieces)
            scores += tf.reshape(padding, [self._room])
        return scores
