"""What sections are made of: plain values that the page's template draws.

Texts are shown as they are, whatever they contain; the page escapes them.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeAlias

from markupsafe import Markup

Cell: TypeAlias = str | float | None
Numbers: TypeAlias = Mapping[str, float | None]
DIFFERENCE = "difference"


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph, after a word that says what of."""

    kind: ClassVar[str] = "text"
    said: str
    lead: str = ""


@dataclasses.dataclass(frozen=True)
class Missing:
    """Said in place of what is not there."""

    kind: ClassVar[str] = "missing"
    said: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """A few numbers at a glance: (text, what it is)."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a head; the first columns are text, the others numbers."""

    kind: ClassVar[str] = "table"
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    said: str = ""
    text_columns: int = 1


@dataclasses.dataclass(frozen=True)
class Plot:
    """A picture with the words that say how to read it."""

    kind: ClassVar[str] = "plot"
    title: str
    svg: Markup
    said: str = ""


@dataclasses.dataclass(frozen=True)
class Grid:
    """Pictures and small tables, beside each other where there is room."""

    kind: ClassVar[str] = "grid"
    items: Sequence["Plot | Table"]


@dataclasses.dataclass(frozen=True)
class Code:
    """A long text as it is, folded."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Folded:
    """Blocks that are opened by who wants them; open in print."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence["Block"]


Block: TypeAlias = Text | Missing | Facts | Table | Grid | Code | Folded


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      name: its anchor, an identifier.
      title: its heading.
      blocks: what it says.
    """

    name: str
    title: str
    blocks: Sequence[Block]


def side_by_side(
    title: str,
    names: Sequence[str],
    numbers: Sequence[Numbers],
    said: str = "",
) -> Table:
    """Numbers by name, one column a run; of two runs also the difference.

    Args:
      title: of the table.
      names: of the runs.
      numbers: of each run; what one of them lacks is a dash.
      said: beneath.
    """
    labels = dict.fromkeys(label for own in numbers for label in own)
    head = ["", *(names if len(names) > 1 else ["value"])]
    rows: list[list[Cell]] = []
    for label in labels:
        values = [own.get(label) for own in numbers]
        rows.append([label, *values])
        if len(values) == 2:
            rows[-1].append(difference(*values))
    if len(names) == 2:
        head.append(DIFFERENCE)
    return Table(title, head, rows, said)


def difference(first: float | None, second: float | None) -> float | None:
    """The first less the second, where both are known."""
    if first is None or second is None:
        return None
    found = first - second
    return None if math.isnan(found) else found


def words(name: str) -> str:
    """A metric's or bucket's name to be read."""
    return name.replace("_", " ")
