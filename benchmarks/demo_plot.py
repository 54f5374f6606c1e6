"""Draws what a run's evaluation measured, for the README.

    python -m benchmarks.demo_plot --workdir work/demo --output docs/demo.svg

Retrieval: the hit rate beside the baselines'. Ranking: the weighted per-user
loss, with its 95 % interval if there is one. The picture names the key of the
evaluation, and the same evaluation gives the same bytes.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes

from schemas.artifacts import Artifact, ArtifactStore

OURS, OTHERS = "#1f5fbf", "#b6bcc6"
# Names in `metrics.json` and in the picture, best known last.
RETRIEVAL = {
    "retrieval": "watchnext",
    "baselines.ease": "EASE",
    "baselines.co_watch": "co-watch",
    "baselines.implicit_als": "implicit ALS",
    "baselines.popularity": "popularity",
}
RANKING = {
    "ranking": "watchnext",
    "baselines.click_model.ranking": "click model",
    "baselines.popularity.ranking": "popularity",
}
HIT_RATE, LOSS = "hit_rate_at_100", "weighted_per_user_loss"


def bars(
    metrics: Mapping[str, float], names: Mapping[str, str], metric: str
) -> list[tuple[str, float, tuple[float, float] | None]]:
    """(label, value, interval if there is one) of each that was measured."""
    found = []
    for prefix, label in names.items():
        key = f"{prefix}.{metric}"
        if key in metrics:
            ends = (metrics.get(f"{key}_low"), metrics.get(f"{key}_high"))
            interval = None if None in ends else ends
            found.append((label, metrics[key], interval))
    return found


def draw(evaluation: Artifact, output: str) -> None:
    """Writes the picture of one evaluation."""
    settings = {
        "svg.hashsalt": "watchnext",  # Ids that do not change.
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    metrics = evaluation.metrics
    with pyplot.rc_context(settings):
        figure, (left, right) = pyplot.subplots(
            1, 2, figsize=(8.4, 2.6), layout="constrained"
        )
        _panel(
            left,
            bars(metrics, RETRIEVAL, HIT_RATE),
            "Retrieval: next watch in the top 100\n(higher is better)",
        )
        ranked = bars(metrics, RANKING, LOSS)
        with_interval = any(interval for *_, interval in ranked)
        _panel(
            right,
            ranked,
            "Ranking: weighted per-user loss"
            + (", 95 % interval" if with_interval else "")
            + "\n(lower is better)",
        )
        figure.supxlabel(
            f"test interval; evaluation {evaluation.key[:12]}",
            fontsize=8,
            color="#555555",
        )
        figure.savefig(output, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _panel(
    axes: Axes,
    values: Sequence[tuple[str, float, tuple[float, float] | None]],
    title: str,
) -> None:
    labels = [label for label, *_ in values]
    colors = [OURS if label == "watchnext" else OTHERS for label in labels]
    axes.barh(labels, [value for _, value, _ in values], color=colors)
    for place, (_, value, interval) in enumerate(values):
        if interval is not None:
            axes.hlines(place, *interval, color="black", linewidth=1)
        end = max(value, *(interval or (value,)))
        axes.annotate(
            f"{value:.3f}",
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(title, fontsize=10, loc="left")


def main(argv: Sequence[str] | None = None) -> None:
    """Draws the newest evaluation of a work directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--output", required=True, help="an SVG file")
    args = parser.parse_args(argv)
    versions = ArtifactStore(args.workdir).versions("evaluation")
    if not versions:
        sys.exit(
            f"{args.workdir} has no evaluation; run `watchnext evaluate "
            f"--workdir {args.workdir}` first."
        )
    draw(versions[-1], args.output)


if __name__ == "__main__":
    main()
