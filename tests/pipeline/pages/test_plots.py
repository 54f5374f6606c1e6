"""Plots: what is drawn lies where the numbers say, and is safe in a page."""

import math
import re
from xml.etree import ElementTree

import pytest

from pipeline.pages.plots import (
    COLORS,
    Axis,
    Series,
    bars,
    histogram,
    lines,
    scatter,
)
from schemas.errors import UsageError

SVG = "{http://www.w3.org/2000/svg}"
X, Y = Axis("epoch"), Axis("loss (nats)")


def parsed(plot):
    return ElementTree.fromstring(str(plot))


def texts(plot):
    return [t.text for t in parsed(plot).iter(f"{SVG}text")]


def corners(path):
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", path.get("d"))]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def paths_of(plot, color, what="stroke"):
    """Corners [(x, y), ...] of each path in this colour."""
    wanted = re.compile(rf"\b{what}: var\(--[a-z0-9-]+, {color}\)")
    return [
        corners(path)
        for path in parsed(plot).iter(f"{SVG}path")
        if wanted.search(path.get("style", ""))
    ]


def line_of(plot, number=0):
    """Corners of a series' line; its markers' outlines are closed."""
    style = f"fill: none; stroke: var(--plot-{number + 1}, {COLORS[number]})"
    (line, *_) = (
        corners(path)
        for path in parsed(plot).iter(f"{SVG}path")
        if path.get("style", "").startswith(style)
    )
    return line


def band_of(plot):
    """Corners of the one band; it is drawn by reference, from below."""
    root = parsed(plot)
    (use,) = (
        u
        for u in root.iter(f"{SVG}use")
        if "fill-opacity: 0.2" in u.get("style", "")
    )
    own = use.get("{http://www.w3.org/1999/xlink}href").removeprefix("#")
    (path,) = (p for p in root.iter(f"{SVG}path") if p.get("id") == own)
    return [(x, y + float(use.get("y"))) for x, y in corners(path)]


def shares(values):
    """Each value's place between the first (0) and the last (1)."""
    return [(v - values[0]) / (values[-1] - values[0]) for v in values]


def test_a_line_goes_through_its_points():
    plot = lines("Loss", X, Y, [Series("training", [8, 4, 5, 2], [1, 2, 3, 5])])
    drawn = line_of(plot)
    # x: (2 - 1) / 4, (3 - 1) / 4; y from 8 to 2: (8 - 4) / 6, (8 - 5) / 6.
    assert shares([x for x, _ in drawn]) == pytest.approx(
        [0, 0.25, 0.5, 1], abs=1e-3
    )
    assert shares([y for _, y in drawn]) == pytest.approx(
        [0, 4 / 6, 3 / 6, 1], abs=1e-3
    )
    # SVG's y falls: 8 is above 2.
    assert drawn[0][1] < drawn[-1][1]
    assert {"epoch", "loss (nats)"} <= set(texts(plot))


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios():
    plot = lines(
        "Loss", X, Axis("s", log=True), [Series("a", [1, 10, 1000], [0, 1, 2])]
    )
    drawn = line_of(plot)
    assert shares([y for _, y in drawn]) == pytest.approx(
        [0, 1 / 3, 1], abs=1e-3
    )
    assert {"1", "10", "100", "1,000"} <= set(texts(plot))


def test_ticks_say_all_their_digits():
    # Places are rounded to hundredths of a point, what is said is not.
    plot = lines(
        "L", X, Axis("s", limits=(0.07, 0.08)), [Series("a", [0.075], [1])]
    )
    assert {"0.07", "0.072", "0.074", "0.078"} <= set(texts(plot))


def test_a_band_on_two_sides():
    plot = lines(
        "L", X, Y, [Series("a", [4, 8], [0, 1], spread=[[1, 1], [3, 3]])]
    )
    line, band = line_of(plot), band_of(plot)
    unit = (line[0][1] - line[1][1]) / 4
    at_end = [y for x, y in band if x == line[1][0]]
    assert max(at_end) == pytest.approx(line[1][1] + unit, abs=0.05)
    assert min(at_end) == pytest.approx(line[1][1] - 3 * unit, abs=0.05)


