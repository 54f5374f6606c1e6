"""What is known of a user -> the query embedding u (paper, section 3.2).

In go the transform graph's query features, out comes u [B, D]. The tower's
input is, side by side: pooled bags over the last n watches for each n of
`recency_bags` (all of one table), optionally a self-attention encoding of the
last watches, the mean of the search tokens and of other lists, categorical
embeddings, continuous values (x~, x~^2, sqrt(x~), is missing) and, if on, the
example age. Depth 0, no hidden layer, is one linear layer; the paper's deepest
network is 2048-1024-512-256 (section 3.5).

`towers` of them stand side by side, each with embeddings of its own. Of every
table they have equal shares of the columns, so that a row is gathered once for
all of them.

A history has many moments: before the watch j there was the next watch j - 1.
With a sequence encoder each of them can be trained, at little more than the
cost of the last one (`of_each_moment`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from models.embeddings import EmbeddingTables
from models.inputs import EXAMPLE_INDEX
from models.keras_setup import tf
from models.precision import compute_dtype
from models.sequence_encoder import SequenceEncoder
from models.towers import Tower
from schemas.errors import InputError
from schemas.features import CONTINUOUS_WIDTH, Feature, FeatureSet
from schemas.model_config import Pooling, RetrievalConfig

AGE, HISTORY = "example_age", "watch_history"
# The encoder's own table of videos, where it has one.
_BESIDE = "video_beside"

Features = Mapping[str, tf.Tensor]


class QueryTower(tf.Module):
    """Embedding tables, sequence encoder and fully connected layers.

    Args:
      features: as declared; those of scope `query` are used.
      sizes: ID space -> vocabulary size V, of all spaces.
      config: the model's section.
      seed: of initial weights and dropout.
      example_age: whether training examples carry their age (section 3.3).

    Attributes:
      features: those it reads: all but `config.left_out`.

    Raises:
      InputError: `left_out` names what is no query feature, or the examples'
        histories are shorter than the sequence encoder looks back.
    """

    def __init__(
        self,
        features: FeatureSet,
        sizes: Mapping[str, int],
        config: RetrievalConfig,
        seed: int,
        *,
        example_age: bool,
    ) -> None:
        super().__init__(name="query_tower")
        self.config = config
        self.example_age = example_age and AGE not in config.left_out
        self.features = _read(features, config.left_out)
        sequence = config.sequence
        self._beside = sequence is not None and sequence.place == "beside"
        spaces = FeatureSet(self.features).spaces("query")
        tables = {s: (sizes[s], config.towers * self._dim(s)) for s in spaces}
        if self._beside:
            tables[_BESIDE] = sizes["video"], config.embedding_dim
        self.embeddings = EmbeddingTables(tables, seed)
        self.sequence = _sequence_encoder(self.features, config, seed)
        width = sum(self.input_widths.values())
        self.towers = [
            Tower(
                width,
                (*config.hidden_units, config.embedding_dim),
                config.output_activation,
                config.dropout,
                seed,
                name="query_tower" if i == 0 else f"query_tower_{i}",
            )
            for i in range(config.towers)
        ]

    @property
    def num_parts(self) -> int:
        """Of how many embeddings, each learnt for itself, u is made."""
        return self.config.towers + self.has_sequence_part

    @property
    def has_sequence_part(self) -> bool:
        """Whether the last part of u is the sequence encoder's."""
        return self._beside

    @property
    def input_widths(self) -> dict[str, int]:
        """Feature -> its share of a tower's input."""
        widths = {f.name: self._width(f) for f in self.features}
        hats = self.config.example_age_hats
        return widths | ({AGE: hats} if self.example_age else {})

    @property
    def dense_variables(self) -> tuple[tf.Variable, ...]:
        """All weights but the tables'."""
        encoder = self.sequence.trainable_variables if self.sequence else ()
        towers = [v for t in self.towers for v in t.trainable_variables]
        return (*towers, *encoder)

    def __call__(
        self,
        features: Features,
        *,
        training: bool = False,
        step: tf.Tensor | int = 0,
    ) -> tf.Tensor:
        """Returns u of each request; see `RetrievalModel.query_embedding`."""
        return self._embed(features, 1, training, step)[:, 0]

    def of_each_moment(
        self,
        features: Features,
        *,
        training: bool = False,
        step: tf.Tensor | int = 0,
    ) -> tf.Tensor:
        """Returns u as it was before each of the last watches.

        Moment 0 is the request's own; moment j has seen the watches j, j + 1
        ... of the history alone: the next watch, j - 1, is not among them.
        Searches and other lists of the request may be younger than a moment,
        so only moment 0 has them.

        Args:
          features, training, step: as in `__call__`.

        Returns:
          float32 [B, L, D], L = `sequence.length`.
        """
        assert self.sequence is not None  # It makes moments worth it.
        return self._embed(features, self.sequence.length, training, step)

    def _embed(
        self,
        features: Features,
        moments: int,
        training: bool,
        step: tf.Tensor | int,
    ) -> tf.Tensor:
        """float32 [B, moments, D]; D of each part, one after the other."""
        index = features.get(EXAMPLE_INDEX)
        first_row = 0 if index is None else index[0]
        parts: list[list[tf.Tensor]] = [[] for _ in self.towers]
        encoded = []

        def add(of_towers: Sequence[tf.Tensor]) -> None:
            for part, of_tower in zip(parts, of_towers, strict=True):
                part.append(of_tower)

        for feature in self.features:
            values = features[feature.name]
            if feature.name == HISTORY:
                for bag in self._bags(values, moments):
                    add(bag)
                if self.sequence is not None:
                    each = self._encoded(values, training, step, first_row)
                    encoded.append(each[:, :moments])
                continue
            add(self._part(feature, values, moments))
        if self.example_age:
            age = features.get(AGE)
            if age is None:
                age = tf.zeros(tf.shape(parts[0][0])[:1])
            hats = age_hats(age, self.config.example_age_hats)
            add([_at_moments(hats[:, None], moments, True)] * len(parts))
        if not self._beside:
            parts, encoded = [part + encoded for part in parts], []
        towered = [
            tower(
                tf.concat(part, axis=2),
                training=training,
                step=step,
                first_row=first_row,
                dtype=compute_dtype(self.config.precision, training),
            )
            for tower, part in zip(self.towers, parts, strict=True)
        ]
        return tf.concat([*towered, *encoded], axis=2)

    def _encoded(
        self,
        history: tf.Tensor,
        training: bool,
        step: tf.Tensor | int,
        first_row: tf.Tensor | int,
    ) -> tf.Tensor:
        assert self.sequence is not None
        history = history[:, : self.sequence.length]
        space = _BESIDE if self._beside else "video"
        return self.sequence(
            self.embeddings.lookup(space, history),
            tf.cast(history > 0, tf.float32),
            training=training,
            step=step,
            first_row=first_row,
        )

    def _bags(self, history: tf.Tensor, moments: int) -> list[list[tf.Tensor]]:
        """Pooled recency bags, each tower's, [B, moments, width]."""
        config = self.config
        if not config.recency_bags:
            return []
        if moments == 1 and config.pooling == "mean":
            bags = self.embeddings.mean_bags(
                "video", history, config.recency_bags
            )
            shape = [-1, 1, self._width_of_bags]
            return [[tf.reshape(part, shape) for part in self._shares(bags)]]
        vectors = self.embeddings.lookup("video", history)
        present = tf.cast(history >= 0, tf.float32)
        return [
            self._shares(
                pooled(vectors, present, first, moments, config.pooling)
            )
            for first in config.recency_bags
        ]

    def _part(
        self, feature: Feature, values: tf.Tensor, moments: int
    ) -> list[tf.Tensor]:
        """What each tower reads of another feature, [B, moments, width]."""
        if feature.kind == "continuous":
            return [_at_moments(values[:, None], moments, True)] * len(
                self.towers
            )
        assert feature.space is not None  # Feature's own invariant.
        is_bag = feature.kind == "bag"
        read = self.embeddings.mean_bag if is_bag else self.embeddings.lookup
        vectors = read(feature.space, values)[:, None]
        return self._shares(_at_moments(vectors, moments, not is_bag))

    def _shares(self, vectors: tf.Tensor) -> list[tf.Tensor]:
        """Rows of a table, cut into what belongs to each tower."""
        return list(tf.split(vectors, len(self.towers), axis=-1))

    @property
    def _width_of_bags(self) -> int:
        return len(self.config.recency_bags) * self.config.embedding_dim

    def _width(self, feature: Feature) -> int:
        if feature.space is None:
            return CONTINUOUS_WIDTH
        if feature.name == HISTORY:
            inside = self.sequence is not None and not self._beside
            encoded = self.config.embedding_dim if inside else 0
            return self._width_of_bags + encoded
        return self._dim(feature.space)

    def _dim(self, space: str) -> int:
        special = {
            "video": self.config.embedding_dim,
            "token": self.config.token_dim,
        }
        return special.get(space, self.config.categorical_dim)


