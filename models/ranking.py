"""The ranking model: how long would this user watch each candidate?

In: transformed features of B requests with C candidates each. Out: expected
watch time, the probability of each binary task, and one score per candidate
(Covington et al. 2016, section 4; Zhao et al. 2019, section 4.2).

    query, request features [B, Q] --W_q--> [B, U] --gather--+
                                                             +--ReLU ... heads
    candidate features [N, P] --------------W_c----> [N, U] -+

N counts the batch's impressions without padding. What belongs to a request
costs once a request, however many candidates it has.
"""

import math
from collections.abc import Mapping, Sequence

from models import ranking_tasks
from models.embeddings import EmbeddingTables
from models.inputs import EXAMPLE_INDEX
from models.keras_setup import keras, tf, tfrs
from models.position_bias import PositionBias
from models.random_rows import row_uniform
from models.ranking_tasks import WATCH_TIME, WATCH_TIME_OUTPUT
from models.saved_weights import read_weights, reading_model, write_model
from models.towers import Tower
from schemas.config import RankingConfig
from schemas.features import (
    CONTINUOUS_WIDTH,
    FIXED_SPACES,
    Feature,
    FeatureSet,
    from_json,
    to_json,
)

COUNT = "candidate_count"
_HISTORY, _DEVICE = "watch_history", "user_device"

Tensors = Mapping[str, tf.Tensor]


def embedding_dim(vocabulary_size: int, largest: int) -> int:
    """Dimension of a space: grows with ln V (paper, section 4.1), capped.

    2 ceil(log2(V + 1)): 2 for one term, 8 for 15, 26 for 7,471.
    """
    return min(largest, max(1, 2 * math.ceil(math.log2(vocabulary_size + 1))))


