"""A picture of a trained model: its inputs, tables, layers and outputs.

Drawn of the model's own variables, so that it shows what there is: the widths
of the layers, the sizes of the tables, which feature takes how much of the
first layer's input.
"""

import dataclasses
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import patches
from matplotlib.figure import Figure

from models.experts import Experts
from models.keras_setup import tf
from models.query_tower import HISTORY
from models.ranking import RankingModel
from models.ranking_tasks import RATING, WATCH_TIME, WATCH_TIME_OUTPUT
from models.retrieval import RetrievalModel
from models.towers import Tower
from schemas.features import Feature

# In units of one line of text.
_LINE, _GAP, _SPACE = 1.0, 0.6, 5.0
_LINES_AN_INCH = 4.6
_WIDE, _NARROW, _NAMES = 33.0, 17.0, 42
_COLORS = {
    "input": "#e8eef7",
    "table": "#fdf1d8",
    "layer": "#e2f2e4",
    "output": "#f7e3e6",
}


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle with lines of text, the first of them in bold."""

    kind: str
    lines: tuple[str, ...]

    @property
    def height(self) -> float:
        return _LINE * (len(self.lines) + 0.8)


def draw_retrieval(model: RetrievalModel, paths: Sequence[str]) -> None:
    """Draws the query tower.

    Args:
      model: trained.
      paths: files to write; their ends say the format, `.svg` or `.png`.
    """
    tower, config = model.query_tower, model.config
    bags = "; ".join(
        ", ".join(map(str, of_tower.recency_bags)) for of_tower in config.towers
    )
    how = {HISTORY: f"{config.pooling} of the last {bags}"}
    if config.sequence is not None:
        how[HISTORY] += f"; self-attention over {config.sequence.length}"
    inputs = _inputs(tower.features, model, tower.input_widths, how)
    dim = int(model.candidates()[0].shape[1])
    embedding = Box("output", ("query embedding u", f"[B, {dim}]"))
    videos = f"{model.output_biases.shape[0] - 1:,}"
    lines = ("scores u.v + b", f"v: {videos} x {dim}, b: {videos}", "the index")
    layers = [*_layers(tower.towers), embedding]
    _draw("Query tower", inputs, layers, [Box("table", lines)], paths)


def draw_ranking(model: RankingModel, paths: Sequence[str]) -> None:
    """Draws the ranking network; see `draw_retrieval`."""
    features = model.features.select("query", "request", "candidate")
    how = {HISTORY: "mean of all, and of the last"}
    inputs = _inputs(features, model, [model.input_widths], how)
    outputs = []
    for head in model.heads:
        if head == WATCH_TIME:
            name = WATCH_TIME_OUTPUT[model.config.objective]
            outputs.append(Box("output", (name, "e^z, weighted logistic")))
            continue
        lines = [head, "sigmoid, probability"]
        if head == RATING:
            lines = [head, "softplus, squared loss"]
        if head == "clicked" and model.position_bias is not None:
            lines.append("+ position's bias in training")
        outputs.append(Box("output", tuple(lines)))
    powers = [f"{n}^{w:g}" for n, w in model.config.score_weights.items()]
    outputs.append(Box("output", ("score", *powers)))
    layers = _layers([model.tower])
    if model.experts is not None:
        layers.append(_experts(model.experts))
    into, tasks = model.head.kernel.shape
    layers.append(Box("layer", ("heads", f"{into} -> {tasks}")))
    if model.wide is not None:
        crosses = [f"{n}, {r:,} rows" for n, r in model.wide.rows.items()]
        layers.append(Box("layer", ("+ wide part", *crosses)))
    _draw("Ranking network", inputs, layers, outputs, paths)


def _inputs(
    features: Sequence[Feature],
    model: Any,
    widths: Sequence[Mapping[str, int]],
    how: dict[str, str],
) -> list[tuple[Box, Box]]:
    """What goes in, beside what becomes of it; numbers of a scope together."""
    rows, of_scope = [], dict[str, list[Feature]]()

    def width(*names: str) -> str:
        """What features take of the input of each tower."""
        return " + ".join(str(sum(w[name] for name in names)) for w in widths)

    for feature in features:
        if feature.space is None:
            of_scope.setdefault(feature.scope, []).append(feature)
            continue
        bag = feature.kind == "bag"
        axes = ["B", *(["C"] if feature.scope == "candidate" else [])]
        axes += [str(feature.max_length)] if bag else []
        said = how.get(feature.name, "mean of all") if bag else "looked up"
        table = model.embeddings.tables[feature.space]
        size = f"{table.shape[0] - 1:,} x {table.shape[1]}"
        rows.append(
            (
                Box("input", (feature.name, f"ids [{', '.join(axes)}]")),
                Box(
                    "table",
                    (
                        f"table {feature.space}, {size}",
                        f"{said} -> {width(feature.name)}",
                    ),
                ),
            )
        )
    for scope, some in of_scope.items():
        names = textwrap.wrap(", ".join(f.name for f in some), _NAMES)
        total = width(*(f.name for f in some))
        rows.append(
            (
                Box("input", (f"numbers of the {scope}: {len(some)}", *names)),
                Box(
                    "table",
                    ("normalised", f"x, x², √x, is missing -> {total}"),
                ),
            )
        )
    known = {f.name for f in features}
    for name in widths[0]:
        if name not in known:
            rows.append(
                (
                    Box("input", (name, "[B], 0 in serving")),
                    Box("table", ("as it is", f"-> {width(name)}")),
                )
            )
    return rows


def _layers(towers: Sequence[Tower]) -> list[Box]:
    """The concatenation and each fully connected layer, towers one by one."""
    inputs = (str(tower.input_dim) for tower in towers)
    boxes = [Box("layer", ("concatenated", *inputs))]
    for level in itertools.zip_longest(*(tower.layers for tower in towers)):
        lines = []
        for layer in level:
            if layer is not None:
                into, out = layer.kernel.shape
                lines.append(f"dense, {layer.activation.__name__}")
                lines.append(f"{into} -> {out}")
        boxes.append(Box("layer", tuple(lines)))
    return boxes


def _experts(experts: Experts) -> Box:
    """All of them, alike, and what mixes them."""
    layers = experts.towers[0].layers
    widths = [
        int(layers[0].kernel.shape[0]),
        *(layer.units for layer in layers),
    ]
    into, out = experts.gate.kernel.shape
    number = len(experts.towers)
    return Box(
        "layer",
        (
            f"{number} experts, relu",
            " -> ".join(map(str, widths)),
            f"{out // number} gates, softmax",
            f"{into} -> {number}",
        ),
    )


def _draw(
    title: str,
    inputs: Sequence[tuple[Box, Box]],
    layers: Sequence[Box],
    outputs: Sequence[Box],
    paths: Sequence[str],
) -> None:
    """Inputs and tables as rows; layers from left to right; outputs last."""
    heights = [max(a.height, b.height) + _GAP for a, b in inputs]
    right = sum(box.height + _GAP for box in outputs)
    height = max(sum(heights), right) + 2.5
    columns = len(layers) + 1
    width = 2 * _WIDE + columns * (_NARROW + _SPACE) + _WIDE / 4 + 2 * _SPACE
    # A character is about half as wide as a line is high.
    size = width * 0.5 / _LINES_AN_INCH, height / _LINES_AN_INCH
    options: Any = {"svg.hashsalt": title, "svg.fonttype": "none"}
    with matplotlib.rc_context(options):
        figure = Figure(figsize=size)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        axes.text(1, 1.2, title, weight="bold", size=13, va="center")
        middle = (height + 2) / 2
        at = 1 + 2 * _WIDE + 2 * _SPACE
        top = 2.0
        for (left, table), tall in zip(inputs, heights, strict=True):
            y = top + tall / 2
            _box(axes, left, 1, y, _WIDE)
            _box(axes, table, 1 + _WIDE + _SPACE, y, _WIDE)
            _arrow(axes, (1 + _WIDE, y), (1 + _WIDE + _SPACE, y))
            _arrow(axes, (at - _SPACE, y), (at, middle))
            top += tall
        places = [at + i * (_NARROW + _SPACE) for i in range(len(layers))]
        for box, x in zip(layers, places, strict=True):
            _box(axes, box, x, middle, _NARROW)
        for x, after in itertools.pairwise(places):
            _arrow(axes, (x + _NARROW, middle), (after, middle))
        top = middle - right / 2
        x = places[-1] + _NARROW + _SPACE
        for box in outputs:
            y = top + box.height / 2
            _box(axes, box, x, y, _NARROW + _WIDE / 4)
            _arrow(axes, (x - _SPACE, middle), (x, y))
            top += box.height + _GAP
        for path in paths:
            kind = path.rsplit(".", 1)[-1]
            # No date, so that the same model gives the same bytes.
            date = {"Date": None} if kind == "svg" else {}
            with tf.io.gfile.GFile(path, "wb") as file:
                figure.savefig(file, format=kind, dpi=110, metadata=date)


def _box(axes: Any, box: Box, x: float, y: float, width: float) -> None:
    """Draws a box from x on, centred at y."""
    axes.add_patch(
        patches.FancyBboxPatch(
            (x, y - box.height / 2),
            width,
            box.height,
            boxstyle="round,pad=0,rounding_size=0.4",
            facecolor=_COLORS[box.kind],
            edgecolor="#555555",
            linewidth=0.8,
        )
    )
    first = y - _LINE * (len(box.lines) - 1) / 2
    for i, line in enumerate(box.lines):
        axes.text(
            x + width / 2,
            first + i * _LINE,
            line,
            ha="center",
            va="center",
            size=9,
            weight="bold" if i == 0 else "normal",
        )


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float]
) -> None:
    style = {"arrowstyle": "-|>", "color": "#777777", "linewidth": 0.7}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