def pooled(
    vectors: tf.Tensor,
    present: tf.Tensor,
    first: int,
    moments: int,
    pooling: Pooling,
) -> tf.Tensor:
    """Pools, for each moment j, the bag of the watches j ... j + first - 1.

    Args:
      vectors: float32 [B, H, D], most recent first, zeros for unknown videos.
      present: float32 [B, H], 1 for a watch, known or not; 0 is padding.
      first: n, the longest bag.
      moments: how many, from the most recent on.
      pooling: an unknown video counts as the zero vector in all of them.

    Returns:
      float32 [B, moments, D]; zeros for an empty bag.
    """
    length = moments + first - 1
    missing = max(0, length - present.shape[1])
    present = tf.pad(present, [[0, 0], [0, missing]])[:, :length, None]
    vectors = tf.pad(vectors, [[0, 0], [0, missing], [0, 0]])[:, :length]
    # Row j is 1 from column j to j + first - 1.
    windows = tf.constant(
        np.tri(moments, length, first - 1) - np.tri(moments, length, -1),
        tf.float32,
    )
    count = tf.matmul(windows, present)
    if pooling == "max":
        vectors = tf.where(present > 0, vectors, vectors.dtype.min)
        highest = tf.nn.max_pool1d(vectors, first, 1, "VALID")
        return tf.where(count > 0, highest, 0.0)
    total = tf.matmul(windows, vectors)
    return total if pooling == "sum" else total / tf.maximum(count, 1.0)


