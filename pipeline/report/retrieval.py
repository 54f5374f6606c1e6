"""Candidate generation on the test interval, and the index that serves it."""

import re
from collections.abc import Iterator, Mapping, Sequence

from models.retrieval_slices import BUCKETS
from pipeline.pages.blocks import (
    Block,
    Folded,
    Grid,
    Missing,
    Plot,
    Table,
    Text,
    side_by_side,
    words,
)
from pipeline.pages.plots import Axis, Series, bars, lines
from pipeline.report.evaluated import compared, evaluated
from pipeline.report.work_folder import Side, titled

_OURS, _THROUGH = "retrieval.", "retrieval.through_index."
_DESCRIPTION = "index.json"


def retrieval(sides: Sequence[Side]) -> Iterator[Block]:
    """Metrics beside the baselines, and by slice."""
    missing = "Retrieval is not evaluated yet", "."
    yield from compared(
        sides, _names, _OURS, "The model, exact search", missing
    )
    measured = evaluated(sides, _names)
    for side in measured:
        metrics = side.folder.metrics
        columns = columns_of(metrics)
        plots = [_rates(metrics, columns, titled("Hit rate", side, len(sides)))]
        if (plot := _slices(metrics, side, len(sides))) is not None:
            plots.append(plot)
        yield Grid(plots)
        title = titled("Beside the baselines", side, len(sides))
        names = _names(metrics)
        rates = [n for n in names if n == "cases" or "hit_rate" in n]
        yield _table(title, metrics, columns, rates)
        others = [name for name in names if name not in rates]
        table = _table("", metrics, columns, others)
        yield Folded(f"{title}: the other metrics", [table])
        yield from _slice_table(metrics, columns, side, len(sides))


def columns_of(metrics: Mapping[str, float]) -> dict[str, str]:
    """Name -> prefix of its metrics: ours, its index, the baselines."""
    columns = {"model": _OURS}
    if any(key.startswith(_THROUGH) for key in metrics):
        columns["its index"] = _THROUGH
    for key in metrics:
        first, _, rest = key.partition(".")
        if first == "baselines" and ".ranking." not in key:
            name = rest.partition(".")[0]
            columns[words(name)] = f"baselines.{name}."
    return columns


def largest_rate(metrics: Mapping[str, float]) -> str | None:
    """The hit rate at the largest k that the slices have."""
    rates = {
        key.rpartition(".")[2]
        for key in metrics
        if key.startswith(f"{_OURS}by_") and ".hit_rate_at_" in key
    }
    return max(rates, key=_natural) if rates else None


def index(sides: Sequence[Side]) -> Iterator[Block]:
    """Recall of both searches, and what it costs."""
    names = [side.name for side in sides]
    found = {
        side.name: side.folder.json("index", _DESCRIPTION)
        for side in sides
        if side.folder.stage("index") is not None
    }
    for side in sides:
        if side.name not in found:
            yield Missing(
                titled("There is no index yet", side, len(sides)) + "."
            )
    if not found:
        return
    yield side_by_side(
        "Recall against exact search, on validation queries",
        names,
        [_recalls(found.get(name, {})) for name in names],
    )
    plots = []
    for name, own in found.items():
        of = "" if len(sides) == 1 else f": {name}"
        if own.get("scann_curve"):
            plots.append(_scann_curve(own, of))
        if own.get("stock_curve"):
            plots.append(_stock_curve(own, of))
        if not (own.get("scann_curve") or own.get("stock_curve")):
            yield Text(
                f"{own['videos']:,} videos are few enough to be scored "
                f"whole{of}: there is no curve, and the recall is that of "
                "exact search."
            )
    if plots:
        yield Grid(plots)


