"""A work directory as the report reads it: the newest version of each stage.

Nothing is built and no file is hashed; what is not there is None.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from apache_beam.io.filesystems import FileSystems

from pipeline.lineage import mismatches
from pipeline.run import COMMANDS, saved_config
from schemas.artifacts import RUN, Artifact, ArtifactStore, join
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.errors import ArtifactError, UsageError
from schemas.events import EventSchema
from schemas.features import FeatureSet, feature_set
from schemas.requests import RawInput, raw_inputs
from schemas.split import BOUNDS_FILE, SplitBounds


class WorkFolder:
    """The stages of a work directory.

    Args:
      workdir: on any file system Beam knows.

    Raises:
      UsageError: there is no such folder.
    """

    def __init__(self, workdir: str) -> None:
        self.workdir, self._store = workdir, ArtifactStore(workdir)
        if not (self.stages or FileSystems.exists(workdir)):
            raise UsageError(
                f"There is no work directory {workdir}; `watchnext run "
                f"--workdir {workdir}` makes one."
            )

    @functools.cached_property
    def stages(self) -> dict[str, Artifact]:
        """Stage -> its newest version, in the order of the line."""
        found = {name: self._store.versions(name) for name in COMMANDS}
        return {name: own[-1] for name, own in found.items() if own}

    def stage(self, name: str) -> Artifact | None:
        return self.stages.get(name)

    def needed(self, name: str) -> Artifact:
        """A stage's newest version.

        Raises:
          ArtifactError: there is none.
        """
        if name not in self.stages:
            raise ArtifactError(
                f"There is no {name!r} in {self.workdir}; `watchnext "
                f"{COMMANDS[name]}` makes it."
            )
        return self.stages[name]

    def json(self, stage: str, file: str) -> Any:
        """Content of a stage's JSON file.

        Raises:
          ArtifactError: there is none, or it cannot be read.
        """
        return _parsed(self.needed(stage).file(file))

    def record(self, stage: str) -> Mapping[str, Any]:
        """How a stage was made: command, time, versions."""
        record: Mapping[str, Any]
        record = _parsed(join(self.needed(stage).path, RUN))
        return record

    @property
    def metrics(self) -> dict[str, float]:
        """What `evaluate` measured; empty where it has not."""
        found = self.stage("evaluation")
        return found.metrics if found else {}

    @functools.cached_property
    def schema(self) -> EventSchema:
        with FileSystems.open(self.needed("events").file("schema.json")) as s:
            return EventSchema.from_json(s.read().decode())

    @functools.cached_property
    def bounds(self) -> SplitBounds | None:
        split = self.stage("split")
        return SplitBounds.read(split.file(BOUNDS_FILE)) if split else None

    @property
    def features(self) -> FeatureSet:
        """As the transform graph gives them."""
        return feature_set(self.schema, *self._example_configs())

    @property
    def raw_inputs(self) -> tuple[RawInput, ...]:
        """As a request carries them."""
        return raw_inputs(self.schema, *self._example_configs())

    @property
    def max_candidates(self) -> int:
        """Candidates of a ranking example."""
        return self._example_configs()[1].max_candidates

    def _example_configs(
        self,
    ) -> tuple[RetrievalExamplesConfig, RankingExamplesConfig]:
        sections = self.needed("transform").manifest["config"]
        return (
            RetrievalExamplesConfig.model_validate(
                sections["retrieval_examples"]
            ),
            RankingExamplesConfig.model_validate(sections["ranking_examples"]),
        )

    @property
    def config_text(self) -> str | None:
        """The resolved configuration that was saved, YAML."""
        path = saved_config(self.workdir)
        if path is None:
            return None
        with FileSystems.open(path) as stream:
            return str(stream.read().decode())

    @property
    def strangers(self) -> list[str]:
        """Pairs of the newest versions that were not made from each other."""
        return mismatches(self.stages)


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the runs that a page shows.

    Attributes:
      name: in tables and legends.
      folder: its work directory.
    """

    name: str
    folder: WorkFolder


def titled(title: str, side: Side, sides: int) -> str:
    """A title that tells whose it is, where there are several."""
    return title if sides == 1 else f"{title}: {side.name}"


def _parsed(path: str) -> Any:
    try:
        with FileSystems.open(path, compression_type="uncompressed") as stream:
            return json.loads(stream.read().decode())
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
