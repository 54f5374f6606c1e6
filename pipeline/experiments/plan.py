"""Where the cells of a reproduction find their data and keep their results.

    <workdir>/<scale>/seed-<n>/     a work directory with the data of a seed
    <workdir>/<scale>/cells/<experiment>/<setting>-seed-<n>-<fingerprint>.json
                      .../<setting>-seed-<n>.log, and while measured .../scratch

A result is found by the fingerprint of what it follows from: the experiment's
version, the configuration sections and the content of the data it reads.
"""

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from pipeline.config import load_config
from pipeline.event_stage import find_simulated, simulate
from pipeline.experiments.bench import Bench
from pipeline.experiments.catalogue import EXPERIMENTS
from pipeline.experiments.experiment import Cell, CellResult, Experiment
from pipeline.experiments.scales import CONFIG, Scale
from pipeline.run import PREPARED, Run
from pipeline.stages import DataStages
from schemas.artifacts import ArtifactStore, digest
from schemas.config import Config
from schemas.errors import UsageError, WatchnextError

# What the data of a cell follow from.
_DATA_SECTIONS = (
    *("simulator", "split", "beam", "vocabularies", "normalization"),
    *("retrieval_examples", "ranking_examples"),
)
_BEAM_FLAGS = ("--runner=FnApiRunner",)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A reproduction: its scale, its folder, and what was set by hand."""

    scale: Scale
    workdir: str
    overrides: tuple[str, ...] = ()
    _data: dict[str, DataStages] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def folder(self) -> Path:
        return Path(self.workdir) / self.scale.name

    def cells(
        self, experiments: Iterable[Experiment], seeds: Iterable[int]
    ) -> list[Cell]:
        """All cells, experiment by experiment."""
        seeds = list(seeds)
        return [
            cell
            for experiment in experiments
            for cell in experiment.cells(seeds, self.scale.quick)
        ]

    def config(self, cell: Cell) -> Config:
        setting = EXPERIMENTS[cell.experiment].setting(
            cell.setting, self.scale.quick
        )
        return load_config(
            CONFIG,
            [
                *self.scale.overrides,
                *self.overrides,
                # Last: what is compared is never set by hand.
                *setting.overrides,
                f"seed={cell.seed}",
            ],
        )

    def data(self, config: Config) -> DataStages | None:
        """The data stages of a configuration, if its events are there."""
        key = _data_key(config)
        if key not in self._data:
            # Artifacts are verified when found: once for all cells.
            run = self._run(config)
            events = find_simulated(run)
            if events is None:
                return None
            self._data[key] = DataStages(run, events)
        return self._data[key]

    def prepare(self, cells: Iterable[Cell]) -> None:
        """Builds the data stages that cells read, one after the other."""
        built: dict[str, DataStages] = {}
        for cell in cells:
            config, stages = self.config(cell), _stages(cell)
            key = _data_key(config)
            if stages and key not in built:
                run = self._run(config)
                built[key] = DataStages(run.building(*PREPARED), simulate(run))
            for stage in stages:
                getattr(built[key], stage)()

    def fingerprint(self, cell: Cell) -> str | None:
        """Of all that a cell's values follow from; None without its data."""
        experiment, config = EXPERIMENTS[cell.experiment], self.config(cell)
        inputs: dict[str, str] = {}
        if experiment.stages:
            data = self.data(config)
            if data is None:
                return None
            try:
                for stage in experiment.stages:
                    inputs[stage] = getattr(data, stage)().fingerprint()
            except UsageError:  # It is not built.
                return None
            inputs["events"] = data.events.fingerprint()
        sections = {
            name: getattr(config, name).model_dump(mode="json")
            for name in experiment.sections
        }
        return experiment.fingerprint(cell, sections, inputs, self.scale.quick)

    def measure(self, cell: Cell) -> CellResult:
        """Measures a cell and keeps its result.

        Raises:
          WatchnextError: its data are not there, or a value is no number.
        """
        fingerprint = self.fingerprint(cell)
        if fingerprint is None:
            raise WatchnextError(
                f"{cell} has no data in {self.folder}; run `watchnext "
                "reproduce` to prepare it."
            )
        started, cpu_started = time.monotonic(), time.process_time()
        scratch = self._stem(cell) + ".scratch"
        config = self.config(cell)
        bench = Bench(
            self._run(config),
            cell.setting,
            scratch,
            self.scale.quick,
            self.data(config) if _stages(cell) else None,
        )
        values = EXPERIMENTS[cell.experiment].measure(bench)
        wrong = sorted(n for n, v in values.items() if not math.isfinite(v))
        if wrong:
            raise WatchnextError(
                f"{cell} gave no number for {', '.join(wrong)}."
            )
        result = CellResult(
            values,
            fingerprint,
            time.monotonic() - started,
            time.process_time() - cpu_started,
        )
        path = self._result(cell, fingerprint)
        part = f"{path}.part"
        Path(part).parent.mkdir(parents=True, exist_ok=True)
        Path(part).write_text(
            json.dumps({"cell": str(cell), **dataclasses.asdict(result)})
        )
        os.replace(part, path)
        shutil.rmtree(scratch, ignore_errors=True)
        return result

    def result(self, cell: Cell) -> CellResult | None:
        """What was measured of a cell as it is now, if it was."""
        fingerprint = self.fingerprint(cell)
        if fingerprint is None:
            return None
        path = Path(self._result(cell, fingerprint))
        if not path.exists():
            return None
        kept = json.loads(path.read_text())
        kept.pop("cell")
        return CellResult(**kept)

    def log(self, cell: Cell) -> str:
        """Where the process that measures a cell writes."""
        return self._stem(cell) + ".log"

    def _stem(self, cell: Cell) -> str:
        folder = self.folder / "cells" / cell.experiment
        return str(folder / f"{cell.setting}-seed-{cell.seed}")

    def _result(self, cell: Cell, fingerprint: str) -> str:
        return f"{self._stem(cell)}-{fingerprint[:12]}.json"

    def _run(self, config: Config) -> Run:
        folder = self.folder / f"seed-{config.seed}"
        return Run(config, ArtifactStore(str(folder)), _BEAM_FLAGS)


def _stages(cell: Cell) -> tuple[str, ...]:
    return EXPERIMENTS[cell.experiment].stages


def _data_key(config: Config) -> str:
    """Equal for configurations that read the same data."""
    sections = {
        name: getattr(config, name).model_dump(mode="json")
        for name in _DATA_SECTIONS
    }
    return digest({"seed": config.seed, **sections})
