"""What an experiment is: cells that are measured, and claims judged on them.

A cell is one independent training or measurement: a setting of an experiment
with one seed, which the log, the model and every draw follow from. All that an
experiment compares lies in its settings; all else is equal.
"""

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pipeline.experiments.exhibits import Exhibit
from pipeline.experiments.verdicts import Check
from schemas.artifacts import digest

if TYPE_CHECKING:
    from pipeline.experiments.bench import Bench

Measured = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One of the things that an experiment compares.

    Attributes:
      name: as in files and results, such as `depth_2`.
      title: as people read it.
      overrides: `section.field=value`, on top of the scale's.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """A setting of an experiment, with a seed."""

    experiment: str
    setting: str
    seed: int

    def __str__(self) -> str:
        return f"{self.experiment}/{self.setting}/seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class CellResult:
    """What a cell gave.

    Attributes:
      values: name -> measured number.
      fingerprint: of all that they follow from.
      seconds, cpu_seconds: that it took, by the clock and of all cores.
    """

    values: Measured
    fingerprint: str
    seconds: float
    cpu_seconds: float


class Results:
    """The cells of one experiment that were measured."""

    def __init__(self, by_cell: Mapping[Cell, CellResult]) -> None:
        self.by_cell = dict(by_cell)

    def of(self, setting: str, value: str) -> dict[int, float]:
        """Seed -> a measured number of a setting, where there is one."""
        return {
            cell.seed: result.values[value]
            for cell, result in sorted(
                self.by_cell.items(), key=lambda item: item[0].seed
            )
            if cell.setting == setting and value in result.values
        }

    def mean(self, setting: str, value: str) -> float | None:
        """Over the seeds; None where nothing was measured."""
        found = self.of(setting, value).values()
        return sum(found) / len(found) if found else None

    def names(self, prefix: str) -> list[str]:
        """Names of measured numbers that start so, in order, without it."""
        names = {
            name.removeprefix(prefix)
            for result in self.by_cell.values()
            for name in result.values
            if name.startswith(prefix)
        }
        return sorted(names)


class Experiment(abc.ABC):
    """One figure, table or claim.

    Attributes:
      name: as on the command line.
      title: of its part of the page.
      source: where the claim is from.
      claim: what the paper says, with its numbers; or what we say.
      protocol: what was done, in a sentence or two.
      caveat: why ours may differ; shown where a claim does not hold.
      version: raised when `measure` changes: older results are measured anew.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    claim: ClassVar[str]
    protocol: ClassVar[str]
    caveat: ClassVar[str]
    version: ClassVar[int] = 1
    # Sections that `measure` reads beside those of the data stages.
    sections: ClassVar[tuple[str, ...]] = ()
    # Data stages that `measure` reads; none: it makes its own data.
    stages: ClassVar[tuple[str, ...]] = ()
    # Whether it measures time, and so runs while nothing else does.
    alone: ClassVar[bool] = False

    @abc.abstractmethod
    def settings(self, quick: bool) -> Sequence[Setting]:
        """What is compared; fewer if quick."""

    @abc.abstractmethod
    def measure(self, bench: "Bench") -> dict[str, float]:
        """Measures one cell."""

    @abc.abstractmethod
    def checks(self, results: Results) -> list[Check]:
        """Judges the claims, by the numbers alone."""

    @abc.abstractmethod
    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        """Plots and tables of the results, beside the paper's numbers."""

    def cells(self, seeds: Sequence[int], quick: bool) -> Iterator[Cell]:
        """All cells, seed by seed."""
        for seed in seeds:
            for setting in self.settings(quick):
                yield Cell(self.name, setting.name, seed)

    def setting(self, name: str, quick: bool) -> Setting:
        """A setting by its name."""
        return {s.name: s for s in self.settings(quick)}[name]

    def fingerprint(
        self,
        cell: Cell,
        sections: Mapping[str, object],
        inputs: Mapping[str, str],
        quick: bool,
    ) -> str:
        """Of all that a cell's values follow from."""
        return digest(
            {
                "experiment": self.name,
                "version": self.version,
                "setting": cell.setting,
                "seed": cell.seed,
                "quick": quick,
                "sections": dict(sections),
                "inputs": dict(inputs),
            }
        )
