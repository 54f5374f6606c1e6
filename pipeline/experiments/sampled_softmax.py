"""Sampled softmax by number of negatives and sampler, against the full one."""

from collections.abc import Sequence

from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, plot, series, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import Check, above, at_least
from pipeline.pages.blocks import Table
from pipeline.pages.plots import Axis, Series, lines

FULL = "full_softmax"
NUMBERS = (10, 50, 200, 1000)
QUICK_NUMBERS = (10, 200)
SAMPLERS = ("log_uniform", "unigram", "uniform")
# The number of negatives at which samplers are compared.
OF_SAMPLERS = 200
HIT_RATE, MAP = "hit_rate_at_50", "mean_average_precision"


class SampledSoftmax(Experiment):
    """How many negatives, drawn how, make the full softmax needless."""

    name = "sampled_softmax"
    title = "Sampled softmax against the full one"
    source = "Covington et al. 2016, section 3.1"
    claim = (
        "With several thousand negatives sampled from the background "
        "distribution and importance weighting, training is more than 100 "
        "times faster than by the traditional softmax. Ours: with a few "
        "hundred, corrected by ln E, it is as good."
    )
    protocol = (
        "Negatives are drawn once a batch and shared by it; the logit of a "
        "class is corrected by the logarithm of its expected count. The full "
        "softmax is over all videos. All else is equal."
    )
    caveat = (
        "With so few videos, some negatives of a batch are its labels: the "
        "fewer the classes, the more a shared sample repeats."
    )
    stages = ("retrieval_examples", "retrieval_holdout")
    sections = ("retrieval", "retrieval_examples", "evaluation")

    def settings(self, quick: bool) -> Sequence[Setting]:
        found = []
        for sampler in SAMPLERS:
            numbers = QUICK_NUMBERS if quick else NUMBERS
            for number in numbers:
                if sampler != SAMPLERS[0] and number != OF_SAMPLERS:
                    continue
                found.append(
                    Setting(
                        _name(sampler, number),
                        f"{number:,} {sampler.replace('_', '-')}",
                        (
                            f"retrieval.num_negatives={number}",
                            f"retrieval.sampler={sampler}",
                        ),
                    )
                )
        return (*found, Setting(FULL, "full softmax"))

    def measure(self, bench: Bench) -> dict[str, float]:
        full = bench.setting == FULL
        model = bench.train_retrieval("full_softmax" if full else "model")
        return bench.measure_retrieval(model)

    def checks(self, results: Results) -> list[Check]:
        full = results.of(FULL, HIT_RATE)
        numbers = [
            n for n in NUMBERS if results.of(_name(SAMPLERS[0], n), HIT_RATE)
        ] or [OF_SAMPLERS]
        most = results.of(_name(SAMPLERS[0], numbers[-1]), HIT_RATE)
        few = results.of(_name(SAMPLERS[0], numbers[0]), HIT_RATE)
        return [
            at_least(
                f"{numbers[-1]:,} negatives give 0.95 of the full softmax's "
                "hit rate @50 or more",
                {s: most[s] / full[s] for s in most.keys() & full.keys()},
                0.95,
            ),
            above(
                f"{numbers[-1]:,} negatives beat {numbers[0]:,}",
                most,
                few,
            ),
            above(
                f"{OF_SAMPLERS} drawn by popularity beat as many uniform ones",
                results.of(_name("log_uniform", OF_SAMPLERS), HIT_RATE),
                results.of(_name("uniform", OF_SAMPLERS), HIT_RATE),
            ),
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        numbers = QUICK_NUMBERS if quick else NUMBERS
        full = results.mean(FULL, HIT_RATE)
        shown = [
            series(
                "log-uniform",
                results,
                [(_name(SAMPLERS[0], n), HIT_RATE) for n in numbers],
                numbers,
            ),
            *(
                series(
                    sampler,
                    results,
                    [(_name(sampler, OF_SAMPLERS), HIT_RATE)],
                    [OF_SAMPLERS],
                )
                for sampler in SAMPLERS[1:]
            ),
        ]
        if full is not None:
            ends = (numbers[0], numbers[-1])
            shown.append(
                Series("full softmax", [full, full], ends, reference=True)
            )
        rows = [
            [
                setting.title,
                *(
                    spread_text(results.of(setting.name, value))
                    for value in (HIT_RATE, MAP)
                ),
            ]
            for setting in self.settings(quick)
        ]
        return Exhibit(
            plot(
                "Hit rate @50 by number of negatives",
                lambda: lines(
                    "Hit rate @50 by number of negatives",
                    Axis("negatives a batch", log=True),
                    Axis("hit rate @50"),
                    shown,
                ),
            ),
            (Table("", ["trained by", "hit rate @50", "MAP"], rows),),
        )


def _name(sampler: str, number: int) -> str:
    return f"{sampler}_{number}"
