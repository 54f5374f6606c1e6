"""Figure 6: features and depth."""

from collections.abc import Sequence

from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, plot, series, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import Check, above, rising
from pipeline.pages.blocks import Table
from pipeline.pages.plots import Axis, lines

MAP = "mean_average_precision"
# A quarter of the paper's widths, before the query embedding of 64 = 256 / 4.
DEPTHS: dict[int, tuple[tuple[int, ...], str]] = {
    0: ((), "linear"),
    1: ((), "relu"),
    2: ((128,), "relu"),
    3: ((256, 128), "relu"),
    4: ((512, 256, 128), "relu"),
}
QUICK_DEPTHS = (0, 3)
# Lines that have all depths; the others have those features are judged at.
WHOLE = ("watches", "all")
LINEAR = "linear"
# The depth at which features are judged: the paper's own (section 3.5).
OF_FEATURES = 3
_DEMOGRAPHICS = (
    *("user_region", "user_device", "user_language", "user_gender"),
    *("user_logged_in", "user_age"),
)
# Each row adds to the one before: what it still leaves out.
FEATURES = {
    "watches": (
        "watches",
        ("search_tokens", *_DEMOGRAPHICS, "example_age"),
    ),
    "searches": ("+ searches", (*_DEMOGRAPHICS, "example_age")),
    "demographics": ("+ demographics", ("example_age",)),
    "all": ("+ example age", ()),
}
LINES = FEATURES | {LINEAR: ("all, last layer linear", ())}


class Figure6(Experiment):
    """MAP on held-out watches for each depth and set of features."""

    name = "figure_6"
    title = "Figure 6: features and depth"
    source = "Covington et al. 2016, section 3.5"
    claim = (
        "Features beyond video embeddings improve holdout MAP, and layers of "
        "depth add expressiveness: with all features it rises from depth 0 to "
        "depth 4."
    )
    protocol = (
        "Depths as in the paper at a quarter of its widths: a linear layer of "
        "64; 64 ReLU; 128-64; 256-128-64; 512-256-128-64. MAP is over all "
        "watches of the test day, one case a user, at example age 0. Beside "
        "the paper's networks, whose last layer is rectified, are the same "
        "with a linear last layer: at depth 0 there is nothing to rectify, so "
        "only they differ from it in depth alone."
    )
    caveat = (
        "A rectified query embedding of 64 has one orthant of the space; the "
        "line of linear last layers shows what that costs. A simulated user's "
        "next watch follows mostly from the channels and topics of the last "
        "watches, which a linear layer over the mean of 50 embeddings sees "
        "nearly as well."
    )
    stages = ("retrieval_examples", "retrieval_holdout")
    sections = ("retrieval", "retrieval_examples", "evaluation")

    def settings(self, quick: bool) -> Sequence[Setting]:
        return [
            Setting(
                _name(line, depth),
                f"{title}, depth {depth}",
                (
                    f"retrieval.hidden_units={list(units)}",
                    f"retrieval.output_activation={activation}",
                    f"retrieval.left_out={list(left_out)}",
                ),
            )
            for line, (title, left_out) in LINES.items()
            for depth in _depths(line, quick)
            for units, activation in (_layers(line, depth),)
        ]

    def measure(self, bench: Bench) -> dict[str, float]:
        return bench.measure_retrieval(bench.train_retrieval())

    def checks(self, results: Results) -> list[Check]:
        def of(features: str, depth: int) -> dict[int, float]:
            return results.of(_name(features, depth), MAP)

        deepest = max((d for d in DEPTHS if of("all", d)), default=OF_FEATURES)
        depths = [d for d in DEPTHS if of("all", d)]
        return [
            above(
                f"All features beat watches alone, at depth {OF_FEATURES}",
                of("all", OF_FEATURES),
                of("watches", OF_FEATURES),
            ),
            rising(
                f"Each group of features adds, at depth {OF_FEATURES}",
                [of(name, OF_FEATURES) for name in FEATURES],
            ),
            above(
                f"Depth {deepest} beats depth 0, with all features",
                of("all", deepest),
                of("all", 0),
            ),
            rising(
                "Each layer of depth adds, with all features",
                [of("all", depth) for depth in depths],
            ),
            above(
                f"Depth {deepest} beats depth 0 where its last layer is linear "
                "too",
                of(LINEAR, deepest),
                of("all", 0),
            ),
            above(
                f"At depth {deepest} rectifying the last layer costs MAP",
                of(LINEAR, deepest),
                of("all", deepest),
            ),
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        depths = QUICK_DEPTHS if quick else tuple(DEPTHS)
        return Exhibit(
            plot(
                "Holdout MAP by depth",
                lambda: lines(
                    "Holdout MAP by depth",
                    Axis(
                        "depth",
                        ticks=tuple((float(d), str(d)) for d in depths),
                    ),
                    Axis("MAP"),
                    [
                        series(
                            title,
                            results,
                            [(_name(line, d), MAP) for d in of_line],
                            of_line,
                        )
                        for line, (title, _) in LINES.items()
                        for of_line in (_depths(line, quick),)
                    ],
                ),
                "The band is the spread over the seeds.",
            ),
            (
                Table(
                    "",
                    ["MAP", *(f"depth {depth}" for depth in depths)],
                    [
                        [
                            title,
                            *(
                                spread_text(results.of(_name(line, d), MAP))
                                for d in depths
                            ),
                        ]
                        for line, (title, _) in LINES.items()
                    ],
                ),
            ),
        )


def _depths(line: str, quick: bool) -> tuple[int, ...]:
    """The depths that a line has; at depth 0 all last layers are linear."""
    depths = QUICK_DEPTHS if quick else tuple(DEPTHS)
    if line == LINEAR:
        return depths[1:]
    if line in WHOLE:
        return depths
    return (OF_FEATURES,) if quick else QUICK_DEPTHS


def _layers(line: str, depth: int) -> tuple[tuple[int, ...], str]:
    units, activation = DEPTHS[depth]
    return units, "linear" if line == LINEAR else activation


def _name(features: str, depth: int) -> str:
    return f"{features}_depth_{depth}"
