"""The trainings: what each epoch measured, and which one was kept."""

from collections.abc import Iterator, Mapping, Sequence

from pipeline.pages.blocks import (
    Block,
    Grid,
    Missing,
    Plot,
    Text,
    side_by_side,
    words,
)
from pipeline.pages.plots import Axis, Series, lines
from pipeline.report.work_folder import Side

_HISTORY = "history.json"
# Of each model what is worth a curve, as far as it was measured: metric and
# its axis.
_CURVES: Mapping[str, Sequence[tuple[str, str]]] = {
    "retrieval_model": (
        ("train_loss", "sampled softmax, nats"),
        ("hit_rate_at_10", "hit rate"),
        ("hit_rate_at_100", "hit rate"),
        ("mean_average_precision", "MAP"),
    ),
    "ranking_model": (
        ("train_loss", "loss"),
        ("loss", "loss"),
        ("auc_click", "AUC"),
        ("weighted_per_user_loss", "loss"),
        ("calibration", "expected / observed"),
        ("watch_time_mae_s", "s"),
    ),
}


def training(sides: Sequence[Side]) -> Iterator[Block]:
    """Curves and the kept epoch of both models."""
    for stage, curves in _CURVES.items():
        name = words(stage)
        histories = {
            side.name: side.folder.json(stage, _HISTORY)
            for side in sides
            if side.folder.stage(stage) is not None
        }
        for side in sides:
            if side.name not in histories:
                of = "" if len(sides) == 1 else f" in {side.name}"
                yield Missing(f"There is no {name}{of} yet.")
        if not histories:
            continue
        kept = []
        for side in sides:
            if (model := side.folder.stage(stage)) is None:
                continue
            epochs = len(histories[side.name])
            best = model.counts["best_epoch"]
            of = "" if len(sides) == 1 else f" of {side.name}"
            kept.append(f"The {name}{of} is that of epoch {best} of {epochs}.")
        yield Text(" ".join(kept))
        metrics = [metric for metric, _ in curves]
        kept_epochs = side_by_side(
            f"The kept {name}",
            [side.name for side in sides],
            [_kept(side, stage, metrics, histories) for side in sides],
        )
        drawn = [_curve(name, *curve, histories) for curve in curves]
        yield Grid([*(plot for plot in drawn if plot), kept_epochs])


def _curve(
    model: str,
    metric: str,
    unit: str,
    histories: Mapping[str, Sequence[Mapping[str, float]]],
) -> Plot | None:
    series = []
    for name, epochs in histories.items():
        points = [
            (number, epoch[metric])
            for number, epoch in enumerate(epochs, 1)
            if metric in epoch
        ]
        if points:
            x, y = zip(*points, strict=True)
            series.append(Series(name, y, x))
    longest = max((len(one.y) for one in series), default=0)
    if longest < 2:  # A point is no curve; the table has its number.
        return None
    every = -(-longest // 10)
    ticks = tuple(
        (float(n), str(n)) for n in range(1, longest + 1) if n % every == 0
    )
    title = f"{model}: {words(metric)}"
    where = "training" if metric == "train_loss" else "validation"
    return Plot(
        title,
        lines(title, Axis("epoch", ticks=ticks), Axis(unit), series),
        f"On {where}.",
    )


def _kept(
    side: Side,
    stage: str,
    metrics: Sequence[str],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, float | None]:
    """Metrics of the epoch that was kept; a refit after it measures none."""
    model = side.folder.stage(stage)
    if model is None or not histories[side.name]:
        return {}
    epoch = histories[side.name][max(model.counts["best_epoch"], 1) - 1]
    return {words(m): epoch[m] for m in metrics if m in epoch}
