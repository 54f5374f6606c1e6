"""A refresh: a training that begins with an earlier model, on new days.

`Refresh` is what the command line says of it; the rest finds what it names.
"""

import dataclasses

from apache_beam.io.filesystems import FileSystems

from schemas.artifacts import MARKER, Artifact, ArtifactStore, join
from schemas.errors import UsageError
from schemas.model_config import RetrievalConfig
from schemas.split import DAY_US, SplitBounds

_STAGE = "retrieval_model"


@dataclasses.dataclass(frozen=True)
class Refresh:
    """How a training of the retrieval model departs from one from nothing.

    Attributes:
      earlier: the retrieval model whose weights are the first ones.
      last_days: train on the last so many training days alone.
    """

    earlier: Artifact | None = None
    last_days: int | None = None

    @property
    def options(self) -> list[str]:
        """The same, as options of the command line."""
        options = []
        if self.earlier is not None:
            options += ["--warm-start-from", self.earlier.path]
        if self.last_days is not None:
            options += ["--last-days", str(self.last_days)]
        return options


FROM_NOTHING = Refresh()


def open_retrieval_model(folder: str) -> Artifact:
    """The version that `--warm-start-from` names, verified.

    Raises:
      UsageError: it is no version of the stage.
      ArtifactError: the version is damaged.
    """
    folder = folder.rstrip("/")
    if not FileSystems.exists(join(folder, MARKER)):
        raise UsageError(
            f"--warm-start-from {folder} is no completed version of {_STAGE}; "
            f"expected its folder, {_example(folder)}."
        )
    version = Artifact.open(folder)
    if version.stage != _STAGE:
        raise UsageError(
            f"--warm-start-from {folder} is a version of {version.stage}; "
            f"expected one of {_STAGE}, {_example('WORKDIR')}."
        )
    version.verify()
    return version


def _example(folder: str) -> str:
    """A version's folder: a real one, if a folder above it was given."""
    workdir = folder.removesuffix(f"/{_STAGE}")
    versions = ArtifactStore(workdir).versions(_STAGE)
    if versions:
        return f"such as {versions[-1].path}"
    return f"such as WORKDIR/{_STAGE}/20260105T101500000000Z-3f9c0b1a-77d2"


def gentler(section: RetrievalConfig) -> RetrievalConfig:
    """The section of a training that begins with an earlier model.

    Its learning rates are the given share of those of one from nothing.
    """
    share = section.warm_start_rate_share
    rates = ("table_learning_rate", "learning_rate")
    return section.model_copy(
        update={name: share * getattr(section, name) for name in rates}
    )


def last_days_since_us(bounds: SplitBounds, last_days: int) -> int:
    """When the last days of the training interval begin, UTC microseconds.

    Raises:
      UsageError: training is no longer than that, or each user's ends at a
        time of its own.
    """
    if bounds.protocol != "time":
        raise UsageError(
            f"--last-days needs split.protocol time; with {bounds.protocol} "
            "each user's training ends at a time of its own."
        )
    since_us = bounds.train_end_us - last_days * DAY_US
    if since_us <= bounds.log_start_us:
        days = (bounds.train_end_us - bounds.log_start_us) / DAY_US
        raise UsageError(
            f"--last-days {last_days} is all of the training interval, which "
            f"has {days:.1f} days; leave the option out."
        )
    return since_us