def age_hats(age: tf.Tensor, number: int) -> tf.Tensor:
    """What the tower reads of the example age.

    Args:
      age: float32 [B], in [0, 1] but for serving, which may be past 0.
      number: n of hats; 1 is the age itself.

    Returns:
      float32 [B, n]; of n > 1, hat i is 1 at i / (n - 1), 0 from the next hat
      on and linear between: they add up to 1.
    """
    if number == 1:
        return age[:, None]
    place = tf.clip_by_value(age, 0.0, 1.0)[:, None] * (number - 1.0)
    distance = tf.abs(place - tf.range(number, dtype=tf.float32))
    return tf.maximum(1.0 - distance, 0.0)


def _at_moments(part: tf.Tensor, moments: int, known: bool) -> tf.Tensor:
    """[B, 1, n] -> [B, moments, n]; zeros after the first unless `known`."""
    if moments == 1:
        return part
    if known:
        return tf.repeat(part, moments, axis=1)
    return tf.pad(part, [[0, 0], [0, moments - 1], [0, 0]])


def _read(
    features: FeatureSet, left_out: tuple[str, ...]
) -> tuple[Feature, ...]:
    """The query features without those left out.

    Raises:
      InputError: one that is not there, or the watch history.
    """
    query = features.select("query")
    possible = [f.name for f in query if f.name != HISTORY] + [AGE]
    for name in left_out:
        if name not in possible:
            raise InputError(
                f"`retrieval.left_out` names {name!r}; this log's model can "
                f"do without {', '.join(possible)}."
            )
    return tuple(f for f in query if f.name not in left_out)


def _sequence_encoder(
    features: tuple[Feature, ...], config: RetrievalConfig, seed: int
) -> SequenceEncoder | None:
    """The configured encoder.

    Raises:
      InputError: the examples' histories are shorter than it looks back.
    """
    if config.sequence is None:
        return None
    stored = next(f.max_length for f in features if f.name == HISTORY)
    wanted = config.sequence.length
    if stored is None or stored < wanted:
        raise InputError(
            f"`retrieval.sequence.length` is {wanted}, but the examples have "
            f"histories of {stored} watches; set it to at most that, or raise "
            "`retrieval_examples.history_length`."
        )
    return SequenceEncoder(
        wanted,
        config.embedding_dim,
        config.sequence.layers,
        config.sequence.heads,
        config.sequence.dropout,
        seed,
    )


def space_of(table: str) -> str:
    """The ID space of one of the tower's tables."""
    return "video" if table == _BESIDE else table
