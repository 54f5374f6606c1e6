"""`watchnext reproduce`: all cells, then the page.

Prepares what data are missing, one process a seed; measures what cells are not
there yet, some at once, those that take the time one by one at the end; judges
and writes the page, whatever failed. A second run resumes.
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence

from pipeline.console import say
from pipeline.experiments.catalogue import EXPERIMENTS
from pipeline.experiments.crew import Done, Job, last_line, run_jobs
from pipeline.experiments.experiment import (
    Cell,
    CellResult,
    Experiment,
    Results,
)
from pipeline.experiments.page import write_page
from pipeline.experiments.plan import Plan
from pipeline.experiments.scales import SCALES
from pipeline.experiments.verdicts import combined
from schemas.errors import UsageError, WatchnextError


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the cells of an experiment.

    Attributes:
      experiment: which.
      results: of the cells that were measured.
      missing: cell -> why it was not.
    """

    experiment: Experiment
    results: Results
    missing: dict[Cell, str]


def reproduce(
    *,
    quick: bool,
    workdir: str,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int | None = None,
    output: str | None = None,
    overrides: Sequence[str] = (),
) -> str:
    """Runs the experiments and writes their page.

    Args:
      quick: small logs, few settings, one seed.
      workdir: a local folder of data and results; a second run goes on there.
      only: names of experiments; all if none is given.
      seeds: in place of the scale's own.
      jobs: processes at once; as many as there are cores by default.
      output: the page; `reproduce.html` of the scale's folder by default.
      overrides: `section.field=value` of every cell.

    Returns:
      The page's path.

    Raises:
      UsageError: an unknown experiment, or seeds that are none.
      WatchnextError: not one cell could be measured.
    """
    if "://" in workdir:
        raise UsageError(
            f"--workdir {workdir}: the experiments run as processes of this "
            "machine; give a local folder."
        )
    if any(not 0 <= seed < 2**31 for seed in seeds):
        raise UsageError(
            f"--seeds must be from 0 to 2^31 - 1, got {list(seeds)}."
        )
    scale = SCALES["quick" if quick else "full"]
    plan = Plan(scale, workdir, tuple(overrides))
    experiments = chosen(only)
    cells = plan.cells(experiments, tuple(dict.fromkeys(seeds)) or scale.seeds)
    for cell in cells:
        plan.config(cell)  # A wrong override is said before anything runs.
    at_once = jobs or os.cpu_count() or 1
    reasons = _prepare(plan, cells, at_once)
    _measure(plan, [c for c in cells if c not in reasons], at_once, reasons)
    outcomes = [_outcome(plan, e, cells, reasons) for e in experiments]
    path = output or str(plan.folder / "reproduce.html")
    write_page(path, plan, outcomes)
    for outcome in outcomes:
        verdict = combined(outcome.experiment.checks(outcome.results))
        say(f"{outcome.experiment.title}: {verdict}")
    say(f"page: {path}")
    if all(not outcome.results.by_cell for outcome in outcomes):
        raise WatchnextError(
            "No cell was measured: "
            + next(iter(outcomes[0].missing.values()), "none was asked for.")
        )
    return path


def chosen(only: Sequence[str]) -> list[Experiment]:
    """Experiments by their names, in the order of the page.

    Raises:
      UsageError: there is none of a name.
    """
    unknown = sorted(set(only) - EXPERIMENTS.keys())
    if unknown:
        raise UsageError(
            f"--only {unknown[0]}: no such experiment. There are "
            f"{', '.join(EXPERIMENTS)}."
        )
    return [e for n, e in EXPERIMENTS.items() if not only or n in only]


def _prepare(
    plan: Plan, cells: Sequence[Cell], at_once: int
) -> dict[Cell, str]:
    """Prepares the data of each seed; returns why cells cannot be measured."""
    lacking: dict[int, list[Cell]] = {}
    for cell in cells:
        if plan.fingerprint(cell) is None:
            lacking.setdefault(cell.seed, []).append(cell)
    jobs = []
    for seed, of_seed in lacking.items():
        names = dict.fromkeys(cell.experiment for cell in of_seed)
        log = str(plan.folder / f"seed-{seed}.log")
        jobs.append(
            Job(
                f"data of seed {seed}",
                _command(plan, "prepare", names, seed),
                log,
            )
        )
    if jobs:
        say(f"Preparing the data of {len(jobs)} seeds.")
    failed = {
        int(done.job.name.split()[-1]): done.job.log
        for done in run_jobs(jobs, at_once, _tell(len(jobs)))
        if done.code
    }
    return {
        cell: f"its data could not be prepared, see {failed[cell.seed]}"
        for seed, of_seed in lacking.items()
        if seed in failed
        for cell in of_seed
        if plan.fingerprint(cell) is None
    }


def _measure(
    plan: Plan, cells: Sequence[Cell], at_once: int, reasons: dict[Cell, str]
) -> None:
    """Measures what is not there yet; adds why a cell failed."""
    wanting = [cell for cell in cells if plan.result(cell) is None]
    say(
        f"{len(cells)} cells, {len(cells) - len(wanting)} of them there "
        "already."
    )
    tell = _tell(len(wanting))
    alone = [c for c in wanting if EXPERIMENTS[c.experiment].alone]
    together = [c for c in wanting if c not in alone]
    for some, crew in ((together, at_once), (alone, 1)):
        jobs = [
            Job(
                str(cell),
                _command(
                    plan, "measure", (cell.experiment, cell.setting), cell.seed
                ),
                plan.log(cell),
            )
            for cell in some
        ]
        done = run_jobs(jobs, crew, tell)
        for cell, ended in zip(some, done, strict=True):
            if ended.code:
                reasons[cell] = f"it failed, see {ended.job.log}"


def _command(
    plan: Plan, job: str, names: Iterable[str], seed: int
) -> tuple[str, ...]:
    """Arguments of `pipeline.experiments.child`."""
    options = ["--seed", str(seed), "--scale", plan.scale.name]
    options += ["--workdir", plan.workdir]
    for override in plan.overrides:
        options += ["--set", override]
    return (job, *names, *options)


def _tell(total: int) -> "_Tell":
    return _Tell(total)


class _Tell:
    """Says what was done, of how many."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0

    def __call__(self, done: Done) -> None:
        self._done += 1
        line = (
            f"{self._done}/{self._total} {done.job.name}: {done.seconds:.0f} s"
        )
        if done.code:
            said = last_line(done.job.log)
            line += f", FAILED: {said} (log: {done.job.log})"
        say(line)


def _outcome(
    plan: Plan,
    experiment: Experiment,
    cells: Sequence[Cell],
    reasons: dict[Cell, str],
) -> Outcome:
    found: dict[Cell, CellResult] = {}
    missing: dict[Cell, str] = {}
    for cell in cells:
        if cell.experiment != experiment.name:
            continue
        result = plan.result(cell)
        if result is None:
            missing[cell] = reasons.get(cell, "it was not measured")
        else:
            found[cell] = result
    return Outcome(experiment, Results(found), missing)
