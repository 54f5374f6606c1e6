"""What both models' sections of the report begin with."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from pipeline.pages.blocks import Block, Missing, side_by_side
from pipeline.report.work_folder import Side, titled

Names = Callable[[Mapping[str, float]], Sequence[str]]


def evaluated(sides: Sequence[Side], names: Names) -> list[Side]:
    """The sides whose evaluation has metrics of those names."""
    return [side for side in sides if names(side.folder.metrics)]


def compared(
    sides: Sequence[Side],
    names: Names,
    prefix: str,
    title: str,
    missing: tuple[str, str],
) -> Iterator[Block]:
    """Says who is not evaluated; several sides get a table of all metrics.

    Args:
      sides: of the report.
      names: of a model's metrics, without the prefix.
      prefix: of the metrics.
      title: of the table.
      missing: what is said before and after the name of a side without any.
    """
    measured = evaluated(sides, names)
    said, rest = missing
    for side in sides:
        if side not in measured:
            yield Missing(titled(said, side, len(sides)) + rest)
    if measured and len(sides) > 1:
        numbers = [
            {name: metrics[prefix + name] for name in names(metrics)}
            for metrics in (side.folder.metrics for side in sides)
        ]
        yield side_by_side(title, [side.name for side in sides], numbers)
