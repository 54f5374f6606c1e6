"""How far a training is: progress for people, scalars for TensorBoard."""

import sys
import time
from collections.abc import Mapping

from rich.progress import Progress, SpinnerColumn, TextColumn

from models.keras_setup import tf

_PLAIN_LINE_EVERY_S = 10.0


class TrainingReport:
    """Shows a run: a line that moves on a terminal, plain lines elsewhere.

    Scalars go to the default `tf.summary` writer, if there is one.

    Args:
      epochs: of the whole run.
      batch_size: global, for the examples per second.
      shown: whether anything is shown at all.
    """

    def __init__(self, epochs: int, batch_size: int, shown: bool) -> None:
        self._epochs, self._batch_size, self._shown = epochs, batch_size, shown
        self._line: Progress | None = None
        self._since, self._since_step = time.monotonic(), -1
        self._told = self._since

    def __enter__(self) -> "TrainingReport":
        if self._shown and sys.stderr.isatty():
            columns = (SpinnerColumn(), TextColumn("{task.description}"))
            self._line = Progress(*columns, transient=True)
            self._line.add_task("starting")
            self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.stop()

    def steps(
        self,
        epoch: int,
        step: int,
        loss: float,
        metrics: Mapping[str, tf.Tensor],
    ) -> None:
        """Tells of the steps since the last call."""
        tf.summary.scalar("train/loss", loss, step=step)
        for name, value in metrics.items():
            tf.summary.scalar(f"train/{name}", value, step=step)
        now = time.monotonic()
        if self._since_step < 0:  # The first steps hold the compilation.
            self._since, self._since_step = now, step
            return
        steps = step - self._since_step
        speed = steps * self._batch_size / max(now - self._since, 1e-9)
        text = (
            f"epoch {epoch}/{self._epochs}  step {step:,}"
            f"  loss {loss:.4f}  {speed:,.0f} examples/s"
        )
        tf.summary.scalar("train/examples_per_s", speed, step=step)
        if self._line is not None:
            self._line.update(self._line.task_ids[0], description=text)
        elif self._shown and now - self._told >= _PLAIN_LINE_EVERY_S:
            print(text, file=sys.stderr, flush=True)
            self._told = now

    def epoch(
        self, epoch: int, values: Mapping[str, float], metric: str | None
    ) -> None:
        """Tells of an epoch's end: the metric that chooses the best one."""
        for name, value in values.items():
            tf.summary.scalar(f"epoch/{name}", value, step=epoch)
        self._since_step = -1  # The evaluation's time is not the steps'.
        text = (
            f"epoch {epoch}/{self._epochs} done"
            f"  training loss {values['train_loss']:.4f}"
        )
        if metric is not None:
            text += f"  validation {metric} {values[metric]:.4f}"
        if self._line is not None:
            self._line.console.print(text)
        elif self._shown:
            print(text, file=sys.stderr, flush=True)
