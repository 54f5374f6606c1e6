"""One run: a configuration, a work directory, and which stages may be built.

A stage is found by the fingerprint of what its bytes follow from; only when
it is not there, and this command is one that makes it, is it built.
"""

import dataclasses
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from apache_beam.io.filesystems import FileSystems
from pydantic import BaseModel

from pipeline.console import say
from pipeline.progress import progress_shown
from pipeline.stage_lines import stage_lines
from schemas.artifacts import (
    Artifact,
    ArtifactStore,
    ArtifactWriter,
    join,
    stage_key,
)
from schemas.config import Config
from schemas.errors import UsageError

SAVED_CONFIG = "config.yaml"
_HEADER = "# The resolved configuration; used where --config is not given.\n"
_PACKAGES = (
    "tensorflow",
    "tensorflow-transform",
    "tensorflow-recommenders",
    "apache-beam",
    "scann",
    "numpy",
    "pyarrow",
)
# Which command makes a stage; the order is that of the line.
COMMANDS = {
    "events": "simulate",
    "split": "prepare",
    "vocabularies": "prepare",
    "transform": "prepare",
    "retrieval_examples": "prepare",
    "refit_examples": "prepare",
    "retrieval_holdout": "prepare",
    "ranking_examples": "prepare",
    "ranking_holdout": "prepare",
    "recent_examples": "prepare --last-days N",
    "daily_examples": "prepare --since DAY",
    "window_examples": "prepare --since DAY",
    "window_ranking_examples": "prepare --since DAY",
    "retrieval_model": "train retrieval",
    "index": "index",
    "candidate_lists": "index",
    "ranking_model": "train ranking",
    "export": "export",
    "onnx": "export --onnx",
    "evaluation": "evaluate",
    "recommendations": "recommend --all-users",
}
PREPARED = tuple(s for s, made_by in COMMANDS.items() if made_by == "prepare")
DAILY = ("daily_examples", "window_examples", "window_ranking_examples")
LEARNT = tuple(COMMANDS)[tuple(COMMANDS).index("retrieval_model") : -1]


