"""Candidate generation: who watches what next (paper, section 3).

A query tower turns what is known of a user into u [D]; each video has an
output embedding v [D] and a bias b, apart from the embeddings of the watch
history. P(video) is the softmax of u.v + b over the corpus; with a
`temperature`, of u.v / temperature of vectors of length 1, and there is no b.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.embeddings import initial_table, local_component
from models.inputs import EXAMPLE_INDEX
from models.keras_setup import tf, tfrs
from models.negatives import Cases, NegativesLoss, needs_label_counts
from models.query_tower import HISTORY, QueryTower
from models.saved_weights import read_weights, reading_model, write_model
from schemas.features import FIXED_SPACES, FeatureSet, from_json, to_json
from schemas.model_config import RetrievalConfig

LABEL, WEIGHT = "label", "example_weight"


class RetrievalModel(tfrs.Model):
    """The query tower and the candidates' embeddings.

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
        self._sizes = {**FIXED_SPACES, **sizes}
        spaces = features.spaces("query")
        unknown = sorted(set(spaces) - set(self._sizes))
        if unknown or self._sizes.get("video", 0) < 1:
            raise ValueError(
                "Expected a vocabulary size of at least 1 for 'video' and one "
                f"for each of {', '.join(spaces)}; received {dict(sizes)}."
            )
        self.query_tower = QueryTower(
            features, self._sizes, config, seed, example_age=example_age
        )
        self.embeddings = self.query_tower.embeddings
        videos = self._sizes["video"]
        self.output_embeddings = initial_table(
            videos, self._dim, seed, "output", scale=0.05
        )
        self.output_biases = tf.Variable(tf.zeros([videos + 1]), name="biases")
        # What training needs, and serving does not.
        self.negatives: NegativesLoss | None = None
        if label_counts is not None or not needs_label_counts(config):
            self.negatives = NegativesLoss(
                config, videos, seed, label_counts, self._part_dims
            )

    @property
    def table_variables(self) -> tuple[tf.Variable, ...]:
        """Variables whose rows are updated sparsely."""
        own = (self.output_embeddings, self.output_biases)
        return (*self.embeddings.table_variables, *own)

    @property
    def dense_variables(self) -> tuple[tf.Variable, ...]:
        """Variables that every step updates as a whole."""
        return self.query_tower.dense_variables

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
        return self._unit(
            self.query_tower(features, training=training, step=step)
        )

    def candidates(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns all videos' output embeddings [V, D] and biases [V].

        Row i belongs to id i + 1. Of several parts the scores add up, and
        each part's has the bias. With a temperature each part is of the
        length 1 / temperature, and there is no bias.
        """
        embeddings, biases = self._scaled(
            self.output_embeddings[1:], self.output_biases[1:]
        )
        return embeddings, len(self._part_dims) * biases

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
        if self.negatives is None:
            raise ValueError(
                "Training with this `sampler` or these `negatives` needs the "
                "`label_counts` of the training examples; they are no part of "
                "a saved model. Give them when building the model."
            )
        total = self.negatives(
            self._cases(inputs, training, step),
            self._outputs,
            step,
            global_batch_size,
        )
        return total / global_batch_size, {}

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
        cases, parts = self._cases(inputs, training, step), self._part_dims
        embeddings, biases = self._scaled(
            self.output_embeddings[1:], self.output_biases[1:]
        )
        losses = [
            tf.nn.sparse_softmax_cross_entropy_with_logits(
                cases.labels - 1, tf.matmul(u, v, transpose_b=True) + biases
            )
            for u, v in zip(
                tf.split(cases.queries, parts, axis=1),
                tf.split(embeddings, parts, axis=1),
                strict=True,
            )
        ]
        total = tf.reduce_sum(cases.weights * tf.add_n(losses))
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
            "query_tower": self.query_tower,
            "output_embeddings": self.output_embeddings,
            "output_biases": self.output_biases,
        }

    def _cases(
        self,
        inputs: Mapping[str, tf.Tensor],
        training: bool,
        step: tf.Tensor | int,
    ) -> Cases:
        """What there is to learn: n is B, or B L if each moment is learnt.

        A moment's label is the watch after it, and it weighs 1 / L of its
        example.
        """
        labels, weights = inputs[LABEL], inputs[WEIGHT]
        index = inputs.get(EXAMPLE_INDEX)
        first = 0 if index is None else index[0]
        sequence = self.config.sequence
        if sequence is None or not sequence.every_moment:
            queries = self.query_embedding(inputs, training=training, step=step)
            return Cases(queries, labels, weights, first)
        queries = self.query_tower.of_each_moment(
            inputs, training=training, step=step
        )
        later = inputs[HISTORY][:, : sequence.length - 1]
        labels = tf.concat([labels[:, None], later], axis=1)
        # An unknown watch teaches nothing, as in the examples' own labels.
        weights = weights[:, None] * tf.cast(labels > 0, tf.float32)
        weights /= sequence.length
        return Cases(
            self._unit(tf.reshape(queries, [-1, self._dim])),
            tf.reshape(tf.maximum(labels, 1), [-1]),
            tf.reshape(weights, [-1]),
            first * sequence.length,
        )

    @property
    def _part_dims(self) -> tuple[int, ...]:
        return self.query_tower.part_dims

    @property
    def _dim(self) -> int:
        """D, of all parts together."""
        return sum(self._part_dims)

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
        unit = self._unit(embeddings) / self.config.temperature
        return unit, tf.zeros_like(biases)

    def _unit(self, embeddings: tf.Tensor) -> tf.Tensor:
        """With a temperature, [..., D] whose parts are of length 1."""
        if self.config.temperature is None:
            return embeddings
        parts = tf.split(embeddings, self._part_dims, axis=-1)
        units = [tf.math.l2_normalize(part, axis=-1) for part in parts]
        return tf.concat(units, axis=-1)


class FullSoftmaxModel(RetrievalModel):
    """The same model trained by the softmax over all videos: an oracle."""

    def compute_loss(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """See `full_softmax_loss`."""
        return self.full_softmax_loss(*args, **kwargs)
