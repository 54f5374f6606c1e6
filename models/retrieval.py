"""Candidate generation: who watches what next (paper, section 3).

A query tower turns what is known of a user into u [D]; each video has an
output embedding v [D] and a bias b, apart from the embeddings of the watch
history. P(video) is the softmax of u.v + b over the corpus; with a
`temperature`, of u.v / temperature of vectors of length 1, and there is no b.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from models.embeddings import EmbeddingTables, initial_table, local_component
from models.inputs import EXAMPLE_INDEX
from models.keras_setup import tf, tfrs
from models.sampling import Negatives, Sampler, unigram_shares
from models.saved_weights import read_weights, reading_model, write_model
from models.softmax import in_batch_softmax_loss, sampled_softmax_loss
from models.towers import Tower
from schemas.config import RetrievalConfig
from schemas.features import (
    CONTINUOUS_WIDTH,
    FIXED_SPACES,
    Feature,
    FeatureSet,
    from_json,
    to_json,
)

LABEL, WEIGHT, AGE = "label", "example_weight", "example_age"
# Settings of `negatives` whose candidates are the batch's labels.
_IN_BATCH = ("in_batch", "mixed")


class RetrievalModel(tfrs.Model):
    """The query tower and the candidates' embeddings.

    Tower input, side by side: means over the last n watches for each n of
    `recency_bags` (all from one table), the mean of the search tokens and of
    other lists, categorical embeddings, continuous values (x~, x~^2, sqrt(x~),
    is missing) and, if on, the example age.

    Args:
      features: as declared; those of scope `query` are used.
      sizes: ID space -> vocabulary size V; fixed spaces need not be named.
      config: the model's section.
      seed: of initial weights, dropout and negatives.
      example_age: whether training examples carry their age (section 3.3).
      label_counts: int [V], how often each video is a label; to train with
        the unigram sampler, or with corrected in-batch or mixed negatives.

    Raises:
      ValueError: a space without a size, no videos, or counts that do not fit.
    """

    def __init__(
        self,
        features: FeatureSet,
        sizes: Mapping[str, int],
        config: RetrievalConfig,
        seed: int,
        *,
        example_age: bool,
        label_counts: np.ndarray | None = None,
    ) -> None:
        super().__init__(name="retrieval")
        self.features, self.config, self.seed = features, config, seed
        self.example_age = example_age
        self._query_features = features.select("query")
        self._sizes = {**FIXED_SPACES, **sizes}
        spaces = features.spaces("query")
        unknown = sorted(set(spaces) - set(self._sizes))
        if unknown or self._sizes.get("video", 0) < 1:
            raise ValueError(
                "Expected a vocabulary size of at least 1 for 'video' and one "
                f"for each of {', '.join(spaces)}; received {dict(sizes)}."
            )
        self.embeddings = EmbeddingTables(
            {s: (self._sizes[s], self._dim(s)) for s in spaces}, seed
        )
        self.query_tower = Tower(
            sum(self._width(f) for f in self._query_features)
            + int(example_age),
            (*config.hidden_units, config.embedding_dim),
            config.output_activation,
            config.dropout,
            seed,
            name="query_tower",
        )
        videos = self._sizes["video"]
        self.output_embeddings = initial_table(
            videos, config.embedding_dim, seed, "output", scale=0.05
        )
        self.output_biases = tf.Variable(tf.zeros([videos + 1]), name="biases")
        self._can_train = label_counts is not None or not needs_label_counts(
            config
        )
        if self._can_train:
            self._prepare_negatives(label_counts)

    def _prepare_negatives(self, label_counts: np.ndarray | None) -> None:
        """Makes what training draws from; not needed to serve."""
        config, videos = self.config, self._sizes["video"]
        if config.negatives != "in_batch":
            self.sampler = Sampler(
                config.sampler,
                videos,
                config.num_negatives,
                self.seed,
                label_counts,
            )
        if config.negatives in _IN_BATCH and config.logq_correction:
            # A batch's labels are as if drawn by their share.
            shares = unigram_shares(label_counts, videos)
            self._log_label_shares = tf.constant(np.log(shares), tf.float32)

    @property
    def table_variables(self) -> tuple[tf.Variable, ...]:
        """Variables whose rows are updated sparsely."""
        own = (self.output_embeddings, self.output_biases)
        return (*self.embeddings.table_variables, *own)

    @property
    def dense_variables(self) -> tuple[tf.Variable, ...]:
        """Variables that every step updates as a whole."""
        return tuple(self.query_tower.trainable_variables)

    def query_embedding(
        self,
        features: Mapping[str, tf.Tensor],
        *,
        training: bool = False,
        step: tf.Tensor | int = 0,
    ) -> tf.Tensor:
        """Returns u of each request.

        Args:
          features: the transform graph's query features by name, [B, ...],
            and `example_age` float32 [B]; where that is absent, as in serving
            and evaluation, it is 0, the end of the training window.
          training: whether dropout is on.
          step: int64 [], the training step.

        Returns:
          float32 [B, D].
        """
        parts = [self._part(f, features[f.name]) for f in self._query_features]
        if self.example_age:
            age = features.get(AGE)
            if age is None:
                age = tf.zeros(tf.shape(parts[0])[:1])
            parts.append(age[:, None])
        index = features.get(EXAMPLE_INDEX)
        embeddings = self.query_tower(
            tf.concat(parts, axis=1),
            training=training,
            step=step,
            first_row=0 if index is None else index[0],
        )
        if self.config.temperature is None:
            return embeddings
        return tf.math.l2_normalize(embeddings, axis=1)

    def candidates(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns all videos' output embeddings [V, D] and biases [V].

        Row i belongs to id i + 1. With a temperature they are of the length
        1 / temperature and the biases zero, so that the score is u.v + b
        everywhere.
        """
        return self._scaled(self.output_embeddings[1:], self.output_biases[1:])

    def compute_loss(  # type: ignore[override]
        self,
        inputs: Mapping[str, tf.Tensor],
        *,
        training: bool = True,
        step: tf.Tensor | int = 0,
        global_batch_size: int,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the corrected sampled softmax loss of a worker's rows.

        Args:
          inputs: a training batch, [B, ...] per key.
          training: whether dropout is on.
          step: int64 [], names the negatives and the dropout.
          global_batch_size: rows over all workers; the sum of all workers'
            losses is the loss of the global batch.

        Returns:
          float32 [], the weighted sum over the rows / `global_batch_size`, and
          no further metrics.

        Raises:
          ValueError: label counts are needed, and were not given.
        """
        if not self._can_train:
            raise ValueError(
                "Training with this `sampler` or these `negatives` needs the "
                "`label_counts` of the training examples; they are no part of "
                "a saved model. Give them when building the model."
            )
        queries = self.query_embedding(inputs, training=training, step=step)
        if self.config.negatives in _IN_BATCH:
            total = self._in_batch_loss(
                queries, inputs, step, global_batch_size
            )
        else:
            losses = self._sampled_losses(queries, inputs, step)
            total = tf.reduce_sum(inputs[WEIGHT] * losses)
        return total / global_batch_size, {}

    def _sampled_losses(
        self,
        queries: tf.Tensor,
        inputs: Mapping[str, tf.Tensor],
        step: tf.Tensor | int,
    ) -> tf.Tensor:
        """Losses against drawn negatives, of the batch or of each row."""
        labels = inputs[LABEL]
        if self.config.negatives == "list_wise":
            index = inputs.get(EXAMPLE_INDEX)
            negatives = self.sampler.draw_rows(
                step, 0 if index is None else index[0], tf.shape(labels)[0]
            )
        else:
            negatives = self.sampler.draw(step)
        expected = self.sampler.log_expected(labels)
        if not self.config.logq_correction:
            zeros = tf.zeros_like(negatives.log_expected)
            negatives = Negatives(negatives.ids, zeros)
            expected = tf.zeros_like(expected)
        return sampled_softmax_loss(
            queries, labels, negatives, self._outputs, expected
        )

    def _in_batch_loss(
        self,
        queries: tf.Tensor,
        inputs: Mapping[str, tf.Tensor],
        step: tf.Tensor | int,
        global_batch_size: int,
    ) -> tf.Tensor:
        """The loss against the batch's labels, if mixed also drawn ones."""
        mixed = self.config.negatives == "mixed"

        def log_expected(ids: tf.Tensor) -> tf.Tensor:
            if not self.config.logq_correction:
                return tf.zeros(tf.shape(ids))
            # E = G p(label) + S q(negative): what both sources give.
            expected = tf.gather(self._log_label_shares, ids - 1)
            expected += math.log(global_batch_size)
            if not mixed:
                return expected
            return tf.reduce_logsumexp(
                [expected, self.sampler.log_expected(ids)], axis=0
            )

        return in_batch_softmax_loss(
            queries,
            inputs[LABEL],
            inputs[WEIGHT],
            self._outputs,
            log_expected,
            self.sampler.draw(step).ids if mixed else None,
        )

    def full_softmax_loss(
        self,
        inputs: Mapping[str, tf.Tensor],
        *,
        training: bool = True,
        step: tf.Tensor | int = 0,
        global_batch_size: int,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the loss over the whole corpus: the sampled one's limit.

        Its cost grows with V; takes and returns what `compute_loss` does.
        """
        queries = self.query_embedding(inputs, training=training, step=step)
        embeddings, biases = self.candidates()
        logits = tf.matmul(queries, embeddings, transpose_b=True) + biases
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            inputs[LABEL] - 1, logits
        )
        total = tf.reduce_sum(inputs[WEIGHT] * losses)
        return total / global_batch_size, {}

    def save(self, folder: str) -> None:  # type: ignore[override]
        """Writes `model.json` and the weights; no optimiser, no step."""
        description = {
            "features": to_json(self.features),
            "sizes": dict(self._sizes),
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "example_age": self.example_age,
        }
        write_model(folder, description, self._parts())

    @classmethod
    def load(cls, folder: str) -> "RetrievalModel":
        """Rebuilds a saved model: a function of the folder alone.

        Raises:
          ArtifactError: the folder is no saved model, or an incomplete one.
        """
        with reading_model(folder, "retrieval") as saved:
            model = cls(
                from_json(saved["features"]),
                saved["sizes"],
                RetrievalConfig(**saved["config"]),
                saved["seed"],
                example_age=saved["example_age"],
            )
            read_weights(folder, model._parts())
        return model

    def _parts(self) -> dict[str, tf.Module | tf.Variable]:
        return {
            "embeddings": self.embeddings,
            "query_tower": self.query_tower,
            "output_embeddings": self.output_embeddings,
            "output_biases": self.output_biases,
        }

    def _part(self, feature: Feature, values: tf.Tensor) -> tf.Tensor:
        """A feature's share of the tower's input, [B, width]."""
        if feature.kind == "continuous":
            return values
        assert feature.space is not None  # Feature's own invariant.
        if feature.kind == "categorical":
            return self.embeddings.lookup(feature.space, values)
        if feature.name != "watch_history":
            return self.embeddings.mean_bag(feature.space, values)
        bags = self.embeddings.mean_bags(
            feature.space, values, self.config.recency_bags
        )
        return tf.reshape(bags, [-1, self._width(feature)])

    def _width(self, feature: Feature) -> int:
        if feature.space is None:
            return CONTINUOUS_WIDTH
        recency = feature.name == "watch_history"
        bags = len(self.config.recency_bags) if recency else 1
        return bags * self._dim(feature.space)

    def _dim(self, space: str) -> int:
        special = {
            "video": self.config.embedding_dim,
            "token": self.config.token_dim,
        }
        return special.get(space, self.config.categorical_dim)

    def _outputs(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        table = local_component(self.output_embeddings)
        biases = local_component(self.output_biases)
        return self._scaled(tf.gather(table, ids), tf.gather(biases, ids))

    def _scaled(
        self, embeddings: tf.Tensor, biases: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Output embeddings and biases as scores use them."""
        if self.config.temperature is None:
            return embeddings, biases
        unit = tf.math.l2_normalize(embeddings, axis=-1)
        return unit / self.config.temperature, tf.zeros_like(biases)


def needs_label_counts(config: RetrievalConfig) -> bool:
    """Whether training needs to know how often each video is a label."""
    in_batch = config.negatives in _IN_BATCH
    drawn = config.negatives != "in_batch"
    return (drawn and config.sampler == "unigram") or (
        in_batch and config.logq_correction
    )


class FullSoftmaxModel(RetrievalModel):
    """The same model trained by the softmax over all videos: an oracle."""

    def compute_loss(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """See `full_softmax_loss`."""
        return self.full_softmax_loss(*args, **kwargs)
