"""One training loop for both models.

Whatever a step draws (order of the examples, negatives, dropout) is a pure
function of (seed, step, row), so a run that is stopped and resumed ends with
the same bits as one that was not, and N workers with one worker's tables.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from models.keras_setup import tf
from models.norms import embedding_norms
from pipeline.checkpoints import Checkpoints
from pipeline.cluster import current_task
from pipeline.console import say
from pipeline.distributed_steps import (
    CHECK_EVERY,
    DistributedSteps,
    TrainingSection,
)
from pipeline.interruption import Interrupted, SignalWatch
from pipeline.tensorboard_logs import (
    Profile,
    ProfileSteps,
    write_histograms,
    write_result,
    write_settings,
)
from pipeline.training_report import TrainingReport
from pipeline.workers_health import naming_lost_workers
from schemas.errors import InputError, WatchnextError

# Steps after which workers look whether one of them was told to stop: by then
# the number is there, and reading it waits for nothing.
_LAG = 4


class DivergedError(WatchnextError):
    """A loss or a metric is not finite any more."""


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
    """Where the run is; saved with each checkpoint, as JSON."""

    epoch: int = 1
    batches: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_epoch: int = 0
    best_step: int = 0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    finished: bool = False


def train(
    build_model: Callable[[], Any],
    make_dataset: Callable[[int, int], tf.data.Dataset],
    evaluate: Callable[[Any], Mapping[str, float]],
    *,
    metric: str | None,
    higher_is_better: bool = True,
    config: TrainingSection,
    workdir: str,
    strategy: tf.distribute.Strategy,
    progress: bool = True,
    total_steps: int | None = None,
    stop_after_steps: int | None = None,
    after_epoch: Callable[[Sequence[dict[str, float]]], None] | None = None,
    profile: ProfileSteps | None = None,
) -> TrainingResult:
    """Trains until the epochs or the patience run out.

    Args:
      build_model: called once, under the strategy; gives a
        `models.training_step.Trainable`.
      make_dataset: (epoch from 1, batches to skip) -> this process's part of
        the epoch's batches, of equal size; see
        `models.lanes.training_dataset` and `distribution.worker_rows`.
      evaluate: model -> validation metrics, called by the chief after each
        epoch; must have no part in training.
      metric: the one that decides on the best epoch and on stopping; None
        evaluates nothing, and the last epoch is the best.
      higher_is_better: its sense.
      config: the model's section.
      workdir: folder of checkpoints and TensorBoard logs; holds one run, and
        an unfinished one is resumed.
      strategy: how the steps are distributed.
      progress: whether the chief shows progress.
      total_steps: of all epochs; where `schedule: cosine` ends.
      stop_after_steps: leave with a checkpoint once so many steps are done,
        as if interrupted.
      after_epoch: given the history after each epoch, once it is saved, and
        at first where a run is resumed; what it raises ends the run.
      profile: steps that the chief records for TensorBoard's profiler.

    Returns:
      The model, its best epoch and the history.

    Raises:
      InputError: an epoch without a single batch.
      Interrupted: by SIGTERM or SIGINT, to any worker; all have stopped at
        one step, which is saved.
      LostWorkerError: another worker is dead or hangs.
      DivergedError: the loss or the metric is not finite.
      WatchnextError: the metric is missing.
    """
    sign = 1.0 if higher_is_better else -1.0
    with SignalWatch() as signals:
        with naming_lost_workers():
            run = _Run(
                build_model,
                config,
                workdir,
                strategy,
                signals,
                total_steps,
                profile if current_task().is_chief else None,
            )
            model, state = run.model, run.restore()
            with run.report(progress and current_task().is_chief) as report:
                if after_epoch and state.history:
                    after_epoch(state.history)
                while not state.finished:
                    dataset = make_dataset(state.epoch, state.batches)
                    run.epoch(dataset, report, stop_after_steps)
                    if state.step == stop_after_steps:
                        break
                    values = run.evaluate(evaluate, metric) if metric else {}
                    run.end_epoch(values, metric, sign)
                    run.tell_epoch(report, metric)
                    if after_epoch:
                        after_epoch(state.history)
                run.tell_end(metric)
            run.from_chief(0.0)  # Wait until the chief has written it all.
        if state.best_epoch:
            run.restore_best()
        if signals.received is not None:
            raise run.interrupted()
    return TrainingResult(model, state.best_epoch, state.history)


class _Run:
    """Model, optimisers, state and where they are kept."""

    def __init__(
        self,
        build_model: Callable[[], Any],
        config: TrainingSection,
        workdir: str,
        strategy: tf.distribute.Strategy,
        signals: SignalWatch,
        total_steps: int | None,
        profile: ProfileSteps | None,
    ) -> None:
        self.config, self.strategy, self._workdir = config, strategy, workdir
        self.state = _State()
        self._signals, self._told_to_stop = signals, False
        self._profile = Profile(self._path("logs"), profile)
        with strategy.scope():
            self.model = model = build_model()
            self._steps = DistributedSteps(model, config, strategy, total_steps)
            scale = self._steps.loss_scale
        tracked = tf.train.Checkpoint(
            tables=list(model.table_variables),
            dense=list(model.dense_variables),
            table_optimizer=self._steps.optimizers[0],
            dense_optimizer=self._steps.optimizers[1],
            **({"loss_scale": scale} if scale is not None else {}),
        )
        self._checkpoints = Checkpoints(self._path("checkpoints"), tracked)

    def restore(self) -> _State:
        """Takes up the chief's last good checkpoint, if there is one."""
        newest = None
        if current_task().is_chief:
            newest = self._checkpoints.newest(say)
        step = int(self.from_chief(-1 if newest is None else newest)[0])
        if step >= 0:
            self.state = _State(**self._checkpoints.restore(step))
        return self.state

    def restore_best(self) -> None:
        """Gives the model the weights of its best epoch."""
        self._checkpoints.restore(self.state.best_step)

    def from_chief(self, *values: float) -> list[float]:
        """Returns the chief's numbers on every worker, once all are here."""
        if current_task().num_workers == 1:
            return list(values)
        mine = np.array(values) if current_task().is_chief else 0.0
        mine = np.broadcast_to(mine, len(values)).astype(np.float64)

        def share() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # Only the first of a chief's replicas counts.
            first = tf.cast(context.replica_id_in_sync_group == 0, tf.float64)
            return context.all_reduce("sum", tf.constant(mine) * first)

        shared = self.strategy.run(tf.function(share))
        local = self.strategy.experimental_local_results(shared)[0]
        return [float(value) for value in local]

    def interrupted(self) -> Interrupted:
        """What ends a run that was told to stop, once it is saved."""
        return Interrupted(
            f"Interrupted; saved at step {self.state.step}. Run it again to "
            "continue.",
            self._signals.received,
        )

    def evaluate(
        self, evaluate: Callable[[Any], Mapping[str, float]], metric: str
    ) -> dict[str, float]:
        """The chief's metrics; other workers get the one that is watched."""
        values, stopped = {metric: 0.0}, False
        if current_task().is_chief:
            try:
                with self._signals.raising():
                    values = dict(evaluate(self.model))
            except Interrupted:  # The epoch's last step is saved already.
                stopped = True
        if metric not in values:
            raise WatchnextError(
                f"Training watches {metric!r}, but the evaluation gave "
                f"{', '.join(values)}."
            )
        # The chief's number decides, so that all stop at one epoch.
        values[metric], any_stopped = self.from_chief(values[metric], stopped)
        if any_stopped:
            raise self.interrupted()
        if not math.isfinite(values[metric]):
            raise DivergedError(
                f"The evaluation's {metric!r} is {values[metric]} after "
                f"epoch {self.state.epoch}; are there validation examples?"
            )
        return values

    def epoch(
        self, dataset: tf.data.Dataset, report: TrainingReport, stop: int | None
    ) -> None:
        """Runs the rest of an epoch, or up to step `stop`."""
        state, recent = self.state, []
        for batch in self._steps.batches(dataset):
            told = self._signals.received is not None
            with self._profile.step(state.step + 1):
                recent.append(self._steps.run(batch, state.step, told))
            state.step += 1
            state.batches += 1
            self._look_for_stop(recent)
            save = state.step % self.config.checkpoint_every == 0
            save |= self._told_to_stop or state.step == stop
            if save or len(recent) == CHECK_EVERY:
                self._check(recent, report)
                recent = []
            if save or self._told_to_stop:
                self._save()
            if self._told_to_stop:
                self._stop_together()
            if state.step == stop:
                return
        self._check(recent, report)
        if not state.batches:
            raise InputError(
                "The training examples do not fill one batch of "
                f"{self.config.batch_size}; lower `batch_size` or use more "
                "data."
            )
        # An evaluation may be long: nothing is lost if it is interrupted.
        self._save()
        if self._told_to_stop:
            self._stop_together()

    def end_epoch(
        self, values: Mapping[str, float], metric: str | None, sign: float
    ) -> None:
        """Notes the epoch's metrics, keeps the best weights, saves."""
        state = self.state
        loss = state.loss_sum / state.batches
        state.history.append({**values, "train_loss": loss})
        best = state.history[max(state.best_epoch, 1) - 1]
        if (
            metric is None
            or not state.best_epoch
            or sign * values[metric] > sign * best[metric]
        ):
            state.best_epoch, state.best_step = state.epoch, state.step
        waited = state.epoch - state.best_epoch
        state.finished = (
            state.epoch >= self.config.epochs or waited >= self.config.patience
        )
        state.epoch += 1
        state.batches, state.loss_sum = 0, 0.0
        self._save()

    def tell_epoch(self, report: TrainingReport, metric: str | None) -> None:
        """Reports the epoch that just ended."""
        values = dict(self.state.history[-1])
        if current_task().is_chief:
            tables, dense = (
                self.model.table_variables,
                self.model.dense_variables,
            )
            values |= embedding_norms(tables)
            write_histograms(tables, dense, self.state.epoch - 1)
        report.epoch(self.state.epoch - 1, values, metric)

    def tell_end(self, metric: str | None) -> None:
        """Reports the chosen epoch, once all are done, and the profile."""
        state = self.state
        if state.finished and metric is not None:
            best = state.history[state.best_epoch - 1][metric]
            write_result(metric, best, state.best_epoch)
        self._profile.tell(state.step)

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
            contextlib.closing(self._profile),
        ):
            write_settings(
                self.config.model_dump(mode="json"),
                self._workdir.rstrip("/").rpartition("/")[2],
            )
            yield report

    def _look_for_stop(self, recent: list[tf.Tensor]) -> None:
        """Notes whether to leave after this step; the same on all workers.

        A single one decides by itself. Several have each step sum up who was
        told to, and look at the sum a few steps later.
        """
        if current_task().num_workers == 1:
            self._told_to_stop = self._signals.received is not None
        elif len(recent) > _LAG:
            self._told_to_stop |= float(recent[-1 - _LAG][1]) > 0

    def _stop_together(self) -> NoReturn:
        self.from_chief(0.0)  # It saves, the others wait for it.
        raise self.interrupted()

    def _check(self, recent: list[Any], report: TrainingReport) -> None:
        """Adds up and reports the last steps' losses."""
        if not recent:
            return
        first, others = self.state.step - len(recent), dict[str, float]()
        rows = [result.numpy() for result in recent]
        for i, (loss, told, *_) in enumerate(rows):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"The loss is {loss} at step {first + i}. Lower "
                    "`learning_rate` or `table_learning_rate`, or look for "
                    "values that are not finite in the examples."
                )
            self.state.loss_sum += float(loss)
            self._told_to_stop |= bool(told)
            others |= self._steps.others(first + i, rows[i][2:])
        mean = float(np.mean([loss for loss, *_ in rows]))
        report.steps(self.state.epoch, self.state.step, mean, others)

    def _save(self) -> None:
        """Writes a checkpoint; that of the best epoch is kept with it."""
        if current_task().is_chief:
            best = [self.state.best_step] if self.state.best_epoch else []
            state = dataclasses.asdict(self.state)
            self._checkpoints.save(self.state.step, state, best)

    def _path(self, name: str) -> str:
        return str(tf.io.gfile.join(self._workdir, name))
