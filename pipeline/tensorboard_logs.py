"""What a training leaves for TensorBoard beside scalars.

Weight histograms and settings go to the default `tf.summary` writer; a
profile is written by TensorFlow into the same log folder.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import api, api_pb2, summary

from models.embeddings import local_component
from models.keras_setup import tf
from models.norms import name_of
from pipeline.console import say
from schemas.errors import UsageError

# 30 buckets of a quarter of a million numbers are off by 1 % of a bucket's
# share; a table of a million videos has 256 million.
_MOST_NUMBERS = 2**18


def write_histograms(
    tables: Sequence[tf.Variable], dense: Sequence[tf.Variable], epoch: int
) -> None:
    """Writes `weights/<name>` of each variable.

    Args:
      tables: without row 0, which stands for nothing; of a large one, rows at
        equal distances.
      dense: all other weights; of those with one name the second is called
        `<name>_1`.
      epoch: the step they are written at.
    """
    seen = collections.Counter[str]()
    for variables, first in ((tables, 1), (dense, 0)):
        for variable in variables:
            name = name_of(variable)
            number = seen[name]
            seen[name] += 1
            numbers = _sample(local_component(variable), first)
            tag = f"weights/{name}" + (f"_{number}" if number else "")
            _write(histogram_pb(tag, numbers), epoch)


def write_settings(section: Mapping[str, object], run: str) -> None:
    """Writes a section's values as the HParams of a run.

    Inner sections are `outer.inner`; lists are text, and so is what is null.
    """
    _write(api.hparams_pb(_flat(section), trial_id=run), 0)


def write_result(metric: str, value: float, epoch: int) -> None:
    """Writes `best/<metric>` of the chosen epoch, and that the run is done."""
    tf.summary.scalar(f"best/{metric}", value, step=epoch)
    _write(summary.session_end_pb(api_pb2.STATUS_SUCCESS), 0)


@dataclasses.dataclass(frozen=True)
class ProfileSteps:
    """The steps that `--profile-steps A:B` names, both included, from 1."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}:{self.last}"

    @classmethod
    def parse(cls, text: str) -> "ProfileSteps":
        """Reads `A:B`.

        Raises:
          UsageError: it is not two whole numbers with 1 <= A <= B.
        """
        first, _, last = text.partition(":")
        if not (first.isdecimal() and last.isdecimal()) or not (
            1 <= int(first) <= int(last)
        ):
            raise UsageError(
                f"--profile-steps expects A:B, the first and the last step to "
                f"look at, such as 20:30; got {text!r}."
            )
        return cls(int(first), int(last))

    def too_late(self, stage: str) -> UsageError:
        """What to raise where a stage's model is trained already."""
        return UsageError(
            f"{stage} is there already, so there are no steps {self} to "
            "profile; train in another --workdir, or with --set seed=2."
        )


class Profile:
    """Has TensorFlow record steps of a run, on the host and on its devices.

    Args:
      folder: the run's log folder.
      steps: which ones; None records nothing.
    """

    def __init__(self, folder: str, steps: ProfileSteps | None) -> None:
        self._folder, self._steps = folder, steps
        self._on = self._done = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Surrounds a step, counted from 1."""
        if self._steps is None or not (
            self._steps.first <= step <= self._steps.last
        ):
            yield
            return
        if not self._on:
            tf.profiler.experimental.start(self._folder)
            self._on = True
        # `_r` marks a root: what the page counts as a step.
        with tf.profiler.experimental.Trace("train", step_num=step, _r=1):
            yield
        if step == self._steps.last:
            self.close()

    def close(self) -> None:
        """Ends a recording that is on."""
        if self._on:
            # A step may still run when its call has returned.
            tf.test.experimental.sync_devices()
            tf.profiler.experimental.stop()
            self._on, self._done = False, True

    def tell(self, steps: int) -> None:
        """Says where the profile is, or why there is none.

        Args:
          steps: done when the run ended.
        """
        if self._done:
            say(f"Profile of the steps {self._steps}: {self._folder}")
        elif self._steps is not None:
            say(
                f"Nothing was profiled: this run did none of the steps "
                f"{self._steps}, it ended after {steps}."
            )


def _sample(variable: tf.Variable, first: int) -> np.ndarray:
    """Rows from `first` on at equal distances, at most _MOST_NUMBERS."""
    rows = int(variable.shape[0]) if variable.shape.rank else 0
    if not rows:
        return np.asarray(variable)
    width = int(np.prod(variable.shape[1:]))
    most = max(_MOST_NUMBERS // max(width, 1), 1)
    stride = -(-(rows - first) // most)
    return np.asarray(tf.gather(variable, np.arange(first, rows, stride or 1)))


def _flat(
    values: Mapping[str, object], prefix: str = ""
) -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            flat[prefix + name] = value
        else:
            flat[prefix + name] = str(value)
    return flat


def _write(message: "tf.compat.v1.Summary", step: int) -> None:
    tf.summary.experimental.write_raw_pb(message.SerializeToString(), step)
