"""One training loop for both models.

Whatever a step draws (order of the examples, negatives, dropout) is a pure
function of (seed, step, row), so a run that is stopped and resumed ends with
the same bits as one that was not, and N workers with one worker's tables.
"""

import contextlib
import dataclasses
import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

from models.embeddings import local_component
from models.keras_setup import keras, tf
from models.optimizers import table_optimizer
from pipeline.distribution import current_task
from pipeline.training_norms import embedding_norms, roots, squares_of
from pipeline.training_report import TrainingReport
from schemas.errors import InputError, WatchnextError

Batch = Mapping[str, Any]
# Losses are looked at in groups: reading each would wait for each step.
_CHECK_EVERY = 50


class Trainable(Protocol):
    """What the loop asks of a model (a `tfrs.Model`)."""

    @property
    def table_variables(self) -> tuple[tf.Variable, ...]:
        """Embedding tables and alike, whose rows are updated sparsely."""

    @property
    def dense_variables(self) -> tuple[tf.Variable, ...]:
        """All other weights."""

    def compute_loss(
        self,
        inputs: Batch,
        *,
        training: bool,
        step: tf.Tensor,
        global_batch_size: int,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns sum over the rows / global batch size, and such metrics."""


class TrainingSection(Protocol):
    """The fields that the sections `retrieval` and `ranking` share."""

    @property
    def table_optimizer(self) -> Literal["rowwise_adagrad", "lazy_adam"]: ...
    @property
    def table_learning_rate(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def patience(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """The model with its best epoch's weights.

    `history` has the metrics of each epoch, from 1 on: `train_loss`, the mean
    over the steps, and whatever the evaluation gave; workers other than the
    chief have only the metric that was watched.
    """

    model: Any
    best_epoch: int
    history: list[dict[str, float]]


@dataclasses.dataclass
class _State:
    """Where the run is; saved inside each checkpoint, as JSON."""

    epoch: int = 1
    batches: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_epoch: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    finished: bool = False


def train(
    build_model: Callable[[], Any],
    make_dataset: Callable[[int, int], tf.data.Dataset],
    evaluate: Callable[[Any], Mapping[str, float]],
    *,
    metric: str,
    higher_is_better: bool = True,
    config: TrainingSection,
    workdir: str,
    strategy: tf.distribute.Strategy,
    progress: bool = True,
    stop_after_steps: int | None = None,
) -> TrainingResult:
    """Trains until the epochs or the patience run out.

    Args:
      build_model: called once, under the strategy; gives a `Trainable`.
      make_dataset: (epoch from 1, batches to skip) -> this process's part of
        the epoch's batches, of equal size; see `models.inputs.dataset` and
        `distribution.worker_rows`.
      evaluate: model -> validation metrics, called by the chief after each
        epoch; must have no part in training.
      metric: the one that decides on the best epoch and on stopping.
      higher_is_better: its sense.
      config: the model's section.
      workdir: folder of checkpoints and TensorBoard logs; holds one run, and
        an unfinished one is resumed.
      strategy: how the steps are distributed.
      progress: whether the chief shows progress.
      stop_after_steps: leave with a checkpoint once so many steps are done,
        as if interrupted.

    Returns:
      The model, its best epoch and the history.

    Raises:
      InputError: an epoch without a single batch.
      WatchnextError: the loss or the metric is not finite, or the metric is
        missing.
    """
    run = _Run(build_model, config, workdir, strategy)
    model, state = run.model, run.restore()
    sign = 1.0 if higher_is_better else -1.0
    chief = current_task().is_chief
    with run.report(progress and chief) as report:
        while not state.finished:
            dataset = make_dataset(state.epoch, state.batches)
            run.epoch(dataset, report, stop_after_steps)
            if stop_after_steps is not None and state.step >= stop_after_steps:
                break
            values = dict(evaluate(model)) if chief else {metric: 0.0}
            if metric not in values:
                raise WatchnextError(
                    f"Training watches {metric!r}, but the evaluation gave "
                    f"{', '.join(values)}."
                )
            # The chief's number decides, so that all stop at one epoch.
            values[metric] = run.from_chief(values[metric])
            if not math.isfinite(values[metric]):
                raise WatchnextError(
                    f"The evaluation's {metric!r} is {values[metric]} after "
                    f"epoch {state.epoch}; are there validation examples?"
                )
            run.end_epoch(values, metric, sign)
            norms = embedding_norms(model.table_variables) if chief else {}
            report.epoch(state.epoch - 1, state.history[-1] | norms, metric)
    if state.best_epoch:
        run.from_chief(0.0)  # Wait until the chief has written it.
        run.restore_best()
    return TrainingResult(model, state.best_epoch, state.history)


class _Run:
    """Model, optimisers, state and where they are kept."""

    def __init__(
        self,
        build_model: Callable[[], Any],
        config: TrainingSection,
        workdir: str,
        strategy: tf.distribute.Strategy,
    ) -> None:
        self.config, self.strategy, self._workdir = config, strategy, workdir
        self.state = _State()
        # Outside of the strategy: it mirrors no strings.
        self._saved_state = tf.Variable("", dtype=tf.string, trainable=False)
        with strategy.scope():
            self.model = model = build_model()
            self.tables = table_optimizer(
                config.table_optimizer, config.table_learning_rate
            )
            self.dense = keras.optimizers.Adam(
                config.learning_rate, jit_compile=False
            )
            # Before they are tracked: they list their variables once.
            self.tables.build(model.table_variables)
            self.dense.build(model.dense_variables)
        self._best = tf.train.Checkpoint(
            tables=list(model.table_variables),
            dense=list(model.dense_variables),
        )
        self._checkpoint = tf.train.Checkpoint(
            weights=self._best,
            table_optimizer=self.tables,
            dense_optimizer=self.dense,
            state=self._saved_state,
        )
        self._train_step = tf.function(self._distributed_step)

    def restore(self) -> _State:
        """Takes up the chief's last checkpoint, if there is one."""
        latest = tf.train.latest_checkpoint(self._path("checkpoints"))
        if latest is not None:
            self._checkpoint.restore(latest).assert_consumed()
            saved = json.loads(self._saved_state.numpy().decode())
            self.state = _State(**saved)
        return self.state

    def restore_best(self) -> None:
        """Gives the model the weights of its best epoch."""
        path = self._path(f"best-{self.state.best_epoch}")
        self._best.read(path).assert_consumed()

    def from_chief(self, value: float) -> float:
        """Returns the chief's number on every worker."""
        if current_task().num_workers == 1:
            return value
        mine = value if current_task().is_chief else 0.0

        def share() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # Only the first of a chief's replicas counts.
            first = tf.cast(context.replica_id_in_sync_group == 0, tf.float64)
            return context.all_reduce(
                "sum", tf.constant(mine, tf.float64) * first
            )

        shared = self.strategy.run(tf.function(share))
        return float(self.strategy.experimental_local_results(shared)[0])

    def epoch(
        self, dataset: tf.data.Dataset, report: TrainingReport, stop: int | None
    ) -> None:
        """Runs the rest of an epoch, or up to step `stop`."""
        state, recent = self.state, []
        for batch in self._local_batches(dataset):
            step = tf.constant(state.step, tf.int64)
            # A graph of its own; by the step alone, for exact resumption.
            norms = (state.step + 1) % _CHECK_EVERY == 0
            recent.append(self._train_step(batch, step, norms))
            state.step += 1
            state.batches += 1
            save = state.step % self.config.checkpoint_every == 0
            if save or state.step == stop or len(recent) == _CHECK_EVERY:
                self._check(recent, report)
                recent = []
            if save or state.step == stop:
                self._save()
            if state.step == stop:
                return
        self._check(recent, report)
        if not state.batches:
            raise InputError(
                "The training examples do not fill one batch of "
                f"{self.config.batch_size}; lower `batch_size` or add data."
            )

    def end_epoch(
        self, values: Mapping[str, float], metric: str, sign: float
    ) -> None:
        """Notes the epoch's metrics, keeps the best weights, saves."""
        state = self.state
        loss = state.loss_sum / state.batches
        state.history.append({**values, "train_loss": loss})
        best = state.history[max(state.best_epoch, 1) - 1][metric]
        superseded = None
        if not state.best_epoch or sign * values[metric] > sign * best:
            superseded, state.best_epoch = state.best_epoch, state.epoch
            self._write_best()
        waited = state.epoch - state.best_epoch
        state.finished = (
            state.epoch >= self.config.epochs or waited >= self.config.patience
        )
        state.epoch += 1
        state.batches, state.loss_sum = 0, 0.0
        self._save()
        if superseded and current_task().is_chief:
            old = self._path(f"best-{superseded}")
            for file in tf.io.gfile.glob(f"{old}.*"):
                tf.io.gfile.remove(file)

    @contextlib.contextmanager
    def report(self, shown: bool) -> Iterator[TrainingReport]:
        """Opens the run's progress and TensorBoard logs."""
        writer = tf.summary.create_noop_writer()
        if current_task().is_chief:
            writer = tf.summary.create_file_writer(self._path("logs"))
        with (
            writer.as_default(),
            TrainingReport(
                self.config.epochs, self.config.batch_size, shown
            ) as report,
        ):
            yield report

    def _local_batches(self, dataset: tf.data.Dataset) -> Iterator[Any]:
        """One batch per replica of this process, from consecutive ones."""
        tasks = current_task().num_workers
        replicas = self.strategy.num_replicas_in_sync // tasks
        if replicas == 1:
            yield from dataset
            return
        source = iter(dataset)
        distribute = self.strategy.experimental_distribute_values_from_function
        while True:
            parts = [b for _, b in zip(range(replicas), source, strict=False)]
            if len(parts) < replicas:
                return
            ready = iter(parts)
            yield distribute(lambda _, ready=ready: next(ready))

    def _distributed_step(
        self, batch: Any, step: tf.Tensor, norms: bool
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        results = self.strategy.run(self._replica_step, (batch, step, norms))
        total = functools.partial(self.strategy.reduce, "sum", axis=None)
        loss, metrics, squares = tf.nest.map_structure(total, results)
        return loss, metrics | roots(squares)

    def _replica_step(
        self, batch: Batch, step: tf.Tensor, norms: bool
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        tables = self.model.table_variables
        dense = self.model.dense_variables
        with tf.GradientTape() as tape:
            loss, metrics = self.model.compute_loss(
                batch,
                training=True,
                step=step,
                global_batch_size=self.config.batch_size,
            )
        # Rows were gathered from this replica's copies: see embeddings.
        copies = [local_component(table) for table in tables]
        row_grads, dense_grads = tape.gradient(loss, (copies, list(dense)))
        self.tables.apply_gradients(_present(row_grads, tables))
        self.dense.apply_gradients(_present(dense_grads, dense))
        squares = squares_of(tables, row_grads, dense_grads) if norms else {}
        return loss, metrics, squares

    def _check(self, recent: list[Any], report: TrainingReport) -> None:
        """Adds up and reports the last steps' losses."""
        first = self.state.step - len(recent)
        for i, (loss, _) in enumerate(recent):
            if not math.isfinite(float(loss)):
                raise WatchnextError(
                    f"The loss is {float(loss)} at step {first + i}. Lower "
                    "`learning_rate` or `table_learning_rate`, or look for "
                    "values that are not finite in the examples."
                )
            self.state.loss_sum += float(loss)
        if recent:
            loss = sum(float(loss) for loss, _ in recent) / len(recent)
            values = {k: v for _, m in recent for k, v in m.items()}
            report.steps(self.state.epoch, self.state.step, loss, values)

    def _save(self) -> None:
        """Writes a checkpoint; two are kept."""
        state = json.dumps(dataclasses.asdict(self.state))
        self._saved_state.assign(state)
        with self._written("checkpoints") as folder:
            manager = tf.train.CheckpointManager(
                self._checkpoint, folder, 2, checkpoint_name="step"
            )
            manager.save(checkpoint_number=self.state.step)

    def _write_best(self) -> None:
        with self._written("") as folder:
            name = f"best-{self.state.best_epoch}"
            self._best.write(tf.io.gfile.join(folder, name))

    @contextlib.contextmanager
    def _written(self, name: str) -> Iterator[str]:
        """The folder to write to: the chief's own; others' is thrown away."""
        if current_task().is_chief:
            tf.io.gfile.makedirs(self._path(name))
            yield self._path(name)
            return
        # All take part, as TensorFlow asks for, but one result is kept.
        folder = tempfile.mkdtemp()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, name: str) -> str:
        return str(tf.io.gfile.join(self._workdir, name))


def _present(gradients: Any, variables: Any) -> list[tuple[Any, Any]]:
    """Pairs, without the variables that the loss does not use."""
    pairs = zip(gradients, variables, strict=True)
    return [(g, v) for g, v in pairs if g is not None]
