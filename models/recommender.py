"""The whole funnel in one SavedModel: candidates of all generators, ranked.

In: a raw request. Out: the best videos by the ranking model's score, each with
the generator that found it. See `models/serving.py` for its two stages.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from models import serving_requests as requests
from models.candidate_lists import CandidateLists
from models.generators import (
    BY_INDEX,
    TOWER,
    ListLookup,
    Offer,
    joined,
    spread_over_channels,
)
from models.keras_setup import tf
from models.lagged_table import LaggedTable
from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from models.saved_models import (
    SERIALIZED,
    SERVING_DEFAULT,
    publish,
    traced,
    traced_examples,
)
from models.serving import (
    RECOMMENDER,
    RankingService,
    RetrievalService,
    Tensors,
)
from schemas.config import GeneratorConfig, GeneratorName, ServingConfig
from schemas.errors import InputError
from schemas.requests import RawInput

EVERY_CANDIDATE = "every_candidate"
_QUERY_VIDEO, _SOURCE = "query_video_id", "candidate_source"
_REGION, _HISTORY = "user_region", "watch_history"


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What the funnel knows of videos, beside the models.

    Attributes:
      video_ids: text file, line i (from 1) is the video with id i.
      lists: of the generators that look candidates up, by name.
      channels: int32 [V + 1], a number from 1 per channel, 0 for none; row 0
        is of no video. Needed for `max_per_channel`.
    """

    video_ids: str
    lists: Mapping[GeneratorName, CandidateLists] = dataclasses.field(
        default_factory=dict
    )
    channels: np.ndarray | None = None


