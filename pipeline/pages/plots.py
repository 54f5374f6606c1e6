"""Plots as SVG text, for the inside of a page.

The same data gives the same bytes. Colours are those of Okabe and Ito (told
apart by the colour-blind), with markers and dashes of their own for print; in
a page they are CSS variables, so that the dark scheme has its own. Text is
text, in the page's font. A plot is drawn for the width of a phone and grows
with its box.
"""

import dataclasses
import hashlib
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from schemas.errors import UsageError

INK, FAINT = "#1d2021", "#d9d9d3"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
# Dots would be a hundred circles each.
_HATCHES = ("", "//", "\\\\", "xx", "--", "||")
# Inches at 72 points: 4.6 wide is 331 points, on a phone of 390 px about 1 px
# each, so that text of 9.5 points can be read there.
_WIDTH, _HEIGHT, _LEGEND_ROW = 4.6, 2.6, 0.2
# Typed loosely: matplotlib names every key there is.
_STYLE: Any = {
    "svg.fonttype": "none",
    # Ids and terms of a log are text, whatever dollars they have.
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.7,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is along an axis.

    Attributes:
      label: with the unit.
      log: logarithmic.
      limits: lowest and highest value; of the data where None.
      ticks: place -> text, in place of numbers.
    """

    label: str
    log: bool = False
    limits: tuple[float, float] | None = None
    ticks: tuple[tuple[float, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Series:
    """Numbers with a name; those that are NaN are left out.

    Attributes:
      name: in the legend.
      y: values; of bars, one a group; of a histogram, one a bin.
      x: places; not for bars and histograms.
      spread: of a band (lines) or of error bars, in the unit of `y`: [n] to
        either side, or [2, n] below and above.
      reference: what the others are held against: drawn dashed, in ink.
    """

    name: str
    y: Sequence[float]
    x: Sequence[float] = ()
    spread: Sequence[float] | Sequence[Sequence[float]] | None = None
    reference: bool = False


def lines(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """Lines with markers, each with a band where it has a spread.

    Raises:
      UsageError: there is nothing to draw, here as in the others.
    """
    figure, axes = _begin(title, x, y, series)
    for number, one in enumerate(series):
        color, marker = _look(one, number)
        line = axes.plot(
            one.x,
            one.y,
            color=color,
            linestyle="--" if one.reference else "-",
            # Markers that touch are a thicker line.
            marker=marker if len(one.y) <= 40 else "",
            markersize=3.5,
            linewidth=1.4,
            label=one.name,
        )
        if one.spread is not None:
            middle = np.asarray(one.y)
            below, above = np.broadcast_to(one.spread, (2, len(middle)))
            axes.fill_between(
                one.x,
                middle - below,
                middle + above,
                color=line[0].get_color(),
                alpha=0.2,
                linewidth=0,
            )
    return _end(figure, title, (x, y, series))


def scatter(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    diagonal: bool = False,
) -> Markup:
    """Points with error bars; with the diagonal it shows a calibration."""
    figure, axes = _begin(title, x, y, series)
    for number, one in enumerate(series):
        color, marker = _look(one, number)
        axes.errorbar(
            one.x,
            one.y,
            yerr=one.spread,
            fmt=marker or "x",
            markersize=4.5,
            color=color,
            elinewidth=0.9,
            capsize=2,
            label=one.name,
        )
    if diagonal:
        # Two points, since a slope means nothing on logarithmic axes.
        axes.axline((1, 1), (2, 2), color=INK, linewidth=0.8, linestyle="--")
    return _end(figure, title, (x, y, series, diagonal))


def bars(
    title: str,
    groups: Sequence[str],
    y: Axis,
    series: Sequence[Series],
    lying: bool = False,
) -> Markup:
    """One bar a series in each group.

    Args:
      title: what is shown.
      groups: names, one a value of each series.
      y: along the bars.
      series: values and error bars.
      lying: bars from left to right, for names that are long.
    """
    places = np.arange(len(groups), dtype=float)
    across = Axis("", ticks=tuple(zip(places, groups, strict=True)))
    x, up = (y, across) if lying else (across, y)
    rows = len(groups) * (0.55 + 0.45 * len(series)) * 0.26
    height = 0.7 + rows if lying else _HEIGHT
    figure, axes = _begin(title, x, up, series, height)
    width = 0.8 / len(series)
    for number, one in enumerate(series):
        color, _ = _look(one, number)
        at = places + (number - (len(series) - 1) / 2) * width
        draw = axes.barh if lying else axes.bar
        options: dict[str, Any] = {
            "xerr" if lying else "yerr": one.spread,
            "error_kw": {"elinewidth": 0.9, "capsize": 2, "ecolor": INK},
        }
        draw(
            at,
            one.y,
            width * 0.92,
            facecolor=color,
            edgecolor="white",
            linewidth=0,
            hatch=_HATCHES[number % len(_HATCHES)],
            label=one.name,
            **options,
        )
    axes.grid(axis="y" if lying else "x", visible=False)
    if y.limits is None and all(np.nanmin(one.y) >= 0 for one in series):
        axes.set(**{"xlim" if lying else "ylim": (0, None)})
    if lying:
        axes.invert_yaxis()
    return _end(figure, title, (groups, y, series, lying))


def histogram(
    title: str,
    edges: Sequence[float],
    x: Axis,
    y: Axis,
    series: Sequence[Series],
) -> Markup:
    """Steps over bins; `edges` are one more than the values of each series."""
    figure, axes = _begin(title, x, y, series)
    for number, one in enumerate(series):
        color, _ = _look(one, number)
        axes.stairs(
            one.y,
            edges,
            fill=number == 0 and not one.reference,
            alpha=0.75 if number == 0 and len(series) > 1 else 1,
            color=color,
            linestyle="--" if one.reference else "-",
            linewidth=1.4,
            label=one.name,
        )
    return _end(figure, title, (edges, x, y, series))


def _begin(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    height: float = _HEIGHT,
) -> tuple[Figure, Any]:
    """An empty plot with its axes; higher by the rows of its legend."""
    if not any(np.isfinite(np.asarray(s.y, float)).any() for s in series):
        raise UsageError(
            f"The plot {title!r} must have at least one number, got none. "
            "Say what is missing in its place."
        )
    rows = (len(series) + 1) // 2 if len(series) > 1 else 0
    with matplotlib.rc_context(_STYLE):
        figure = Figure(
            figsize=(_WIDTH, height + rows * _LEGEND_ROW), layout="constrained"
        )
        axes = figure.add_subplot()
    for side, axis, own in ((axes.xaxis, x, "x"), (axes.yaxis, y, "y")):
        if axis.log:
            axes.set(**{f"{own}scale": "log"})
            side.set_minor_formatter(NullFormatter())
        side.set_major_formatter(FuncFormatter(_tick))
        if axis.limits is not None:
            axes.set(**{f"{own}lim": axis.limits})
        if axis.ticks:
            places, texts = zip(*axis.ticks, strict=True)
            side.set_ticks(places, texts)
    axes.set(xlabel=x.label, ylabel=y.label)
    return figure, axes


def _tick(value: float, _: int) -> str:
    """A number as it is read: 0.05, 20, 1,500, 2M."""
    for unit, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _look(one: Series, number: int) -> tuple[str, str]:
    """Colour and marker."""
    if one.reference:
        return INK, ""
    return COLORS[number % len(COLORS)], _MARKERS[number % len(_MARKERS)]


def _end(figure: Figure, title: str, drawn: object) -> Markup:
    """The figure as SVG without what only a file of its own needs."""
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Plots of one page must not share ids, so each salts them with its data.
    salt = hashlib.sha256(repr((title, drawn)).encode()).hexdigest()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": salt}):
        if len(labels) > 1:
            figure.legend(
                handles,
                labels,
                loc="outside upper left",
                ncols=2,
                borderpad=0,
                handlelength=1.6,
            )
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return Markup(_for_a_page(text.getvalue(), title))


def _for_a_page(svg: str, title: str) -> str:
    """From a file's SVG to a page's: named, scaled, in the page's colours."""
    body = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', body)
    if box is None:
        raise ValueError("matplotlib's SVG has no viewBox.")
    body = body[body.index(">") + 1 :]
    # Groups' ids are the same in every plot, and nothing refers to them.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    # Hundredths of a point are enough of a place; texts stay as they are.
    body = re.sub(
        r"<[^>]*>", lambda t: re.sub(r"(\.\d\d)\d+", r"\1", t.group()), body
    )
    shades = {INK: "ink", FAINT: "grid"}
    shades |= {color: f"plot-{i}" for i, color in enumerate(COLORS, 1)}
    for shade, name in shades.items():
        body = body.replace(shade, f"var(--{name}, {shade})")
    head = (
        f'<svg class="plot" role="img" aria-label="{escape(title)}" '
        f'width="100%" {box.group()} xmlns="http://www.w3.org/2000/svg" '
        'xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return head + body.strip()