def test_a_band_is_the_spread_on_both_sides():
    plot = lines("Loss", X, Y, [Series("a", [4, 8], [0, 1], spread=[1, 2])])
    line = line_of(plot)
    band = band_of(plot)
    unit = (line[0][1] - line[1][1]) / 4  # From 4 to 8.
    at_end = [y for x, y in band if x == line[1][0]]
    assert min(at_end) == pytest.approx(line[1][1] - 2 * unit, abs=0.05)
    assert max(at_end) == pytest.approx(line[1][1] + 2 * unit, abs=0.05)


@pytest.mark.parametrize("lying", [False, True])
def test_bars_are_as_long_as_their_values(lying):
    plot = bars("Rates", ["a", "b"], Y, [Series("x", [1, 3])], lying)
    rectangles = paths_of(plot, COLORS[0], "fill")
    axis = 0 if lying else 1
    lengths = [
        max(p[axis] for p in r) - min(p[axis] for p in r) for r in rectangles
    ]
    assert len(lengths) == 2
    assert lengths[1] == pytest.approx(3 * lengths[0], rel=1e-3)
    assert {"a", "b"} <= set(texts(plot))


def test_a_calibration_has_the_diagonal():
    plot = scatter(
        "C", X, Y, [Series("deciles", [1, 2], [1, 2])], diagonal=True
    )
    marks = [
        (float(u.get("x")), float(u.get("y")))
        for u in parsed(plot).iter(f"{SVG}use")
        if COLORS[0] in u.get("style", "")
    ]
    (line,) = (
        path
        for path in parsed(plot).iter(f"{SVG}path")
        if "stroke-dasharray" in path.get("style", "")
    )
    (x0, y0), (x1, y1) = corners(line)
    slope = (y1 - y0) / (x1 - x0)
    for x, y in marks:  # Both points lie on it.
        assert y == pytest.approx(y0 + slope * (x - x0), abs=0.1)
    assert len(marks) == 2


def test_a_histogram_has_its_steps():
    plot = histogram("H", [0, 1, 3], X, Y, [Series("n", [2, 4])])
    (steps,) = paths_of(plot, COLORS[0], "fill")
    heights = sorted({y for _, y in steps}, reverse=True)
    assert heights[0] - heights[2] == pytest.approx(
        2 * (heights[0] - heights[1]), abs=0.05
    )
    across = sorted({x for x, _ in steps})
    assert across[2] - across[0] == pytest.approx(
        3 * (across[1] - across[0]), abs=0.05
    )


def test_the_same_data_gives_the_same_bytes_and_other_data_other_ids():
    first = [Series("a", [1, 2], [0, 1])]
    assert lines("L", X, Y, first) == lines("L", X, Y, list(first))
    other = lines("L", X, Y, [Series("a", [1, 3], [0, 1])])
    ids = [
        {e.get("id") for e in parsed(p).iter() if e.get("id")}
        for p in (lines("L", X, Y, first), other)
    ]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    assert "date" not in str(other).lower()


def test_names_are_text_and_not_markup():
    name = '$x^2$ <script>alert(1)</script> & "quoted"'
    for plot in (
        lines(name, X, Y, [Series(name, [1], [1]), Series("b", [1], [1])]),
        bars(name, [name], Y, [Series("a", [1])], lying=True),
    ):
        assert name in texts(plot)
        assert parsed(plot).get("aria-label") == name
        assert "<script" not in plot


def test_it_fits_its_box():
    root = parsed(lines("L", X, Y, [Series("a", [1, 2], [0, 1])]))
    assert root.get("width") == "100%" and root.get("height") is None
    _, _, width, height = map(float, root.get("viewBox").split())
    # On a phone of 390 px less 52 px of margins a unit is about a pixel.
    assert 300 < width < 340 and height < width


@pytest.mark.parametrize("values", [[], [math.nan]])
def test_nothing_to_draw_is_an_error(values):
    with pytest.raises(UsageError, match="at least one number, got none"):
        lines("L", X, Y, [Series("a", values, values)])