def _names(metrics: Mapping[str, float]) -> list[str]:
    """Names of the model's metrics, without slices."""
    own = (key.removeprefix(_OURS) for key in metrics if key.startswith(_OURS))
    return sorted((name for name in own if "." not in name), key=_natural)


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts `at_50` before `at_100`."""
    parts = re.split(r"(\d+)", name)
    return [("", int(p)) if p.isdecimal() else (p, 0) for p in parts]


def _rates(
    metrics: Mapping[str, float], columns: Mapping[str, str], title: str
) -> Plot:
    """Bars of the hit rates, seen videos kept, of everything that retrieves."""
    names = [n for n in _names(metrics) if re.fullmatch(r"hit_rate_at_\d+", n)]
    shown = [
        Series(column, [metrics.get(p + n, 0.0) for n in names])
        for column, p in columns.items()
        # Equal to the model's but for what the index misses.
        if p != _THROUGH
    ]
    plot = bars(
        title,
        [name.rpartition("_")[2] for name in names],
        Axis("hit rate at k"),
        shown,
    )
    return Plot(
        title,
        plot,
        "Share of the cases whose next watch is among the first k of all "
        f"videos: k = {', '.join(n.rpartition('_')[2] for n in names)}.",
    )


def _table(
    title: str,
    metrics: Mapping[str, float],
    columns: Mapping[str, str],
    names: Sequence[str],
) -> Table:
    return Table(
        title,
        ["metric", *columns],
        [
            [name, *(metrics.get(prefix + name) for prefix in columns.values())]
            for name in names
        ],
        "`seen_removed`: once the videos that the user had watched have left "
        "the ranking. All are defined in docs/evaluation.md.",
    )


def _slices(
    metrics: Mapping[str, float], side: Side, sides: int
) -> Plot | None:
    """Bars of the largest hit rate by bucket."""
    rate = largest_rate(metrics)
    if rate is None:
        return None
    shown = [b for b in BUCKETS if f"{_OURS}{b}.{rate}" in metrics]
    best = _best_baseline(metrics, rate)
    series = [Series("model", [metrics[f"{_OURS}{b}.{rate}"] for b in shown])]
    if best is not None:
        name, prefix = best
        series.append(
            Series(name, [metrics.get(f"{prefix}{b}.{rate}", 0) for b in shown])
        )
    title = titled(f"{words(rate)} by slice".capitalize(), side, sides)
    plot = bars(
        title,
        [words(b.partition(".")[2]) for b in shown],
        Axis(words(rate)),
        series,
        lying=True,
    )
    return Plot(
        title,
        plot,
        "By the videos a user had watched, then by a video's age"
        + (f"; beside {best[0]}, the best baseline." if best else "."),
    )


def _best_baseline(
    metrics: Mapping[str, float], rate: str
) -> tuple[str, str] | None:
    baselines = [
        (metrics[prefix + rate], name, prefix)
        for name, prefix in columns_of(metrics).items()
        if prefix.startswith("baselines.") and prefix + rate in metrics
    ]
    return max(baselines)[1:] if baselines else None


def _slice_table(
    metrics: Mapping[str, float],
    columns: Mapping[str, str],
    side: Side,
    sides: int,
) -> Iterator[Block]:
    rate = largest_rate(metrics)
    if rate is None:
        return
    rows: list[list[str | float | None]] = []
    for bucket in BUCKETS:
        of = f"{_OURS}{bucket}."
        size = metrics.get(f"{of}cases", metrics.get(f"{of}labels"))
        if size is not None:
            values = [
                metrics.get(f"{p}{bucket}.{rate}") for p in columns.values()
            ]
            rows.append([words(bucket.partition(".")[2]), size, *values])
    title = titled(f"{words(rate)} by slice".capitalize(), side, sides)
    table = Table(title, ["slice", "cases or labels", *columns], rows)
    yield Folded(f"{title}, in numbers", [table])


def _recalls(description: Mapping[str, float]) -> dict[str, float | None]:
    if not description:
        return {}
    k = description["neighbors"]
    return {
        "videos": description["videos"],
        f"recall at {k}, ScaNN": description["scann_recall"],
        f"recall at {k}, the SavedModels' own search": description[
            "stock_recall"
        ],
    }


def _scann_curve(
    description: Mapping[str, Sequence[Mapping[str, float]]], of: str
) -> Plot:
    """One line a number of rescored rows."""
    by_rescored: dict[float, list[Mapping[str, float]]] = {}
    for point in description["scann_curve"]:
        by_rescored.setdefault(point["rescored"], []).append(point)
    # The most measured say most; six can be told apart.
    longest = sorted(by_rescored.items(), key=lambda r: (-len(r[1]), r[0]))[:6]
    series = []
    for rescored, points in sorted(longest):
        points.sort(key=lambda p: p["bytes_per_query"])
        series.append(
            Series(
                f"{rescored:,} rescored",
                [p["recall"] for p in points],
                [p["bytes_per_query"] / 1e3 for p in points],
            )
        )
    title = f"ScaNN: recall by bytes read{of}"
    plot = lines(
        title, Axis("kB read a query", log=True), Axis("recall"), series
    )
    return Plot(title, plot, "Each point is a setting that was tried.")


def _stock_curve(
    description: Mapping[str, Sequence[Mapping[str, float]]], of: str
) -> Plot:
    points = sorted(description["stock_curve"], key=lambda p: p["rows"])
    title = f"The SavedModels' search: recall by rows read{of}"
    plot = lines(
        title,
        Axis("rows a query", log=True),
        Axis("recall"),
        [
            Series(
                "pieces",
                [p["recall"] for p in points],
                [p["rows"] for p in points],
            )
        ],
    )
    return Plot(title, plot, "Each point is a number of pieces.")
