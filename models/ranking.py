"""The ranking model: how long would this user watch each candidate?

In: transformed features of B requests with C candidates each. Out: expected
watch time, the probability of each binary task, and one score per candidate
(Covington et al. 2016, section 4; Zhao et al. 2019, section 4.2).

    query, request features [B, Q] --W_q--> [B, U] --gather--+
                                                             +--ReLU ... heads
    candidate features [N, P] --------------W_c----> [N, U] -+

N counts the batch's impressions without padding. What belongs to a request
costs once a request, however many candidates it has. Between the shared layers
and the heads there may be a mixture of experts (`models.experts`); beside all
layers, crossed features may add to the heads' logits (`models.crosses`).
"""

from collections.abc import Callable, Mapping, Sequence

from models import ranking_tasks
from models.crosses import Crosses
from models.experts import Experts
from models.inputs import EXAMPLE_INDEX
from models.keras_setup import keras, tf, tfrs
from models.position_bias import PositionBias
from models.precision import compute_dtype, dense
from models.ranking_inputs import RankingInputs, Tensors
from models.request_dropout import kept_embeddings, kept_units
from models.saved_weights import read_weights, reading_model, write_model
from models.towers import Tower
from schemas.features import FeatureSet, from_json, to_json
from schemas.model_config import RankingConfig

COUNT = "candidate_count"
# What the position's bias depends on beside the position, as far as known.
_PLACE = ("user_device", "surface")

