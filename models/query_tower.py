"""What is known of a user -> the query embedding u (paper, section 3.2).

In go the transform graph's query features, out comes u [B, D]. The tower's
input is, side by side: pooled bags over the last n watches for each n of
`recency_bags` (all of one table), optionally a self-attention encoding of the
last watches, the mean of the search tokens and of other lists, categorical
embeddings, continuous values (x~, x~^2, sqrt(x~), is missing) and, if on, the
example age. Depth 0, no hidden layer, is one linear layer; the paper's deepest
network is 2048-1024-512-256 (section 3.5).

There may be several towers side by side, each with embeddings of its own:
columns of every table, so that a row is gathered once for all of them.

A history has many moments: before the watch j there was the next watch j - 1.
With a sequence encoder each of them can be trained, at little more than the
cost of the last one (`of_each_moment`).
"""

from collections.abc import Mapping

from models.embeddings import EmbeddingTables
from models.inputs import EXAMPLE_INDEX
from models.keras_setup import tf
from models.precision import compute_dtype
from models.recency_bags import pooled, side_by_side
from models.sequence_encoder import SequenceEncoder
from models.towers import Tower
from schemas.errors import InputError
from schemas.features import CONTINUOUS_WIDTH, Feature, FeatureSet
from schemas.model_config import RetrievalConfig

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
      has_sequence_part: whether the last part of u is the sequence encoder's.

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
        self.has_sequence_part = (
            sequence is not None and sequence.place == "beside"
        )
        spaces = FeatureSet(self.features).spaces("query")
        tables = {s: (sizes[s], sum(self._dims(s))) for s in spaces}
        if self.has_sequence_part:
            tables[_BESIDE] = sizes["video"], config.embedding_dim
        self.embeddings = EmbeddingTables(tables, seed)
        self.sequence = _sequence_encoder(self.features, config, seed)
        self.tower, *self.more_towers = (
            Tower(
                sum(widths.values()),
                (*tower.hidden_units, tower.embedding_dim),
                config.output_activation,
                tower.dropout,
                seed,
                name=f"query_tower_{i}" if i else "query_tower",
            )
            for i, (tower, widths) in enumerate(
                zip(config.towers, self.input_widths, strict=True)
            )
        )

    @property
    def towers(self) -> list[Tower]:
        """All, in the order of `config.towers`."""
        return [self.tower, *self.more_towers]

    @property
    def part_dims(self) -> tuple[int, ...]:
        """Dimensions of the embeddings, each learnt for itself, u is made of.

        The towers' in their order, then the sequence encoder's if it has one.
        """
        encoder = [self.config.embedding_dim] if self.has_sequence_part else []
        return (*self._dims("video"), *encoder)

    @property
    def input_widths(self) -> list[dict[str, int]]:
        """Of each tower: feature -> its share of the tower's input."""
        ages = {AGE: self.config.example_age_hats} if self.example_age else {}
        return [
            {f.name: self._width(f, tower) for f in self.features} | ages
            for tower in self.config.towers
        ]

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
        inputs = self._tower_inputs(features, moments)
        encoded = []
        if self.sequence is not None:
            each = self._encoded(features[HISTORY], training, step, first_row)
            encoded.append(each[:, :moments])
        if not self.has_sequence_part:
            inputs = [tf.concat([own, *encoded], axis=2) for own in inputs]
            encoded = []
        towered = [
            tower(
                own,
                training=training,
                step=step,
                first_row=first_row,
                dtype=compute_dtype(self.config.precision, training),
            )
            for tower, own in zip(self.towers, inputs, strict=True)
        ]
        return tf.concat([*towered, *encoded], axis=2)

    def _tower_inputs(
        self, features: Features, moments: int
    ) -> list[tf.Tensor]:
        """What each tower reads of all features, [B, moments, width]."""
        shares = [
            self._bags(features[HISTORY], moments)
            if feature.name == HISTORY
            else self._part(feature, features[feature.name], moments)
            for feature in self.features
        ]
        if self.example_age:
            age = features.get(AGE)
            if age is None:
                age = tf.zeros(tf.shape(features[HISTORY])[:1])
            hats = age_hats(age, self.config.example_age_hats)
            shares.append(
                self._for_all(_at_moments(hats[:, None], moments, True))
            )
        return [tf.concat(own, axis=2) for own in zip(*shares, strict=True)]

    def _encoded(
        self,
        history: tf.Tensor,
        training: bool,
        step: tf.Tensor | int,
        first_row: tf.Tensor | int,
    ) -> tf.Tensor:
        assert self.sequence is not None
        history = history[:, : self.sequence.length]
        space = _BESIDE if self.has_sequence_part else "video"
        return self.sequence(
            self.embeddings.lookup(space, history),
            tf.cast(history > 0, tf.float32),
            training=training,
            step=step,
            first_row=first_row,
        )

    def _bags(self, history: tf.Tensor, moments: int) -> list[tf.Tensor]:
        """Each tower's pooled recency bags, [B, moments, width]."""
        towers = self.config.towers
        lengths = list(dict.fromkeys(n for t in towers for n in t.recency_bags))
        if not lengths:
            nothing = tf.zeros([tf.shape(history)[0], moments, 0])
            return self._for_all(nothing)
        if moments == 1 and self.config.pooling == "mean":
            bags = self.embeddings.mean_bags("video", history, lengths)
            bags = bags[:, None]
        else:
            vectors = self.embeddings.lookup("video", history)
            present = tf.cast(history >= 0, tf.float32)
            how = self.config.pooling
            bags = tf.stack(
                [pooled(vectors, present, n, moments, how) for n in lengths],
                axis=2,
            )
        return [
            side_by_side(share, lengths, tower.recency_bags)
            for tower, share in zip(
                towers, self._shares("video", bags), strict=True
            )
        ]

    def _part(
        self, feature: Feature, values: tf.Tensor, moments: int
    ) -> list[tf.Tensor]:
        """What each tower reads of another feature, [B, moments, width]."""
        if feature.kind == "continuous":
            return self._for_all(_at_moments(values[:, None], moments, True))
        assert feature.space is not None  # Feature's own invariant.
        is_bag = feature.kind == "bag"
        read = self.embeddings.mean_bag if is_bag else self.embeddings.lookup
        vectors = _at_moments(
            read(feature.space, values)[:, None], moments, not is_bag
        )
        return self._shares(feature.space, vectors)

    def _for_all(self, values: tf.Tensor) -> list[tf.Tensor]:
        """What has no columns of a tower's own."""
        return [values] * len(self.towers)

    def _shares(self, space: str, vectors: tf.Tensor) -> list[tf.Tensor]:
        """Rows of a table, cut into what belongs to each tower."""
        return list(tf.split(vectors, self._dims(space), axis=-1))

    def _width(self, feature: Feature, tower: RetrievalConfig) -> int:
        if feature.space is None:
            return CONTINUOUS_WIDTH
        dim = _dim(feature.space, tower)
        if feature.name == HISTORY:
            inside = self.sequence is not None and not self.has_sequence_part
            return dim * (len(tower.recency_bags) + inside)
        return dim

    def _dims(self, space: str) -> list[int]:
        """Of each tower's columns in a table."""
        return [_dim(space, tower) for tower in self.config.towers]


def _dim(space: str, tower: RetrievalConfig) -> int:
    special = {"video": tower.embedding_dim, "token": tower.token_dim}
    return special.get(space, tower.categorical_dim)


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