class RankingModel(tfrs.Model):
    """Scores the candidates of requests.

    Args:
      features: as declared; all scopes are used.
      sizes: ID space -> vocabulary size V; fixed spaces need not be named.
      config: the model's section.
      seed: of initial weights and dropout.
      labels: what the examples tell of an impression (`ranking_labels`).
      positions: whether the log has positions: without, no position bias.
      initial_bias: head -> start of its bias; 0 where not given.

    Raises:
      ValueError: a space without a size, no candidate features, or a task,
        weight or score that names what does not exist.
    """

    def __init__(
        self,
        features: FeatureSet,
        sizes: Mapping[str, int],
        config: RankingConfig,
        seed: int,
        *,
        labels: Sequence[str],
        positions: bool,
        initial_bias: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(name="ranking")
        ranking_tasks.check(config, labels)
        self.features, self.config, self.seed = features, config, seed
        self.labels, self.positions = tuple(labels), positions
        self.heads = ranking_tasks.heads(config)
        self._of_request = features.select("query", "request")
        self._of_candidate = features.select("candidate")
        self._sizes = {**FIXED_SPACES, **sizes}
        spaces = features.spaces("query", "request", "candidate")
        if not self._of_candidate or set(spaces) - set(self._sizes):
            raise ValueError(
                "Expected candidate features (does the log have impressions?) "
                f"and a vocabulary size for each of {', '.join(spaces)}; "
                f"received {len(self._of_candidate)} such features and "
                f"{dict(sizes)}."
            )
        self.embeddings = EmbeddingTables(
            {s: (self._sizes[s], self._dim(s)) for s in spaces}, seed
        )
        self._request_width = sum(map(self._width, self._of_request))
        candidate_width = sum(map(self._width, self._of_candidate))
        self.tower = Tower(
            self._request_width + candidate_width,
            config.hidden_units,
            "relu",
            seed=seed,
            name="ranking_tower",
        )
        self.head = keras.layers.Dense(
            len(self.heads),
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            name="heads",
        )
        self.head.build([None, self.tower.output_dim])
        start = initial_bias or {}
        self.head.bias.assign([start.get(h, 0.0) for h in self.heads])
        self.position_bias: PositionBias | None = None
        if positions and config.position_tower and "clicked" in self.heads:
            device = [f for f in self._of_request if f.name == _DEVICE]
            self.position_bias = PositionBias(
                self._sizes[str(device[0].space)] if device else 0,
                config.position_dropout,
                seed,
            )

    @property
    def input_widths(self) -> dict[str, int]:
        """Feature -> its share of the first layer's input."""
        features = (*self._of_request, *self._of_candidate)
        return {f.name: self._width(f) for f in features}

    @property
    def table_variables(self) -> tuple[tf.Variable, ...]:
        """Variables whose rows are updated sparsely."""
        return self.embeddings.table_variables

    @property
    def dense_variables(self) -> tuple[tf.Variable, ...]:
        """Variables that every step updates as a whole."""
        bias = self.position_bias
        return (
            *self.tower.trainable_variables,
            *self.head.trainable_variables,
            *(() if bias is None else bias.trainable_variables),
        )

    def compute_loss(  # type: ignore[override]
        self,
        inputs: Tensors,
        *,
        training: bool = True,
        step: tf.Tensor | int = 0,
        global_batch_size: int,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns the weighted sum of the tasks' losses of a worker's rows.

        Args:
          inputs: tensors of `ranking_keys` and `example_index`, B requests.
          training: whether units and positions are dropped.
          step: int64 [], names the dropout.
          global_batch_size: requests over all workers; the sum of all
            workers' losses is the loss of the global batch.

        Returns:
          float32 [], the sum over impressions / `global_batch_size`, and
          `<head>_loss` of each head, likewise, without its weight.
        """
        slots = self._slots(inputs)
        logits = self._logits(inputs, slots, training=training, step=step)
        losses = {}
        for head, logit in logits.items():
            if head == WATCH_TIME:
                loss = ranking_tasks.watch_time_loss(
                    logit,
                    tf.gather_nd(inputs["clicked"], slots),
                    tf.gather_nd(inputs["watch_time_s"], slots),
                    objective=self.config.objective,
                    unit_s=self.config.watch_time_unit_s,
                )
            else:
                if head == "clicked":
                    logit += self._bias(inputs, slots, training, step)
                label = tf.gather_nd(inputs[head], slots)
                loss = ranking_tasks.binary_loss(logit, label)
            losses[head] = tf.reduce_sum(loss) / global_batch_size
        weights = self.config.task_weights
        total = tf.add_n([weights.get(h, 1.0) * x for h, x in losses.items()])
        return total, {f"{head}_loss": x for head, x in losses.items()}

    def predict(self, features: Tensors) -> dict[str, tf.Tensor]:  # type: ignore[override]
        """Predicts for every candidate of every request.

        Labels are not needed, and `position` is not read: the position bias
        is that of "not known".

        Args:
          features: the transform graph's features by name. With
            `candidate_count` int64 [B], slots from there on are not computed
            and all their outputs are 0, below any score; without it, all C
            slots are candidates.

        Returns:
          float32 [B, C] each: `expected_watch_time_s` (objective `paper`:
          `watch_time_odds`), at most the longest valid watch; each task's
          probability by its name; `score`, the product of the outputs to the
          powers `score_weights` (2019, section 4.2).
        """
        slots = self._slots(features)
        logs = {}
        for head, logit in self._logits(features, slots).items():
            if head == WATCH_TIME:
                name = WATCH_TIME_OUTPUT[self.config.objective]
                logs[name] = ranking_tasks.log_watch_time_s(
                    logit, self.config.watch_time_unit_s
                )
            else:
                if head == "clicked":
                    logit += self._bias(features, slots)
                logs[head] = tf.math.log_sigmoid(logit)
        # In logarithms a product of small probabilities does not vanish.
        logs["score"] = tf.add_n(
            [w * logs[name] for name, w in self.config.score_weights.items()]
        )
        shape = self._shape(features)
        return {
            name: tf.scatter_nd(slots, tf.exp(log), shape)
            for name, log in logs.items()
        }

    def call(self, inputs: Tensors) -> dict[str, tf.Tensor]:
        """Same as `predict`."""
        return self.predict(inputs)

    def save(self, folder: str) -> None:  # type: ignore[override]
        """Writes `model.json` and the weights; no optimiser, no step."""
        description = {
            "features": to_json(self.features),
            # Plain values: Keras wraps what is assigned to a model.
            "sizes": dict(self._sizes),
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "labels": list(self.labels),
            "positions": self.positions,
        }
        write_model(folder, description, self._parts())

    @classmethod
    def load(cls, folder: str) -> "RankingModel":
        """Rebuilds a saved model: a function of the folder alone.

        Raises:
          ArtifactError: the folder is no saved model, or an incomplete one.
        """
        with reading_model(folder, "ranking") as saved:
            model = cls(
                from_json(saved["features"]),
                saved["sizes"],
                RankingConfig(**saved["config"]),
                saved["seed"],
                labels=saved["labels"],
                positions=saved["positions"],
            )
            read_weights(folder, model._parts())
        return model

    def _parts(self) -> dict[str, tf.Module]:
        parts: dict[str, tf.Module] = {
            "embeddings": self.embeddings,
            "tower": self.tower,
            "head": self.head,
        }
        if self.position_bias is not None:
            parts["position_bias"] = self.position_bias
        return parts

    def _logits(
        self,
        features: Tensors,
        slots: tf.Tensor,
        *,
        training: bool = False,
        step: tf.Tensor | int = 0,
    ) -> dict[str, tf.Tensor]:
        """Logits float32 [N] of each head, without the position bias."""
        request = tf.concat(
            [self._part(f, features[f.name]) for f in self._of_request], axis=1
        )
        candidate = tf.concat(
            [
                self._part(f, tf.gather_nd(features[f.name], slots))
                for f in self._of_candidate
            ],
            axis=1,
        )
        row = slots[:, 0]
        first = self.tower.layers[0]
        # [request, candidate] W = request W_q + candidate W_c: the first
        # product has B rows, not N.
        w_q = first.kernel[: self._request_width]
        w_c = first.kernel[self._request_width :]
        by_request = tf.matmul(request, w_q) + first.bias
        hidden = tf.nn.relu(
            tf.gather(by_request, row) + tf.matmul(candidate, w_c)
        )
        dropped = training and self.config.dropout > 0.0
        for i, layer in enumerate(self.tower.layers):
            hidden = layer(hidden) if i > 0 else hidden
            if dropped:
                kept = self._kept(features, layer.units, (step, i))
                hidden *= tf.gather(kept, row)
        logits = tf.unstack(self.head(hidden), len(self.heads), axis=1)
        return dict(zip(self.heads, logits, strict=True))

    def _kept(
        self, inputs: Tensors, units: int, key: tuple[tf.Tensor | int, int]
    ) -> tf.Tensor:
        """Inverted dropout [B, units]: the same units all over a request.

        So its candidates are compared on equal terms, and the draw does not
        depend on how requests are spread over workers.
        """
        index = inputs[EXAMPLE_INDEX]
        shape = tf.stack([tf.size(index), units])
        uniform = row_uniform(shape, (self.seed, *key), index[0])
        kept = tf.cast(uniform >= self.config.dropout, tf.float32)
        return kept / (1.0 - self.config.dropout)

    def _bias(
        self,
        inputs: Tensors,
        slots: tf.Tensor,
        training: bool = False,
        step: tf.Tensor | int = 0,
    ) -> tf.Tensor | float:
        """What position and device add to the click's logit, [N]."""
        if self.position_bias is None:
            return 0.0
        row = slots[:, 0]
        position = device = tf.zeros_like(row)
        if training:
            seen = self.position_bias.seen_positions(
                inputs["position"], step, inputs[EXAMPLE_INDEX][0]
            )
            position = tf.gather_nd(seen, slots)
        if _DEVICE in inputs:
            device = tf.gather(inputs[_DEVICE], row)
        return self.position_bias(position, device)

    def _part(self, feature: Feature, values: tf.Tensor) -> tf.Tensor:
        """A feature's share of the first layer's input, [rows, width]."""
        if feature.space is None:
            return values
        if feature.kind == "categorical":
            return self.embeddings.lookup(feature.space, values)
        if feature.name != _HISTORY:
            return self.embeddings.mean_bag(feature.space, values)
        # The last watch says more than the mean of fifty.
        bags = self.embeddings.mean_bags(feature.space, values, (None, 1))
        return tf.reshape(bags, [-1, self._width(feature)])

    def _width(self, feature: Feature) -> int:
        if feature.space is None:
            return CONTINUOUS_WIDTH
        bags = 2 if feature.name == _HISTORY else 1
        return bags * self._dim(feature.space)

    def _dim(self, space: str) -> int:
        return embedding_dim(self._sizes[space], self.config.max_embedding_dim)

    def _shape(self, features: Tensors) -> tf.Tensor:
        """[B, C] as int64 [2]."""
        values = features[self._of_candidate[0].name]
        return tf.shape(values, out_type=tf.int64)[:2]

    def _slots(self, features: Tensors) -> tf.Tensor:
        """(request, slot) of each candidate without padding, int64 [N, 2]."""
        shape = self._shape(features)
        count = features.get(COUNT, tf.fill(shape[:1], shape[1]))
        return tf.where(tf.sequence_mask(count, shape[1]))
