"""What an experiment shows: plots and tables, made of its results alone."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipeline.experiments.verdicts import mean_and_spread
from pipeline.pages.blocks import Plot, Table
from pipeline.pages.page import number
from pipeline.pages.plots import Series
from schemas.errors import UsageError

if TYPE_CHECKING:
    from pipeline.experiments.experiment import Results


@dataclasses.dataclass(frozen=True)
class Exhibit:
    """All that is shown of an experiment."""

    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()


def plot(
    title: str, draw: Callable[[], Markup], said: str = ""
) -> tuple[Plot, ...]:
    """The plot, or none where nothing of it was measured."""
    try:
        return (Plot(title, draw(), said),)
    except UsageError:
        return ()


def series(
    name: str,
    results: "Results",
    points: Sequence[tuple[str, str]],
    x: Sequence[float] = (),
    reference: bool = False,
) -> Series:
    """Mean and spread over the seeds, point by point.

    Args:
      name: in the legend.
      results: of the experiment.
      points: setting and value of each; NaN where it was not measured.
      x: places of the points.
      reference: what the others are held against: without a spread.
    """
    means, spreads = [], []
    for setting, value in points:
        found = results.of(setting, value)
        mean, spread = (
            mean_and_spread(found.values()) if found else (float("nan"), None)
        )
        means.append(mean)
        spreads.append(spread or 0.0)
    return Series(name, means, x, None if reference else spreads, reference)


def spread_text(values: Mapping[int, float], digits: int = 4) -> str:
    """Such as `0.0671 ± 0.0012`; a dash where nothing was measured."""
    if not values:
        return number(None)
    mean, spread = mean_and_spread(values.values())
    text = f"{mean:.{digits}f}"
    return text if spread is None else f"{text} ± {spread:.{digits}f}"