Drop = Callable[[tf.Tensor, int], tf.Tensor]


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
      ValueError: a space without a size, or no candidate features.
      UsageError: a task, weight, score or cross of the wide part that names
        what does not exist.
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
        self._inputs = RankingInputs(
            features, sizes, config.max_embedding_dim, seed, config.powers
        )
        self.embeddings = self._inputs.embeddings
        self.tower = Tower(
            sum(self._inputs.widths.values()),
            config.hidden_units,
            "relu",
            seed=seed,
            name="ranking_tower",
        )
        width = self.tower.output_dim
        self.experts: Experts | None = None
        if config.experts is not None:
            tasks = len(self.heads)
            self.experts = Experts(width, tasks, config.experts, seed)
            width = self.experts.output_dim
        self.head = keras.layers.Dense(
            len(self.heads),
            kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            name="heads",
        )
        self.head.build([None, width])
        start = initial_bias or {}
        self.head.bias.assign([start.get(h, 0.0) for h in self.heads])
        self.wide: Crosses | None = None
        if config.wide:
            self.wide = Crosses(
                features,
                self._inputs.sizes,
                config.wide,
                config.wide_buckets,
                len(self.heads),
            )
        self.position_bias: PositionBias | None = None
        if positions and config.position_tower and "clicked" in self.heads:
            devices, surfaces = map(self._inputs.terms, _PLACE)
            self.position_bias = PositionBias(
                devices, surfaces, config.position_dropout, seed
            )

    @property
    def input_widths(self) -> dict[str, int]:
        """Feature -> its share of the first layer's input."""
        return self._inputs.widths

    @property
    def table_variables(self) -> tuple[tf.Variable, ...]:
        """Variables whose rows are updated sparsely."""
        wide = () if self.wide is None else self.wide.table_variables
        return (*self.embeddings.table_variables, *wide)

    @property
    def dense_variables(self) -> tuple[tf.Variable, ...]:
        """Variables that every step updates as a whole."""
        optional = (self.experts, self.position_bias)
        parts = (self.tower, self.head, *(p for p in optional if p is not None))
        return tuple(v for part in parts for v in part.trainable_variables)

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
        names = dict.fromkeys(("clicked", "watch_time_s", *self.config.tasks))
        labels = {n: tf.gather_nd(inputs[n], slots) for n in names}
        losses = {}
        for head, logit in logits.items():
            if head == "clicked":
                logit += self._bias(inputs, slots, training, step)
            loss = ranking_tasks.loss(head, logit, labels, self.config)
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
          probability, or rating (above 0), by its name; `score`, the product
          of the outputs to the powers `score_weights` (2019, section 4.2).
        """
        slots = self._slots(features)
        logs = {}
        for head, logit in self._logits(features, slots).items():
            if head == "clicked":
                logit += self._bias(features, slots)
            name = ranking_tasks.output_name(head, self.config)
            logs[name] = ranking_tasks.log_prediction(head, logit, self.config)
        # In logarithms a product of small probabilities does not vanish.
        logs["score"] = tf.add_n(
            [w * logs[name] for name, w in self.config.score_weights.items()]
        )
        shape = self._inputs.shape(features)
        return {
            name: tf.scatter_nd(slots, tf.exp(log), shape)
            for name, log in logs.items()
        }

    def call(self, inputs: Tensors) -> dict[str, tf.Tensor]:
        """Same as `predict`."""
        return self.predict(inputs)

    def expert_sums(self, features: Tensors) -> dict[str, tf.Tensor]:
        """Sums over a batch's impressions, of which evaluation makes means.

        Args:
          features: as for `predict`; the model must have experts.

        Returns:
          `weights` float32 [T, E]: what each task's gate gives each expert;
          `zeros` float32 [E]: the share of the units of an expert's last
          layer that are 0; `impressions` int64 [].
        """
        assert self.experts is not None
        slots = self._slots(features)
        x = self._shared(features, slots, _no_drop)
        outputs = self.experts.outputs(x, _no_drop)
        zeros = [tf.cast(output == 0.0, tf.float32) for output in outputs]
        shares = [tf.reduce_sum(tf.reduce_mean(z, axis=1)) for z in zeros]
        return {
            "weights": tf.reduce_sum(self.experts.weights(x), axis=0),
            "zeros": tf.stack(shares),
            "impressions": tf.shape(slots, out_type=tf.int64)[0],
        }

    def save(self, folder: str) -> None:  # type: ignore[override]
        """Writes `model.json` and the weights; no optimiser, no step."""
        description = {
            "features": to_json(self.features),
            # Plain values: Keras wraps what is assigned to a model.
            "sizes": dict(self._inputs.sizes),
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
        if self.experts is not None:
            parts["experts"] = self.experts
        if self.wide is not None:
            parts["wide"] = self.wide
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
        row = slots[:, 0]

        def dropped(hidden: tf.Tensor, number: int) -> tf.Tensor:
            kept = kept_units(
                features[EXAMPLE_INDEX],
                hidden.shape[1],
                (self.seed, step, number),
                self.config.dropout,
            )
            return hidden * tf.cast(tf.gather(kept, row), hidden.dtype)

        drop = dropped if training and self.config.dropout else _no_drop
        dtype = compute_dtype(self.config.precision, training)
        known = None
        if training and self.config.embedding_dropout:
            known = kept_embeddings(
                features[EXAMPLE_INDEX],
                len(self._inputs.dropped),
                (self.seed, step),
                self.config.embedding_dropout,
            )
        x = self._shared(features, slots, drop, dtype, known)
        if self.experts is None:
            logits = self.head(x)
        else:
            kept = None
            if training and self.experts.config.gate_dropout:
                index = features[EXAMPLE_INDEX]
                kept = self.experts.kept(tf.size(index), step, index[0])
                kept = tf.gather(kept, row)
            shared = len(self.tower.layers)
            outputs = self.experts.outputs(
                x, lambda h, i: drop(h, shared + i), dtype
            )
            weights = self.experts.weights(x, kept)
            logits = self.experts.logits(outputs, weights, self.head)
        if self.wide is not None:
            logits += self.wide(features, slots)
        by_head = tf.unstack(logits, len(self.heads), axis=1)
        return dict(zip(self.heads, by_head, strict=True))

    def _shared(
        self,
        features: Tensors,
        slots: tf.Tensor,
        drop: Drop,
        dtype: tf.DType = tf.float32,
        known: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The shared layers' output, float32 [N, U], computed in a dtype."""
        request = self._inputs.request(features)
        candidate = self._inputs.candidate(features, slots)
        if known is not None:
            request *= tf.gather(known, self._inputs.request_owner, axis=1)
            of_row = tf.gather(known, slots[:, 0])
            candidate *= tf.gather(of_row, self._inputs.candidate_owner, axis=1)
        request, candidate = (tf.cast(x, dtype) for x in (request, candidate))
        if not self.tower.layers:
            of_rows = tf.gather(request, slots[:, 0])
            return tf.cast(tf.concat([of_rows, candidate], axis=1), tf.float32)
        first, *others = self.tower.layers
        # [request, candidate] W = request W_q + candidate W_c: the first
        # product has B rows, not N.
        kernel, bias = (tf.cast(w, dtype) for w in (first.kernel, first.bias))
        w_q, w_c = tf.split(kernel, [self._inputs.request_width, -1])
        by_request = tf.gather(tf.matmul(request, w_q) + bias, slots[:, 0])
        hidden = drop(tf.nn.relu(by_request + tf.matmul(candidate, w_c)), 0)
        for i, layer in enumerate(others, 1):
            hidden = drop(dense(layer, hidden, dtype), i)
        return tf.cast(hidden, tf.float32)

    def _bias(
        self,
        inputs: Tensors,
        slots: tf.Tensor,
        training: bool = False,
        step: tf.Tensor | int = 0,
    ) -> tf.Tensor | float:
        """What the position adds to the click's logit, [N]."""
        if self.position_bias is None:
            return 0.0
        row = slots[:, 0]
        position = not_known = tf.zeros_like(row)
        if training:
            seen = self.position_bias.seen_positions(
                inputs["position"], step, inputs[EXAMPLE_INDEX][0]
            )
            position = tf.gather_nd(seen, slots)
        place = [
            tf.gather(inputs[name], row)
            if self._inputs.terms(name)
            else not_known
            for name in _PLACE
        ]
        return self.position_bias(position, *place)

    def _slots(self, features: Tensors) -> tf.Tensor:
        """(request, slot) of each candidate without padding, int64 [N, 2]."""
        shape = self._inputs.shape(features)
        count = features.get(COUNT, tf.fill(shape[:1], shape[1]))
        return tf.where(tf.sequence_mask(count, shape[1]))


def _no_drop(hidden: tf.Tensor, number: int) -> tf.Tensor:
    return hidden