Sections = Mapping[str, BaseModel | str | None]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a command works on.

    Attributes:
      config: the resolved configuration.
      store: the work directory's stage folders.
      beam_flags: options for Beam's runner, as on the command line.
      builds: the stages that this command may build; others must exist.
      told: the stages that this command has already said something of.
    """

    config: Config
    store: ArtifactStore
    beam_flags: tuple[str, ...] = ()
    builds: frozenset[str] = frozenset()
    told: set[str] = dataclasses.field(default_factory=set, compare=False)

    @property
    def workdir(self) -> str:
        return self.store.workdir

    def building(self, *stages: str) -> "Run":
        return dataclasses.replace(self, builds=frozenset(stages))

    def find(
        self, name: str, sections: Sections, inputs: Mapping[str, str]
    ) -> Artifact | None:
        """The stage's version for these sections and inputs, if it is there."""
        key = stage_key(name, _plain(sections), self.config.seed, inputs)
        return self.store.find(name, key)

    def versions(self, name: str, sections: Sections) -> list[Artifact]:
        """A stage's versions for these sections, of any input, oldest first.

        Other sections that a version has may be anything.
        """
        wanted = _plain(sections)
        return [
            version
            for version in self.store.versions(name)
            if version.manifest["seed"] == self.config.seed
            and wanted.items() <= version.manifest["config"].items()
        ]

    def newest(
        self, name: str, sections: Sections, inputs: Mapping[str, str]
    ) -> Artifact:
        """A stage's newest version for these sections and inputs, verified.

        Other inputs that a version has may be anything.

        Raises:
          UsageError: there is none.
        """
        for version in reversed(self.versions(name, sections)):
            if inputs.items() <= version.manifest["inputs"].items():
                version.verify()
                return version
        raise UsageError(self._not_built(name))

    def stage(
        self,
        name: str,
        sections: Sections,
        inputs: Mapping[str, str],
        write: Callable[[ArtifactWriter], None],
        resumable: bool = False,
    ) -> Artifact:
        """Returns the stage's version for these sections and inputs.

        Args:
          name: a key of `COMMANDS`.
          sections: what of the configuration the bytes follow from.
          inputs: fingerprint per input that is read.
          write: fills the version's folder, when it has to be built.
          resumable: whether it goes on with the files that one which was
            ended in the middle left there.

        Raises:
          UsageError: it is not there and this command does not make it.
        """
        found = self.find(name, sections, inputs)
        if found is not None:
            if name in self.builds and name not in self.told:
                say(f"{name}: there already, {found.path}")
                self.told.add(name)
            return found
        if name not in self.builds:
            raise UsageError(self._not_built(name))
        self.save_config()
        started = time.monotonic()
        say(f"{name} ...")
        config = _plain(sections)
        with self.store.write(
            name, config, self.config.seed, inputs, resumable
        ) as writer:
            writer.run |= self._record()
            with progress_shown(name):
                write(writer)
            # Every counter is a metric too, under the name of its stage.
            writer.metrics |= {
                f"{name}.{counter}": float(value)
                for counter, value in writer.counts.items()
            }
        built = self.find(name, sections, inputs)
        if built is None:  # Deleted under our feet.
            raise UsageError(self._not_built(name))
        seconds = time.monotonic() - started
        self.told.add(name)
        for line in stage_lines(name, seconds, built.counts):
            say(line)
        self._merge_metrics(built)
        return built

    def _not_built(self, name: str) -> str:
        others = len(self.store.versions(name))
        changed = (
            f" for this configuration and input ({others} for another one)"
            if others
            else ""
        )
        return (
            f"{self.workdir} has no completed {name!r}{changed}; run "
            f"`watchnext {COMMANDS[name]} --workdir {self.workdir}` first."
        )

    def _record(self) -> dict[str, Any]:
        return {
            "command": sys.argv[1:],
            "beam_flags": list(self.beam_flags),
            "python": platform.python_version(),
            "packages": {p: importlib.metadata.version(p) for p in _PACKAGES},
        }

    def _merge_metrics(self, built: Artifact) -> None:
        """Adds a stage's metrics to the work directory's `metrics.json`."""
        if not built.metrics:
            return
        path = join(self.workdir, "metrics.json")
        merged: dict[str, float] = {}
        if FileSystems.exists(path):
            merged = json.loads(_read(path))
        # Of an older version some counters may be gone: reasons, spaces.
        own = f"{built.stage}."
        merged = {k: v for k, v in merged.items() if not k.startswith(own)}
        merged |= built.metrics
        write_text(path, json.dumps(merged, indent=1, sort_keys=True) + "\n")

    def save_config(self) -> None:
        """Leaves the resolved configuration for the next commands."""
        values = yaml.safe_dump(
            self.config.model_dump(mode="json"), sort_keys=False
        )
        path, text = join(self.workdir, SAVED_CONFIG), f"{_HEADER}{values}"
        # Local workers start together: none of them has anything to change.
        if not FileSystems.exists(path) or _read(path) != text:
            write_text(path, text)


def saved_config(workdir: str) -> str | None:
    """The configuration that an earlier command left, if there is one."""
    path = join(workdir, SAVED_CONFIG)
    return path if FileSystems.exists(path) else None


def _plain(sections: Sections) -> dict[str, Any]:
    return {
        key: value.model_dump(mode="json")
        if isinstance(value, BaseModel)
        else value
        for key, value in sections.items()
    }


def _read(path: str) -> str:
    with FileSystems.open(path) as stream:
        return str(stream.read().decode())


def write_text(path: str, text: str) -> None:
    """Writes a small file in one piece, with its folder if need be."""
    folder = FileSystems.split(path)[0]
    if not FileSystems.exists(folder):
        FileSystems.mkdirs(folder)
    # Written beside and renamed: a reader never sees half a file.
    part = path + ".part"
    with FileSystems.create(part) as stream:
        stream.write(text.encode())
    if FileSystems.exists(path):
        FileSystems.delete([path])
    FileSystems.rename([part], [path])
