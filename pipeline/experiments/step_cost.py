"""What a training step costs by the number of classes."""

from collections.abc import Sequence

import numpy as np

from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, plot, series, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.step_bench import StepBench
from pipeline.experiments.verdicts import Check, at_least, at_most
from pipeline.pages.blocks import Table
from pipeline.pages.plots import Axis, lines

CLASSES = (10_000, 100_000, 1_000_000)
QUICK_CLASSES = (2_000, 20_000)
_ROUNDS, _FULL_ROUNDS = 40, 2
_QUICK_ROUNDS = 10
SAMPLED, FULL = "sampled", "full_softmax"


class StepCost(Experiment):
    """Sampled and full softmax, from few classes to a million."""

    name = "step_cost"
    title = "Cost of a training step by number of classes"
    source = "Covington et al. 2016, section 3.1"
    claim = (
        "Sampling several thousand negatives is more than 100 times faster "
        "than the traditional softmax over millions of classes. Ours: the "
        "sampled step hardly depends on the number of classes."
    )
    protocol = (
        "The paper's sizes: batch 256, a bag of 50, dimension 256, layers "
        "1024-512-256, 2,000 negatives; ids drawn uniformly. Median time of "
        "a step, while nothing else of this reproduction runs."
    )
    caveat = (
        "Rows of a larger table lie further apart in memory, which caches "
        "notice; and other programs of the machine take part in every time."
    )
    sections = ()
    alone = True

    def settings(self, quick: bool) -> Sequence[Setting]:
        return (
            Setting(SAMPLED, "2,000 negatives"),
            Setting(FULL, "full softmax"),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        full = bench.setting == FULL
        rounds = _QUICK_ROUNDS if bench.quick else _ROUNDS
        found = {}
        for classes in QUICK_CLASSES if bench.quick else CLASSES:
            step = StepBench(classes, full_softmax=full)
            times = [
                step.seconds() for _ in range(_FULL_ROUNDS if full else rounds)
            ]
            found[f"step_s.{classes}"] = float(np.median(times))
        return found

    def checks(self, results: Results) -> list[Check]:
        counts = sorted(map(int, results.names("step_s.")))
        if not counts:
            counts = list(CLASSES)
        few, many = counts[0], counts[-1]

        def of(setting: str, classes: int) -> dict[int, float]:
            return results.of(setting, f"step_s.{classes}")

        sampled, full = of(SAMPLED, many), of(FULL, many)
        fewest = of(SAMPLED, few)
        return [
            at_most(
                f"A sampled step at {many:,} classes takes at most twice one "
                f"at {few:,}",
                {
                    seed: sampled[seed] / fewest[seed]
                    for seed in sampled.keys() & fewest.keys()
                },
                2.0,
            ),
            at_least(
                f"At {many:,} classes it is 100 times as fast as the full "
                "softmax's",
                {
                    seed: full[seed] / sampled[seed]
                    for seed in sampled.keys() & full.keys()
                },
                100.0,
                1,
            ),
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        counts = QUICK_CLASSES if quick else CLASSES
        settings = self.settings(quick)
        return Exhibit(
            plot(
                "Time of a step",
                lambda: lines(
                    "Time of a step",
                    Axis("classes", log=True),
                    Axis("seconds", log=True),
                    [
                        series(
                            setting.title,
                            results,
                            [(setting.name, f"step_s.{n}") for n in counts],
                            counts,
                        )
                        for setting in settings
                    ],
                ),
            ),
            (
                Table(
                    "",
                    ["step, ms", *(f"{n:,} classes" for n in counts)],
                    [
                        [
                            setting.title,
                            *(
                                spread_text(
                                    {
                                        seed: 1e3 * s
                                        for seed, s in results.of(
                                            setting.name, f"step_s.{n}"
                                        ).items()
                                    },
                                    1,
                                )
                                for n in counts
                            ),
                        ]
                        for setting in settings
                    ],
                ),
            ),
        )