class RecommenderService(tf.Module):
    """Both stages in one call: the top K of the retrieved candidates.

    Args:
      retrieval: the first stage.
      ranking: the second stage; what it takes per candidate, beside the video
        and the generator that found it, is absent.
      catalogue: of the same videos.
      config: `top_k`, at most as many as are retrieved, and the generators.

    Raises:
      InputError: the model has no part for the generator `sequence`.
    """

    def __init__(
        self,
        retrieval: RetrievalService,
        ranking: RankingService,
        catalogue: Catalogue,
        config: ServingConfig,
    ) -> None:
        super().__init__(name=RECOMMENDER)
        self._retrieval, self._ranking = retrieval, ranking
        self._per_candidate = [
            i for i in ranking.inputs if i.axis == "candidate"
        ]
        self.inputs = tuple(
            i for i in ranking.inputs if i not in self._per_candidate
        )
        self._config = config
        self._top_k = min(config.top_k, retrieval.top_k)
        names = [generator.name for generator in config.generators]
        if "sequence" in names and not retrieval.has_sequence_part:
            raise InputError(
                "The generator `sequence` is the part of the query embedding "
                "that a sequence encoder made for itself, and the model has "
                "none. Set `retrieval.sequence` with `place: beside`, or leave "
                "it out of `serving.generators`."
            )
        # Of each generator in turn; -1, no candidate, is the last.
        self._source_names = tf.constant([*names, TOWER, ""])
        self._logged_as = tf.constant(
            [*(g.logged_as or "" for g in config.generators), "", ""]
        )
        self._lookups: dict[GeneratorName, ListLookup] = {
            g.name: ListLookup(catalogue.lists[g.name], g.name, g.candidates)
            for g in config.generators
            if g.name not in BY_INDEX
        }
        if config.max_per_channel is not None:
            self._channels = tf.Variable(catalogue.channels, trainable=False)
        lines = tf.lookup.TextFileInitializer(
            catalogue.video_ids,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        self._ids = tf.lookup.StaticHashTable(lines, -1)

    def recommend(self, raw: Tensors) -> dict[str, tf.Tensor]:
        """Returns the best K of `every_candidate`."""
        ranked = self.every_candidate(raw)
        return {n: values[:, : self._top_k] for n, values in ranked.items()}

    def every_candidate(self, raw: Tensors) -> dict[str, tf.Tensor]:
        """Returns all candidates by falling score of the ranking model.

        Returns:
          [B, C] each: `video_ids` string, "" where no video is left;
          `candidate_sources` string, the generator; `retrieval_scores`
          float32, of that generator and of its own scale; and every output of
          the ranking model (`score`, `expected_watch_time_s`, the tasks)
          float32.
        """
        ids, scores, which = self._candidates(raw)
        names = self._retrieval.names(ids)
        ranked = self._ranking.rank(self._to_rank(raw, names, which))
        # A blank must stay behind every video, whatever that one's score.
        order = tf.argsort(
            tf.where(ids > 0, ranked["score"], -1.0),
            direction="DESCENDING",
            stable=True,
        )
        most = self._config.max_per_channel
        if most is not None:
            channels = tf.where(ids > 0, tf.gather(self._channels, ids), -1)
            order = spread_over_channels(order, channels, most)
        outputs = {
            "video_ids": names,
            "candidate_sources": tf.gather(self._source_names, which),
            "retrieval_scores": scores,
            **ranked,
        }
        return {
            name: tf.gather(values, order, batch_dims=1)
            for name, values in outputs.items()
        }

    def signatures(self) -> dict[str, tf.types.experimental.ConcreteFunction]:
        """Signature name -> function, traced."""
        named = requests.tensor_specs(self.inputs)
        return {
            SERVING_DEFAULT: traced(self.recommend, named),
            SERIALIZED: traced_examples(self.recommend, self.inputs),
            EVERY_CANDIDATE: traced(self.every_candidate, named),
        }

    def _candidates(
        self, raw: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Ids int32, scores and number of the generator, [B, C] each."""
        features = self._retrieval.features(
            {i.name: raw[i.name] for i in self._retrieval.inputs}
        )
        watching = self._watching(raw, features)
        # Nobody is shown the very video that is being watched.
        excluded = tf.concat(
            [self._retrieval.watched(features), watching[:, None]], axis=1
        )
        last = tf.maximum(features[_HISTORY][:, 0], 0)
        keys = {
            "video": tf.where(watching < 0, last, watching),
            "watching": watching,
            # Without regions everybody's list, which is 0.
            "region": features.get(_REGION, tf.zeros_like(last)),
        }
        offers = [
            self._offer(generator, features, keys, excluded)
            for generator in self._config.generators
        ]
        ids, scores = self._retrieval.nearest(features, excluded)
        offers.append((tf.cast(ids, tf.int32), scores))
        ids, scores, which = joined(offers, self._retrieval.top_k)
        return ids, scores, tf.where(which < 0, len(offers), which)

    def _offer(
        self,
        generator: GeneratorConfig,
        features: Tensors,
        keys: Tensors,
        excluded: tf.Tensor,
    ) -> Offer:
        if generator.name in BY_INDEX:
            by_context = generator.name == "context"
            watching = keys["watching"][:, None]
            if by_context:
                features = _as_if_watched(features, watching)
            ids, scores = self._retrieval.nearest(
                features, excluded, sequence_only=not by_context
            )
            if by_context:
                ids = tf.where(watching < 0, tf.zeros_like(ids), ids)
            number = generator.candidates
            return tf.cast(ids[:, :number], tf.int32), scores[:, :number]
        lookup = self._lookups[generator.name]
        key = keys["video" if lookup.by_video else "region"]
        return lookup(key, excluded)

    def _watching(self, raw: Tensors, features: Tensors) -> tf.Tensor:
        """Id of the video being watched, int64 [B]; 0 unknown, -1 none."""
        none = -tf.ones_like(features[_HISTORY][:, 0])
        if _QUERY_VIDEO not in raw:
            return none
        watching = raw[_QUERY_VIDEO]
        # Line numbers are from 0.
        ids = self._ids.lookup(watching) + 1
        return tf.where(tf.equal(watching, ""), none, ids)

    def _to_rank(
        self, raw: Tensors, names: tf.Tensor, which: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The request of the second stage."""
        users = tf.shape(names)[0]
        request = dict(raw)
        for i in self._per_candidate:
            empty = [users] + [0] * len(i.shape)
            request[i.name] = tf.zeros(empty, i.dtype)
        if _SOURCE in request:
            request[_SOURCE] = tf.gather(self._logged_as, which)
        return request | {requests.CANDIDATES: names}


def _as_if_watched(features: Tensors, watching: tf.Tensor) -> Tensors:
    """Puts the video being watched, int64 [B, 1], before the history."""
    history = features[_HISTORY]
    return {
        **features,
        _HISTORY: tf.concat([watching, history[:, :-1]], axis=1),
    }


def export_recommender(
    retrieval: RetrievalModel,
    ranking: RankingModel,
    transform: str,
    inputs: Sequence[RawInput],
    catalogue: Catalogue,
    lagged: LaggedTable | None,
    folder: str,
    version: int,
    config: ServingConfig,
    *,
    index: str | None = None,
    keep_watched: bool = False,
) -> str:
    """Writes `<folder>/<version>/`; see `RecommenderService`.

    Args are those of the services. Returns and raises as
    `serving.export_retrieval` does.
    """
    first = RetrievalService(
        retrieval,
        transform,
        inputs,
        catalogue.video_ids,
        config.candidates,
        index=index,
        keep_watched=keep_watched,
    )
    with tempfile.TemporaryDirectory() as assets:
        second = RankingService(ranking, transform, inputs, lagged, assets)
        service = RecommenderService(first, second, catalogue, config)
        return publish(service, first.some_videos(), folder, version)
