"""Ranking on the test interval: metrics, calibration, slices, other orders."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.pages.blocks import (
    Block,
    Cell,
    Folded,
    Grid,
    Missing,
    Plot,
    Table,
    Text,
    words,
)
from pipeline.pages.page import number
from pipeline.pages.plots import Axis, Series, bars, scatter
from pipeline.report.evaluated import compared, evaluated
from pipeline.report.work_folder import Side, titled

_OURS = "ranking."
_EXPECTED, _OBSERVED = "mean_expected_watch_time_s", "mean_watch_time_s"
_DECILES = "by_prediction"
_CUTS = ("by_activity", "by_video_age", "by_duration", "by_surface")
# The order in which buckets are read; others (surfaces) by name.
_ORDER = (
    *("watched_0_to_5", "watched_6_to_20", "watched_over_20"),
    *("under_2_days", "2_to_7_days", "7_to_30_days", "over_30_days"),
    *("under_1_minute", "1_to_5_minutes", "5_to_20_minutes"),
    *("over_20_minutes", "out_of_vocabulary"),
    *(f"decile_{n}" for n in range(1, 11)),
)
_ENDS = ("_low", "_high")
_SLICED = (
    *("impressions", "auc_click", "weighted_per_user_loss"),
    *("calibration", _EXPECTED, _OBSERVED),
)


def ranking(sides: Sequence[Side]) -> Iterator[Block]:
    """Metrics beside the baselines, with calibration and slices."""
    missing = "Ranking is not evaluated", ", or the log has no impressions."
    yield from compared(sides, _names, _OURS, "The model", missing)
    measured = evaluated(sides, _names)
    if not measured:
        return
    for side in measured:
        yield _beside_baselines(side, len(sides))
    yield from _calibration(measured, len(sides))
    for side in measured:
        yield from _slices(side, len(sides))
        yield from _off_policy(side, len(sides))


def buckets_of(metrics: Mapping[str, float], cut: str) -> list[str]:
    """Buckets of a cut that were measured, in the order to read them."""
    start = f"{_OURS}{cut}."
    found = {
        key.removeprefix(start).partition(".")[0]
        for key in metrics
        if key.startswith(start)
    }
    return sorted(
        found,
        key=lambda b: (_ORDER.index(b) if b in _ORDER else len(_ORDER), b),
    )


def slice_of(metrics: Mapping[str, float], bucket: str) -> dict[str, Cell]:
    """Of `<cut>.<bucket>` what a slice has, None where it is not defined."""
    return {m: metrics.get(f"{_OURS}{bucket}.{m}") for m in _SLICED}


def _names(metrics: Mapping[str, float]) -> list[str]:
    """Names of the model's metrics, without slices and intervals."""
    return [
        key.removeprefix(_OURS)
        for key in sorted(metrics)
        if key.startswith(_OURS)
        and "." not in key.removeprefix(_OURS)
        and not key.endswith(_ENDS)
    ]


def _baselines(metrics: Mapping[str, float]) -> dict[str, str]:
    """Name -> prefix of its metrics."""
    found = {}
    for key in metrics:
        first, _, rest = key.partition(".")
        name, _, metric = rest.partition(".")
        if first == "baselines" and metric.startswith(_OURS):
            found[words(name)] = f"baselines.{name}.{_OURS}"
    return found


def _beside_baselines(side: Side, sides: int) -> Table:
    metrics = side.folder.metrics
    baselines = _baselines(metrics)
    return Table(
        titled("Beside the baselines", side, sides),
        ["metric", "95 % interval", "model", *baselines],
        [
            [
                name,
                _interval(metrics, _OURS + name),
                metrics[_OURS + name],
                *(metrics.get(prefix + name) for prefix in baselines.values()),
            ]
            for name in _names(metrics)
        ],
        "Intervals resample the test's users. All metrics are defined in "
        "docs/evaluation.md.",
        text_columns=2,
    )


def _interval(metrics: Mapping[str, float], name: str) -> str:
    low, high = (metrics.get(name + end) for end in _ENDS)
    if low is None or high is None:
        return "–"
    return f"{number(low)} to {number(high)}"


