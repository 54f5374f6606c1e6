"""Candidate generation: who watches what next (paper, section 3).

A query tower turns what is known of a user into u [D]; each video has an
output embedding v [D] and a bias b, apart from the embeddings of the watch
history. P(video) is the softmax of u.v + b over the corpus.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from models.embeddings import initial_table, local_component
from models.keras_setup import tf, tfrs
from models.query_tower import HISTORY, QueryTower
from models.sampling import Negatives, Sampler, sampled_softmax_loss
from models.saved_weights import read_weights, reading_model, write_model
from schemas.config import RetrievalConfig
from schemas.features import FIXED_SPACES, FeatureSet, from_json, to_json

LABEL, WEIGHT = "label", "example_weight"


class RetrievalModel(tfrs.Model):
    """The query tower and the candidates' embeddings.

    Args:
      features: as declared; those of scope `query` are used.
      sizes: ID space -> vocabulary size V; fixed spaces need not be named.
      config: the model's section.
      seed: of initial weights, dropout and negatives.
      example_age: whether training examples carry their age (section 3.3).

    Raises:
      ValueError: a space without a size, or no videos.
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
        self.sampler = Sampler(
            config.sampler, videos, config.num_negatives, seed
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
        return self.query_tower(features, training=training, step=step)

    def candidates(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns all videos' output embeddings [V, D] and biases [V].

        Row i belongs to id i + 1. Of several parts the scores add up, and
        each part's has the bias.
        """
        parts = self.query_tower.num_parts
        return self.output_embeddings[1:], parts * self.output_biases[1:]

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
        """
        negatives = self.sampler.draw(step)
        queries, labels, weights = self._cases(inputs, training, step)
        expected = self.sampler.log_expected(labels)
        if not self.config.logq_correction:
            zeros = tf.zeros_like(negatives.log_expected)
            negatives = Negatives(negatives.ids, zeros)
            expected = tf.zeros_like(expected)
        rows, biases = self._outputs(tf.concat([labels, negatives.ids], 0))

        def gathered(part: tf.Tensor) -> Callable[..., Any]:
            return lambda ids: (part, biases)

        losses = [
            sampled_softmax_loss(
                query, labels, negatives, gathered(part), expected
            )
            for query, part in self._parts_of(queries, rows)
        ]
        total = tf.reduce_sum(weights * tf.add_n(losses))
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
        queries, labels, weights = self._cases(inputs, training, step)
        rows, biases = self.output_embeddings[1:], self.output_biases[1:]
        losses = [
            tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels - 1, tf.matmul(query, part, transpose_b=True) + biases
            )
            for query, part in self._parts_of(queries, rows)
        ]
        total = tf.reduce_sum(weights * tf.add_n(losses))
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
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Queries [n, D], labels [n] and weights [n] to learn from.

        n is B, or B L if each moment of the history is learnt: a moment's
        label is the watch after it, and it weighs 1 / L of its example.
        """
        labels, weights = inputs[LABEL], inputs[WEIGHT]
        sequence = self.config.sequence
        if sequence is None or not sequence.every_moment:
            queries = self.query_embedding(inputs, training=training, step=step)
            return queries, labels, weights
        queries = self.query_tower.of_each_moment(
            inputs, training=training, step=step
        )
        later = inputs[HISTORY][:, : sequence.length - 1]
        labels = tf.concat([labels[:, None], later], axis=1)
        # An unknown watch teaches nothing, as in the examples' own labels.
        weights = weights[:, None] * tf.cast(labels > 0, tf.float32)
        weights /= sequence.length
        return (
            tf.reshape(queries, [-1, self._dim]),
            tf.reshape(tf.maximum(labels, 1), [-1]),
            tf.reshape(weights, [-1]),
        )

    @property
    def _dim(self) -> int:
        """D, of all parts together."""
        return self.query_tower.num_parts * self.config.embedding_dim

    def _parts_of(
        self, queries: tf.Tensor, outputs: tf.Tensor
    ) -> Iterable[tuple[tf.Tensor, tf.Tensor]]:
        """What each part of u learns with: its columns of [n, D], [m, D]."""
        parts = self.query_tower.num_parts
        return zip(
            tf.split(queries, parts, axis=1),
            tf.split(outputs, parts, axis=1),
            strict=True,
        )

    def _outputs(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        table = local_component(self.output_embeddings)
        biases = local_component(self.output_biases)
        return tf.gather(table, ids), tf.gather(biases, ids)


class FullSoftmaxModel(RetrievalModel):
    """The same model trained by the softmax over all videos: an oracle."""

    def compute_loss(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """See `full_softmax_loss`."""
        return self.full_softmax_loss(*args, **kwargs)
