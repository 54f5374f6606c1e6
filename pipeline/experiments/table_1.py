"""Table 1: hidden layers of the ranking network."""

from collections.abc import Sequence

from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, plot, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import Check, above, mean_and_spread
from pipeline.pages.blocks import Table
from pipeline.pages.plots import Axis, Series, bars

LOSS = "weighted_per_user_loss"
# Hidden layers -> the paper's loss in percent.
LAYERS: dict[tuple[int, ...], float] = {
    (): 41.6,
    (256,): 36.9,
    (512,): 36.7,
    (1024,): 35.8,
    (512, 256): 35.2,
    (1024, 512): 34.7,
    (1024, 512, 256): 34.6,
}
WIDEST = (1024, 512, 256)
# Percentage points that the paper's loss rises by (section 4.3).
NO_POWERS, EQUAL_WEIGHTS = 0.2, 4.1
# Quick: the same shapes at an eighth of the widths.
_QUICK_SHARE = 8


class Table1(Experiment):
    """Weighted per-user loss by configuration."""

    name = "table_1"
    title = "Table 1: hidden layers of the ranking network"
    source = "Covington et al. 2016, section 4.3"
    claim = (
        "Wider and deeper hidden layers lower the weighted per-user loss: none "
        "41.6 %, 256 ReLU 36.9 %, 512 36.7 %, 1024 35.8 %, 512-256 35.2 %, "
        "1024-512 34.7 %, 1024-512-256 34.6 %. Without the powers of "
        "normalised features the loss of the last rises by 0.2 points; with "
        "positives and negatives weighted equally, by 4.1."
    )
    protocol = (
        "Weighted logistic regression of the paper on clicked and unclicked "
        "impressions; the loss is the share of watch time in pairs of a "
        "request that are ordered wrongly, on the test day. Equal weights: "
        "the same network trained by clicks alone. All learn at one rate and "
        "keep their best epoch on the validation day."
    )
    caveat = (
        "A simulated click and watch are a few dozen terms of one logit: "
        "beyond the first layer there is little left to find, and the widest "
        "network has as many weights as there are impressions."
    )
    stages = ("ranking_examples", "ranking_holdout")
    sections = ("ranking", "ranking_examples")

    def settings(self, quick: bool) -> Sequence[Setting]:
        share = _QUICK_SHARE if quick else 1

        def layers(units: tuple[int, ...]) -> str:
            return f"ranking.hidden_units={[u // share for u in units]}"

        return (
            *(
                Setting(_name(units), _title(units), (layers(units),))
                for units in LAYERS
            ),
            Setting(
                "no_powers",
                f"{_title(WIDEST)}, without powers",
                (layers(WIDEST), "ranking.powers=false"),
            ),
            Setting(
                "equal_weights",
                f"{_title(WIDEST)}, equal weights",
                (layers(WIDEST),),
            ),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        equal = bench.setting == "equal_weights"
        model = bench.train_ranking("click_model" if equal else "model")
        return {LOSS: bench.measure_ranking(model)[LOSS]}

    def checks(self, results: Results) -> list[Check]:
        def of(setting: str) -> dict[int, float]:
            return results.of(setting, LOSS)

        widest = of(_name(WIDEST))
        found = [
            above(
                f"{_title(worse)} loses more than {_title(better)}",
                of(_name(worse)),
                of(_name(better)),
            )
            for worse, better in (
                ((), (256,)),
                ((256,), (1024,)),
                ((512,), (512, 256)),
                ((1024,), (1024, 512)),
                ((), WIDEST),
            )
        ]
        return [
            *found,
            above("Without powers it loses more", of("no_powers"), widest),
            above(
                "With equal weights it loses more",
                of("equal_weights"),
                widest,
            ),
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        shown = [
            *((_name(units), _title(units), x) for units, x in LAYERS.items()),
            ("no_powers", "without powers", LAYERS[WIDEST] + NO_POWERS),
            (
                "equal_weights",
                "equal weights",
                LAYERS[WIDEST] + EQUAL_WEIGHTS,
            ),
        ]
        percent = {
            name: {
                seed: 100 * loss
                for seed, loss in results.of(name, LOSS).items()
            }
            for name, *_ in shown
        }
        measured = [
            mean_and_spread(percent[name].values())
            if percent[name]
            else (float("nan"), None)
            for name, *_ in shown
        ]
        return Exhibit(
            plot(
                "Weighted per-user loss",
                lambda: bars(
                    "Weighted per-user loss",
                    [title for _, title, _ in shown],
                    Axis("%"),
                    [
                        Series("the paper", [x for *_, x in shown]),
                        Series(
                            "ours",
                            [mean for mean, _ in measured],
                            spread=[half or 0.0 for _, half in measured],
                        ),
                    ],
                    lying=True,
                ),
                "Another platform's log: orders compare, levels do not."
                + (" Quick: an eighth of the widths." if quick else ""),
            ),
            (
                Table(
                    "",
                    ["hidden layers", "the paper, %", "ours, %"],
                    [
                        [title, paper, spread_text(percent[name], 2)]
                        for name, title, paper in shown
                    ],
                ),
            ),
        )


def _name(units: tuple[int, ...]) -> str:
    return "layers_" + ("_".join(map(str, units)) or "none")


def _title(units: tuple[int, ...]) -> str:
    return "-".join(map(str, units)) or "none"
