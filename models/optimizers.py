"""Optimisers whose step touches only the rows that occur in it.

A step's cost depends on the batch, the bags, the dimension and the sampled
negatives, never on the number of classes: no operation reads, writes or sends
a whole table. Stock Adam moves every row of a table at every step (1.8 s at
1M x 256); these rules move the rows of the gradient (the paper's corpus has
millions of classes).

Both are `keras.optimizers.Optimizer`s, so distribution strategies, checkpoint
and learning rate work as usual. A gradient is a `tf.IndexedSlices`; its
duplicate rows are added before anything else, on each worker before they are
sent and again after they are gathered: merged rows make scattering
deterministic and the traffic small. A dense gradient (a full softmax, for
comparison) is taken as one of all rows.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from models.embeddings import local_component
from models.keras_setup import keras, tf
from models.loss_scale import Skipping
from models.rows import gathered, in_xla, merge_rows


def table_optimizer(
    name: Literal["rowwise_adagrad", "lazy_adam"], learning_rate: float
) -> "RowOptimizer":
    """Returns the optimiser that the configuration names.

    Raises:
      ValueError: there is none of that name.
    """
    if name == "rowwise_adagrad":
        return RowwiseAdagrad(learning_rate)
    if name == "lazy_adam":
        return LazyAdam(learning_rate)
    raise ValueError(
        "`table_optimizer` must be 'rowwise_adagrad' or 'lazy_adam', "
        f"received {name!r}."
    )


class RowOptimizer(Skipping):
    """Base of the row rules: merges rows, then updates row by row."""

    def __init__(self, learning_rate: float, name: str) -> None:
        # weight_decay=0, the default, would still read the whole table.
        super().__init__(name=name, weight_decay=None, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)

    def aggregate_gradients(self, grads_and_vars: Any) -> Any:
        """Sums gradients over the replicas; only merged rows are sent."""
        return super().aggregate_gradients(
            [(_as_rows(g), v) for g, v in grads_and_vars]
        )

    def _deduplicate_sparse_grad(self, grads: Sequence[Any]) -> list[Any]:
        # One replica's rows are merged already; gathered ones are not.
        if self._distribution_strategy.num_replicas_in_sync == 1:
            return list(grads)
        return [merge_rows(g) for g in grads]

    def _slots(self, per_variable: list[tf.Variable], variable: Any) -> Any:
        """This replica's copy of an optimiser variable of a table."""
        index = self._index_dict[self._var_key(variable)]
        return local_component(per_variable[index])

    def get_config(self) -> dict[str, Any]:
        """Plain values that rebuild the optimiser."""
        rate = self._serialize_hyperparameter(self._learning_rate)
        return {**super().get_config(), "learning_rate": rate}