def _calibration(measured: Sequence[Side], sides: int) -> Iterator[Block]:
    """Predicted beside observed seconds, by decile and by duration."""
    series = []
    for side in measured:
        metrics = side.folder.metrics
        points = _points(metrics, _DECILES)
        if points:
            expected, observed, spread = zip(*points, strict=True)
            below_above = list(zip(*spread, strict=True))
            series.append(Series(side.name, observed, expected, below_above))
    plots = []
    if series:
        title = "Calibration by tenths of the prediction"
        plot = scatter(
            title,
            Axis("expected watch time (s)"),
            Axis("observed watch time (s)"),
            series,
            diagonal=True,
        )
        said = (
            "Impressions by rising prediction, a tenth a point; on the dashed "
            "line the mean prediction is what was watched. Bars are 95 % "
            "intervals."
        )
        plots.append(Plot(title, plot, said))
    for side in measured:
        if (plot_ := _by_duration(side, sides)) is not None:
            plots.append(plot_)
    if plots:
        yield Grid(plots)
    else:
        yield Missing(
            "The calibration has no points: the evaluation is of an older "
            "version, or the objective predicts no seconds."
        )


def _points(
    metrics: Mapping[str, float], cut: str
) -> list[tuple[float, float, tuple[float, float]]]:
    """Expected and observed seconds of each bucket, and the interval."""
    points = []
    for bucket in buckets_of(metrics, cut):
        start = f"{_OURS}{cut}.{bucket}."
        expected = metrics.get(start + _EXPECTED)
        observed = metrics.get(start + _OBSERVED)
        if expected is None or observed is None:
            continue
        low, high = (
            metrics.get(f"{start}{_OBSERVED}{end}", observed) for end in _ENDS
        )
        # A studentised interval may lie beside a skewed mean.
        spread = max(observed - low, 0.0), max(high - observed, 0.0)
        points.append((expected, observed, spread))
    return points


def _by_duration(side: Side, sides: int) -> Plot | None:
    metrics = side.folder.metrics
    points = _points(metrics, "by_duration")
    if not points:
        return None
    expected, observed, spread = zip(*points, strict=True)
    title = titled("Calibration by the video's duration", side, sides)
    below_above = list(zip(*spread, strict=True))
    plot = bars(
        title,
        [words(b) for b in buckets_of(metrics, "by_duration")],
        # The intervals of small slices are wide: they may leave the plot.
        Axis(
            "watch time (s an impression)",
            limits=(0.0, 1.6 * max(*expected, *observed, 1.0)),
        ),
        [
            Series("expected", expected),
            Series("observed", observed, spread=below_above),
        ],
        lying=True,
    )
    return Plot(title, plot, "With 95 % intervals of what was observed.")


def _slices(side: Side, sides: int) -> Iterator[Block]:
    metrics = side.folder.metrics
    rows: list[list[Cell]] = [
        [words(cut.removeprefix("by_")), words(bucket), *values.values()]
        for cut in _CUTS
        for bucket in buckets_of(metrics, cut)
        for values in [slice_of(metrics, f"{cut}.{bucket}")]
    ]
    if not rows:
        return
    named = [row for row in rows if row[3] is not None]
    title = titled("AUC of the click by slice", side, sides)
    if named:
        plot = bars(
            title,
            [str(row[1]) for row in named],
            Axis("AUC", limits=(0.0, 1.0)),
            [Series("model", [float(row[3] or 0.0) for row in named])],
            lying=True,
        )
        said = (
            "By watches that the request carries, age and duration of the "
            "video, surface. One half is chance."
        )
        yield Grid([Plot(title, plot, said)])
    table = Table(
        titled("Slices", side, sides),
        ["cut by", "slice", *(words(m) for m in _SLICED)],
        rows,
        text_columns=2,
    )
    yield Folded(titled("Slices, in numbers", side, sides), [table])


def _off_policy(side: Side, sides: int) -> Iterator[Block]:
    metrics = side.folder.metrics
    start = f"{_OURS}off_policy."
    found = [
        key.removeprefix(start)
        for key in sorted(metrics)
        if key.startswith(start) and not key.endswith(_ENDS)
    ]
    title = titled("What the model's order would have earned", side, sides)
    if not found:
        yield Text(
            f"{title}: not known, as the log has no requests whose positions "
            "were left to chance."
        )
        return
    yield Table(
        title,
        ["estimate", "95 % interval", "value"],
        [
            [words(n), _interval(metrics, start + n), metrics[start + n]]
            for n in found
        ],
        "Over the test's requests whose positions were left to chance.",
        text_columns=2,
    )
