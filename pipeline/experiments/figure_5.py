"""Figure 5: what to predict, the next watch or one held out at random."""

from collections.abc import Sequence

from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import Check, above
from pipeline.pages.blocks import Table

NEXT, HELD_OUT = "next_watch", "held_out_watch"
MAP, HIT_RATE = "mean_average_precision", "hit_rate_at_50"


class Figure5(Experiment):
    """Labels with the past as context, or with all the rest."""

    name = "figure_5"
    title = "Figure 5: next watch against held-out watch"
    source = "Covington et al. 2016, section 3.4"
    claim = (
        "Predicting a user's next watch performs much better than predicting "
        "a randomly held-out watch: users' histories are asymmetric, and a "
        "held-out watch leaks what came after it."
    )
    protocol = (
        "The same watches are labels of both. The context of the next watch "
        "is what came before it; that of the held-out one is the rest of the "
        "training window, at most the last 50 other watches and all searches. "
        "Both are judged on the watches of the day after."
    )
    caveat = (
        "Simulated sessions follow a channel's uploads in order, but a "
        "simulated user has no first steps into a subject: there is less "
        "asymmetry to learn than on the real platform."
    )
    stages = ("retrieval_examples", "retrieval_holdout")
    sections = ("retrieval", "retrieval_examples", "evaluation")

    def settings(self, quick: bool) -> Sequence[Setting]:
        return (
            Setting(NEXT, "next watch"),
            Setting(
                HELD_OUT,
                "held-out watch",
                (f"retrieval_examples.label={HELD_OUT}",),
            ),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        return bench.measure_retrieval(bench.train_retrieval())

    def checks(self, results: Results) -> list[Check]:
        return [
            above(
                f"The next watch gives a higher {name}",
                results.of(NEXT, value),
                results.of(HELD_OUT, value),
            )
            for name, value in (("MAP", MAP), ("hit rate @50", HIT_RATE))
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        rows = [
            [
                setting.title,
                spread_text(results.of(setting.name, MAP)),
                spread_text(results.of(setting.name, HIT_RATE)),
            ]
            for setting in self.settings(quick)
        ]
        head = ["label", "MAP", "hit rate @50"]
        return Exhibit(tables=(Table("", head, rows),))