class RowwiseAdagrad(RowOptimizer):
    """Adagrad with one accumulator per row.

    a[r] += mean_d(g[r, d]^2);  w[r] -= learning_rate g[r] / (sqrt(a[r]) + eps)

    One float of state per row instead of one per weight.
    """

    def __init__(
        self,
        learning_rate: float = 0.05,
        epsilon: float = 1e-8,
        name: str = "RowwiseAdagrad",
    ) -> None:
        super().__init__(learning_rate, name)
        self.epsilon = epsilon

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates the accumulators, float32 [rows] each."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._accumulators = [
            self.add_variable_from_reference(v, "accumulator", v.shape[:1])
            for v in var_list
        ]
        self._built = True

    def change(self, gradient: tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates the gradient's rows of one table."""
        rows, values = gradient.indices, gradient.values
        accumulator = self._slots(self._accumulators, variable)
        # Rows from several replicas have lost their static width.
        values = tf.ensure_shape(values, [None, *variable.shape[1:]])
        total = tf.gather(accumulator, rows) + _mean_square(values)
        accumulator.scatter_update(tf.IndexedSlices(total, rows))
        scale = self.learning_rate / (tf.sqrt(total) + self.epsilon)
        _subtract(variable, rows, _per_row(scale, values) * values)


class LazyAdam(RowOptimizer):
    """Adam in each row's own time.

    A row's moments, and the number t[r] of updates that corrects their bias,
    advance only in steps whose gradient has the row. So each row sees plain
    Adam on the sequence of its own gradients; a row seen first at step 10,000
    is corrected like one seen first at step 1. (Correcting by the global step
    would make that row's first move three times too large: m / sqrt(v) =
    0.1 g / sqrt(0.001 g^2) = 3.2.)
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        name: str = "LazyAdam",
    ) -> None:
        super().__init__(learning_rate, name)
        self.beta_1, self.beta_2 = beta_1, beta_2
        self.epsilon = epsilon

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Creates two moments [rows, D] and a count [rows] per table."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        add = self.add_variable_from_reference
        self._firsts = [add(v, "first_moment") for v in var_list]
        self._seconds = [add(v, "second_moment") for v in var_list]
        self._counts = [add(v, "updates", v.shape[:1]) for v in var_list]
        self._built = True

    def change(self, gradient: tf.IndexedSlices, variable: tf.Variable) -> None:
        """Updates the gradient's rows of one table."""
        rows, values = gradient.indices, gradient.values
        firsts = self._slots(self._firsts, variable)
        seconds = self._slots(self._seconds, variable)
        counts = self._slots(self._counts, variable)
        count = tf.gather(counts, rows) + 1.0
        first = tf.gather(firsts, rows)
        first += (1.0 - self.beta_1) * (values - first)
        second = tf.gather(seconds, rows)
        second += (1.0 - self.beta_2) * (values**2 - second)
        counts.scatter_update(tf.IndexedSlices(count, rows))
        firsts.scatter_update(tf.IndexedSlices(first, rows))
        seconds.scatter_update(tf.IndexedSlices(second, rows))
        # lr m^ / (sqrt(v^) + eps), the corrections folded into one scalar a
        # row as in Adam's paper, section 2.
        root = tf.sqrt(_one_minus_power(self.beta_2, count))
        unbias = root / _one_minus_power(self.beta_1, count)
        scale = self.learning_rate * unbias
        spread = tf.sqrt(second) + self.epsilon * _per_row(root, values)
        change = _per_row(scale, values) * first / spread
        _subtract(variable, rows, change)


class DenseAdam(Skipping, keras.optimizers.Adam):
    """Adam for weights that every step updates as a whole.

    The rule and the state are those of the base class; here one fused
    operation reads and writes each weight once.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        name: str = "DenseAdam",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("jit_compile", False)
        super().__init__(learning_rate, name=name, **kwargs)

    def change(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable by its dense gradient."""
        index = self._index_dict[self._var_key(variable)]
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=local_component(self._momentums[index]).handle,
            v=local_component(self._velocities[index]).handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=tf.cast(self.learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def _as_rows(gradient: tf.Tensor | tf.IndexedSlices | None) -> Any:
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return merge_rows(gradient)
    shape = tf.shape(gradient, out_type=tf.int64)
    return tf.IndexedSlices(gradient, tf.range(shape[0]), shape)


def _one_minus_power(beta: float, count: tf.Tensor) -> tf.Tensor:
    """1 - beta^count; written out, 1 - 0.999 has four digits in float32."""
    return -tf.math.expm1(count * math.log(beta))


def _mean_square(values: tf.Tensor) -> tf.Tensor:
    """Mean square over all axes but the first, [n]."""
    axes = list(range(1, values.shape.rank))
    if not axes or in_xla():
        return tf.reduce_mean(values**2, axis=axes)
    # One pass; `values**2` would be written out. XLA fuses that, and has no
    # such norm.
    norm = tf.math.reduce_euclidean_norm(values, axis=axes)
    return norm**2 / math.prod(values.shape[1:])


def _subtract(
    variable: tf.Variable, rows: tf.Tensor, change: tf.Tensor
) -> None:
    """Subtracts from distinct rows.

    Writing new rows is a copy of memory; `scatter_sub` goes through each row
    by itself and takes three times as long.
    """
    updated = gathered(variable, rows) - change
    variable.scatter_update(tf.IndexedSlices(updated, rows))


def _per_row(scale: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Reshapes [n] so that it multiplies the rows of values [n, ...]."""
    return tf.reshape(scale, [-1] + [1] * (values.shape.rank - 1))
