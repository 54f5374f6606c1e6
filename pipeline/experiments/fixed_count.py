"""A fixed number of examples per user, or all of them."""

from collections.abc import Sequence

from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import Check, above
from pipeline.pages.blocks import Table

FIXED, WEIGHTED, ALL, EVEN = "fixed", "fixed_weighted", "all", "even"
METRICS = {
    "hit_rate_at_50": "hit rate @50",
    "mean_average_precision": "MAP",
    "by_activity.seen_0_to_5.hit_rate_at_50": "hit rate @50, 0 to 5 seen",
    "by_activity.seen_6_to_20.hit_rate_at_50": "6 to 20 seen",
    "by_activity.seen_21_to_100.hit_rate_at_50": "21 to 100 seen",
}
N = 20


class FixedNumberOfExamples(Experiment):
    """Users that count alike, or by how much they watch."""

    name = "examples_per_user"
    title = "A fixed number of examples per user"
    source = "Covington et al. 2016, section 3.4"
    claim = (
        "Generating a fixed number of training examples per user, so that "
        "users weigh equally in the loss, improves live metrics: a small "
        "cohort of very active users does not dominate the loss."
    )
    protocol = (
        f"All watches of a user as labels, or {N} of them drawn, or those and "
        "a user with fewer weighs as much as one with all. Fewer labels are "
        "less to learn from, whoever has them: so every second watch of each "
        "user stands beside them, about as many labels as the fixed number "
        "gives. Each user of the test day is one case, however active."
    )
    caveat = (
        "A simulated user's taste does not depend on how much he watches: the "
        "active ones speak for all. The even draw shows what the labels left "
        "out are worth by themselves."
    )
    stages = ("retrieval_examples", "retrieval_holdout")
    sections = ("retrieval", "retrieval_examples", "evaluation")

    def settings(self, quick: bool) -> Sequence[Setting]:
        def labels(number: str, weights: bool) -> tuple[str, ...]:
            return (
                f"retrieval_examples.examples_per_user={number}",
                f"retrieval_examples.equal_user_weights={str(weights).lower()}",
            )

        return (
            Setting(ALL, "all of them", labels("null", False)),
            Setting(FIXED, f"at most {N}", labels(str(N), False)),
            Setting(
                EVEN,
                "every second one",
                (*labels("null", False), "retrieval_examples.label_stride=2"),
            ),
            Setting(
                WEIGHTED,
                f"at most {N}, equal weight of users",
                labels(str(N), True),
            ),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        found = bench.measure_retrieval(bench.train_retrieval(), sliced=True)
        # A small log may have no case of some bucket.
        return {name: found[name] for name in METRICS if name in found}

    def checks(self, results: Results) -> list[Check]:
        value = "hit_rate_at_50"
        return [
            above(
                f"{title} beats all, by hit rate @50 of users",
                results.of(name, value),
                results.of(ALL, value),
            )
            for name, title in (
                (FIXED, f"At most {N} examples"),
                (WEIGHTED, "Equal weight of users"),
            )
        ] + [
            above(
                f"At most {N} examples beat about as many drawn evenly",
                results.of(FIXED, value),
                results.of(EVEN, value),
            )
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        rows = [
            [
                setting.title,
                *(spread_text(results.of(setting.name, m)) for m in METRICS),
            ]
            for setting in self.settings(quick)
        ]
        head = ["examples per user", *METRICS.values()]
        return Exhibit(tables=(Table("", head, rows),))
