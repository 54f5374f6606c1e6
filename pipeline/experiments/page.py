"""The page of a reproduction: the papers' claims beside our numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.experiments.plan import Plan
from pipeline.experiments.verdicts import HOLDS, combined
from pipeline.pages import page

if TYPE_CHECKING:
    from pipeline.experiments.reproduce import Outcome

_TEMPLATE = "reproduce.html"


def write_page(path: str, plan: Plan, outcomes: Sequence["Outcome"]) -> None:
    """Writes the page; what was not measured is named on it.

    Args:
      path: of the HTML file.
      plan: of the reproduction.
      outcomes: of the experiments, in order.

    Raises:
      UsageError: the file cannot be written.
    """
    seeds = {
        cell.seed
        for outcome in outcomes
        for cell in (*outcome.results.by_cell, *outcome.missing)
    }
    values = {
        "scale": plan.scale.name,
        "seeds": sorted(seeds),
        "parts_of_page": [
            _part(outcome, plan.scale.quick) for outcome in outcomes
        ],
        "overrides": [*plan.scale.overrides, *plan.overrides],
    }
    page.write_page(path, _TEMPLATE, values)


def _part(outcome: "Outcome", quick: bool) -> Mapping[str, Any]:
    """What the template shows of an experiment."""
    experiment, results = outcome.experiment, outcome.results
    checks = experiment.checks(results)
    measured = results.by_cell
    verdict = combined(checks)
    return {
        "name": experiment.name,
        "title": experiment.title,
        "source": experiment.source,
        "claim": experiment.claim,
        "protocol": experiment.protocol,
        "caveat": experiment.caveat if verdict != HOLDS else "",
        "checks": checks,
        "verdict": verdict,
        "holding": sum(check.outcome == HOLDS for check in checks),
        "measured": len(measured),
        "cells": len(measured) + len(outcome.missing),
        "exhibit": experiment.exhibit(results, quick) if measured else None,
        "missing": [(str(cell), why) for cell, why in outcome.missing.items()],
        "runs": [
            (
                str(cell),
                result.fingerprint[:12],
                round(result.seconds),
                round(result.cpu_seconds),
            )
            for cell, result in measured.items()
        ],
    }
