"""How often gates polarise, with dropout of experts and without."""

from collections.abc import Sequence

from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.gate_problem import config, summary, usage
from pipeline.experiments.verdicts import Check, above
from pipeline.pages.blocks import Table

TRAININGS, STEPS, NUM_EXPERTS = 20, 300, 3
LEARNING_RATES = (0.01, 0.02)
_QUICK_TRAININGS = 3
RATES = {"no_dropout": 0.0, "dropout": 0.1}


class GatePolarisation(Experiment):
    """Trainings of a small problem in which some gates polarise."""

    name = "gate_polarisation"
    title = "Gate polarisation, with and without dropout"
    source = "Zhao et al. 2019, section 5"
    claim = (
        "Gates polarise in a fifth of distributed trainings; setting an "
        "expert's utilisation to 0 with a probability of 10 % and "
        "renormalising removes it."
    )
    protocol = (
        f"{TRAININGS} problems a seed ({_QUICK_TRAININGS} if quick) of three "
        "conflicting tasks, each trained "
        f"for {STEPS} steps with {NUM_EXPERTS} experts, at learning rates of "
        f"{' and '.join(map(str, LEARNING_RATES))}. Polarised: an expert's "
        "mean gate weight on some task is below 1 %, on impressions that were "
        "not trained on."
    )
    caveat = (
        "At rates of learning this high an expert's ReLU units can die before "
        "its gate turns away, which dropout of gates does not prevent; and a "
        "share of some tens of trainings has a spread of its own."
    )

    def settings(self, quick: bool) -> Sequence[Setting]:
        return (
            Setting("no_dropout", "without dropout"),
            Setting("dropout", "with 10 % dropout"),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        trainings = _QUICK_TRAININGS if bench.quick else TRAININGS
        found = {}
        for rate in LEARNING_RATES:
            section = config(RATES[bench.setting], NUM_EXPERTS, rate)
            polarised = [
                bool(
                    summary(usage(1000 * bench.seed + number, section, STEPS))[
                        "polarised"
                    ]
                )
                for number in range(trainings)
            ]
            found[_share(rate)] = sum(polarised) / trainings
        found["polarised"] = sum(found.values()) / len(found)
        return found

    def checks(self, results: Results) -> list[Check]:
        return [
            above(
                "Dropout makes polarised gates rarer",
                results.of("no_dropout", "polarised"),
                results.of("dropout", "polarised"),
                3,
            )
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        rows = [
            [
                setting.title,
                *(
                    spread_text(results.of(setting.name, _share(rate)), 3)
                    for rate in LEARNING_RATES
                ),
            ]
            for setting in self.settings(quick)
        ]
        head = [
            "share of trainings that polarised",
            *(f"learning rate {rate}" for rate in LEARNING_RATES),
        ]
        return Exhibit(tables=(Table("", head, rows),))


def _share(rate: float) -> str:
    return f"polarised_at_{rate}"
