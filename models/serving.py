"""SavedModels: a raw request in, recommendations out, nothing else needed.

In: a trained model, the transform graph, the vocabulary of the videos. Out:
`<folder>/<version>/`, for TensorFlow Serving or any loader of SavedModels.
Each carries the transform graph that made the training examples, so what is
served is what was learnt; all operations are TensorFlow's own.
"""

import tempfile
from collections.abc import Mapping, Sequence

import tensorflow_transform as tft

from models import serving_requests as requests
from models.index import load_stock
from models.keras_setup import tf
from models.lagged_table import COLUMNS, LaggedLookup, LaggedTable
from models.ranking import COUNT, RankingModel
from models.retrieval import RetrievalModel
from models.saved_models import (
    SERIALIZED,
    SERVING_DEFAULT,
    publish,
    traced,
    traced_examples,
)
from models.top_k import ExactTopK, TopK
from schemas.errors import ArtifactError
from schemas.requests import RawInput

RETRIEVAL, RANKING, RECOMMENDER = "retrieval", "ranking", "recommender"
QUERY_EMBEDDING = "query_embedding"
_SOME_VIDEOS = 3

Tensors = Mapping[str, tf.Tensor]


class RetrievalService(tf.Module):
    """The first stage: the best K videos for a request.

    Videos of the request's watch history are not recommended again, unless
    `keep_watched`. Where fewer than K are left, the id is "" and the score
    -inf.

    Args:
      model: trained.
      transform: folder of the transform graph.
      inputs: the raw request.
      video_ids: text file, line i (from 1) is the video with id i.
      top_k: K; at most the number of videos is returned.
      index: folder of the model's index, whose search in stock operations is
        served; None searches exactly.
      keep_watched: whether to recommend what was just watched.

    Raises:
      ArtifactError: the file or the index has another number of videos than
        the model.
    """

    def __init__(
        self,
        model: RetrievalModel,
        transform: str,
        inputs: Sequence[RawInput],
        video_ids: str,
        top_k: int,
        *,
        index: str | None = None,
        keep_watched: bool = False,
    ) -> None:
        super().__init__(name=RETRIEVAL)
        self.inputs = requests.retrieval_inputs(inputs)
        self._transform = _transform_layer(transform)
        self._query_embedding = model.query_embedding
        self._part_dims = model.query_tower.part_dims
        self.has_sequence_part = model.query_tower.has_sequence_part
        embeddings, biases = model.candidates()
        videos = int(biases.shape[0])
        _check_videos(video_ids, videos)
        self.top_k = min(top_k, videos)
        search: TopK
        if index is None:
            search = ExactTopK(self.top_k).index(embeddings, biases=biases)
        else:
            search = load_stock(index, self.top_k)
            _check_index(index, search, videos)
        self._search = search.query_with_exclusions
        self._keep_watched = keep_watched
        # Bound methods hide their variables: a SavedModel needs them here.
        # The search has its own copy of the table that is read as a whole.
        self._variables = [
            *model.embeddings.table_variables,
            *model.dense_variables,
            *search.variables,
        ]
        lines = tf.lookup.TextFileInitializer(
            video_ids,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
        )
        self._names = tf.lookup.StaticHashTable(lines, "")

    def recommend(self, raw: Tensors) -> dict[str, tf.Tensor]:
        """Returns `video_ids` string [B, K] and `scores` float32 [B, K]."""
        features = self.features(raw)
        ids, scores = self.nearest(features, self.watched(features))
        return {"video_ids": self.names(ids), "scores": scores}

    def nearest(
        self,
        features: Tensors,
        excluded: tf.Tensor,
        *,
        sequence_only: bool = False,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The best videos of the transform graph's features.

        Args:
          features: of `features`.
          excluded: int64 [B, E], ids that are not wanted.
          sequence_only: by the encoder's part of the embedding alone, of a
            model with `sequence` and `place: beside`.

        Returns:
          ids int64 and scores float32, [B, K]; id 0 where none is left.
        """
        queries = self._query_embedding(features)
        if sequence_only:
            *towered, encoded = tf.split(queries, self._part_dims, axis=1)
            # The indexed bias is that of all parts together: as often the
            # encoder's score is taken, and divided out again.
            encoded *= len(self._part_dims)
            silent = [tf.zeros_like(part) for part in towered]
            queries = tf.concat([*silent, encoded], axis=1)
        scores, ids = self._search(queries, excluded)
        return ids, scores / len(self._part_dims) if sequence_only else scores

    def watched(self, features: Tensors) -> tf.Tensor:
        """Ids not to be recommended again, int64 [B, E]."""
        watched = features["watch_history"]
        return watched[:, :0] if self._keep_watched else watched

    def names(self, ids: tf.Tensor) -> tf.Tensor:
        """The ids' strings; "" of id 0."""
        # Line numbers are from 0; id 0 becomes -1, which is no line.
        return self._names.lookup(tf.cast(ids, tf.int64) - 1)

    def embed(self, raw: Tensors) -> dict[str, tf.Tensor]:
        """Returns `query_embedding` float32 [B, D]."""
        embedding = self._query_embedding(self.features(raw))
        return {QUERY_EMBEDDING: embedding}

    def some_videos(self) -> list[str]:
        """Returns ids of the most frequent videos, for a warm-up."""
        lines = tf.range(_SOME_VIDEOS, dtype=tf.int64)
        names = self._names.lookup(lines).numpy()
        return [name.decode() for name in names if name]

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Signature name -> function, traced."""
        named = requests.tensor_specs(self.inputs)
        return {
            SERVING_DEFAULT: traced(self.recommend, named),
            SERIALIZED: traced_examples(self.recommend, self.inputs),
            QUERY_EMBEDDING: traced(self.embed, named),
        }

    def features(self, raw: Tensors) -> Tensors:
        """What the transform graph makes of a request."""
        tensors, pieces = requests.fitted(raw, self.inputs)
        return self._transform(requests.in_pieces(tensors, self.inputs, pieces))


class RankingService(tf.Module):
    """The second stage: how good is each candidate of a request?

    A request may have any number of candidates; "" is no candidate and gets 0
    in every output. Lagged statistics are looked up by the candidates' ids.

    Args:
      model: trained.
      transform: folder of the transform graph.
      inputs: the raw request, as the graph takes it.
      lagged: newest statistics; needed exactly if the inputs have them.
      folder: for files that become assets; must exist until it is saved.

    Raises:
      ValueError: `lagged` is missing, or not wanted.
    """

    def __init__(
        self,
        model: RankingModel,
        transform: str,
        inputs: Sequence[RawInput],
        lagged: LaggedTable | None,
        folder: str,
    ) -> None:
        super().__init__(name=RANKING)
        wanted = any(i.name in COLUMNS for i in inputs)
        if wanted != (lagged is not None):
            raise ValueError(
                "The request "
                + ("has" if wanted else "has no")
                + " lagged statistics, and a table of them is "
                + ("missing. Pass it." if wanted else "given. Leave it out.")
            )
        self.inputs = requests.ranking_inputs(inputs)
        self._of_graph = tuple(
            i for i in inputs if i in self.inputs or i.name in COLUMNS
        )
        self._transform = _transform_layer(transform)
        self._lagged = LaggedLookup(lagged, folder) if lagged else None
        self._predict = model.predict
        self._candidate_features = {
            f.name for f in model.features.select("candidate")
        }
        # Bound methods hide their variables: a SavedModel needs them here.
        self._variables = [*model.table_variables, *model.dense_variables]

    def rank(self, raw: Tensors) -> dict[str, tf.Tensor]:
        """Returns every output of the model, float32 [B, n] each."""
        candidates = raw[requests.CANDIDATES]
        sent = tf.shape(candidates)[1]
        return {
            name: tf.where(candidates == "", 0.0, values[:, :sent])
            for name, values in self._predict(self.features(raw)).items()
        }

    def features(self, raw: Tensors) -> dict[str, tf.Tensor]:
        """What the model predicts from: the transform graph's, and a count."""
        tensors, pieces = requests.fitted(raw, self.inputs)
        candidates = tensors[requests.CANDIDATES]
        if self._lagged is not None:
            tensors |= self._lagged(candidates)
        rows = requests.in_pieces(tensors, self._of_graph, pieces)
        # The graph has a fixed number of candidates; the model has not, and
        # is given each request once, with all of its candidates.
        features = {
            name: self._joined(name, values, pieces)
            for name, values in self._transform(rows).items()
        }
        used = tf.not_equal(candidates, "")
        slots = tf.range(1, tf.shape(used)[1] + 1)
        last = tf.reduce_max(tf.where(used, slots, 0), axis=1)
        features[COUNT] = tf.cast(last, tf.int64)
        return features

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Signature name -> function, traced."""
        named = requests.tensor_specs(self.inputs)
        return {
            SERVING_DEFAULT: traced(self.rank, named),
            SERIALIZED: traced_examples(self.rank, self.inputs),
        }

    def _joined(
        self, name: str, values: tf.Tensor, pieces: tf.Tensor
    ) -> tf.Tensor:
        """[B * P, ...] of one piece a row to [B, ...] of one request a row."""
        if name not in self._candidate_features:
            return values[::pieces]
        per_piece, *inner = values.shape[1:]
        return tf.reshape(values, [-1, per_piece * pieces, *inner])


def export_retrieval(
    model: RetrievalModel,
    transform: str,
    inputs: Sequence[RawInput],
    video_ids: str,
    folder: str,
    version: int,
    *,
    top_k: int,
    index: str | None = None,
    keep_watched: bool = False,
) -> str:
    """Writes `<folder>/<version>/`; see `RetrievalService`.

    Returns:
      Path of the version.

    Raises:
      ArtifactError: the version is there already, or the parts do not fit.
      ValueError: `version` is no number from 1.
    """
    service = RetrievalService(
        model,
        transform,
        inputs,
        video_ids,
        top_k,
        index=index,
        keep_watched=keep_watched,
    )
    return publish(service, service.some_videos(), folder, version)


def export_ranking(
    model: RankingModel,
    transform: str,
    inputs: Sequence[RawInput],
    lagged: LaggedTable | None,
    folder: str,
    version: int,
) -> str:
    """Writes `<folder>/<version>/`; see `RankingService`.

    Returns and raises as `export_retrieval` does.
    """
    with tempfile.TemporaryDirectory() as assets:
        service = RankingService(model, transform, inputs, lagged, assets)
        some = (
            []
            if lagged is None
            else lagged.video_ids[:_SOME_VIDEOS].to_pylist()
        )
        return publish(service, some, folder, version)


def _transform_layer(transform: str) -> tf.Module:
    return tft.TFTransformOutput(transform).transform_features_layer()


def _check_index(folder: str, search: TopK, videos: int) -> None:
    if search.num_videos != videos:
        raise ArtifactError(
            f"{folder} is an index of {search.num_videos} videos, but the "
            f"model has {videos}. Run `watchnext index` again."
        )


def _check_videos(path: str, expected: int) -> None:
    with tf.io.gfile.GFile(path, "rb") as file:
        lines = sum(1 for _ in file)
    if lines != expected:
        raise ArtifactError(
            f"{path} has {lines} videos, the retrieval model {expected}: they "
            "are of different runs. Train the model again."
        )
