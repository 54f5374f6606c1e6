"""Verdicts on claims: from the numbers of the seeds alone.

The spread is the standard deviation over the seeds (n - 1 below); of two
settings, that of their difference seed by seed, since both of a seed are
measured on one log. What the mean does not exceed by the spread is not known,
and one seed has no spread.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

Outcome = Literal["holds", "does not hold", "inconclusive"]
HOLDS: Outcome = "holds"
DOES_NOT_HOLD: Outcome = "does not hold"
INCONCLUSIVE: Outcome = "inconclusive"
BySeed = Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Check:
    """A claim and what became of it.

    Attributes:
      claim: in words.
      outcome: the verdict.
      numbers: what it was computed from, in words.
    """

    claim: str
    outcome: Outcome
    numbers: str


def mean_and_spread(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over the seeds; None of a single one."""
    values = list(values)
    spread = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), spread


def above(claim: str, more: BySeed, less: BySeed, digits: int = 4) -> Check:
    """Judges that one setting's values are above another's.

    Args:
      claim: in words.
      more, less: seed -> value; seeds that only one of them has do not count.
      digits: after the point, in the numbers.

    Returns:
      `holds` where the mean difference is above its spread, `does not hold`
      where it is as far below 0.
    """
    seeds = sorted(more.keys() & less.keys())
    if not seeds:
        return _not_measured(claim)
    differences = [more[seed] - less[seed] for seed in seeds]
    sides = [statistics.fmean(side[s] for s in seeds) for side in (more, less)]
    numbers = " against ".join(f"{side:.{digits}f}" for side in sides)
    return _beyond_spread(claim, differences, f"{numbers}; difference", digits)


def at_least(
    claim: str, values: BySeed, bound: float, digits: int = 3
) -> Check:
    """Judges that values are a bound or more, beyond their spread."""
    if not values:
        return _not_measured(claim)
    margins = [value - bound for value in values.values()]
    mean, _ = mean_and_spread(values.values())
    said = f"{mean:.{digits}f}, bound {bound:g}; margin"
    return _beyond_spread(claim, margins, said, digits)


def at_most(claim: str, values: BySeed, bound: float, digits: int = 3) -> Check:
    """Judges that values are a bound or less, beyond their spread."""
    mirrored = {seed: -value for seed, value in values.items()}
    found = at_least(claim, mirrored, -bound, digits)
    if not values:
        return found
    mean, spread = mean_and_spread(values.values())
    numbers = f"{mean:.{digits}f}{_spread(spread, digits)}, bound {bound:g}"
    return dataclasses.replace(found, numbers=numbers)


def rising(claim: str, values: Sequence[BySeed], digits: int = 4) -> Check:
    """Judges that each setting's values are above those of the one before.

    `holds` where every step does, `does not hold` where any one is downwards
    beyond its spread.
    """
    steps = [
        above(claim, more, less, digits)
        for less, more in itertools.pairwise(values)
    ]
    means = [
        f"{statistics.fmean(v.values()):.{digits}f}" if v else "not measured"
        for v in values
    ]
    return Check(claim, combined(steps), ", ".join(means))


def combined(checks: Sequence[Check]) -> Outcome:
    """`holds` where all do, `does not hold` where any does not."""
    outcomes = {check.outcome for check in checks}
    if DOES_NOT_HOLD in outcomes:
        return DOES_NOT_HOLD
    return HOLDS if outcomes == {HOLDS} else INCONCLUSIVE


def _not_measured(claim: str) -> Check:
    return Check(claim, INCONCLUSIVE, "not measured with any seed")


def _beyond_spread(
    claim: str, differences: Sequence[float], said: str, digits: int
) -> Check:
    mean, spread = mean_and_spread(differences)
    numbers = f"{said} {mean:+.{digits}f}{_spread(spread, digits)}"
    if spread is None:
        return Check(claim, INCONCLUSIVE, numbers)
    outcome = INCONCLUSIVE
    if mean > spread:
        outcome = HOLDS
    elif mean < -spread:
        outcome = DOES_NOT_HOLD
    return Check(claim, outcome, numbers)


def _spread(spread: float | None, digits: int) -> str:
    if spread is None:
        return " (one seed: no spread)"
    return f" ± {spread:.{digits}f}"
