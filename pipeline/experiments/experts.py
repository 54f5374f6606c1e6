"""A mixture of experts against a shared bottom, at equal cost."""

from collections.abc import Sequence

from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import BySeed, Check, above, at_least
from pipeline.pages.blocks import Table

SHARED, MIXTURE_4, MIXTURE_8 = "shared_bottom", "mmoe_4", "mmoe_8"
# Metric -> its title; engagement, then satisfaction.
METRICS = {
    "auc_click": "click AUC",
    "weighted_per_user_loss": "weighted per-user loss",
    "auc_liked": "like AUC",
    "auc_dismissed": "dismissal AUC",
    "watch_time_xauc": "watch time XAUC",
}
_TASKS = ("clicked", "liked", "dismissed")
# Task -> how its own model is judged.
ALONE = {
    "clicked": "auc_click",
    "liked": "auc_liked",
    "dismissed": "auc_dismissed",
    "watch_time": "watch_time_xauc",
}
# A task may lose so much to its own model (AUC).
LOSS = 0.002


class ExpertsAgainstSharedBottom(Experiment):
    """Tasks of engagement and of satisfaction on one network."""

    name = "experts"
    title = "Mixture of experts against a shared bottom"
    source = "Zhao et al. 2019, sections 5.2 and 5.3"
    claim = (
        "At the same number of multiplications, a multi-gate mixture of "
        "experts improves engagement and satisfaction over a shared bottom, "
        "in live experiments."
    )
    protocol = (
        "Watch time, clicks, likes and dismissals are learnt together. After "
        "a shared layer of 256 there is one of 128, or 4 experts of 32, or 8 "
        "of 16, each task with a gate of its own; or, of 256-128 as the shared "
        "bottom, a network for each task alone. Measured on the test day."
    )
    caveat = (
        "Simulated tasks hardly conflict: likes and watch time grow with the "
        "same liking and quality that clicks do, and only clickbait parts "
        "them. An effect of half a percent in live metrics would be smaller "
        "than the spread here."
    )
    stages = ("ranking_examples", "ranking_holdout")
    sections = ("ranking", "ranking_examples")
    version = 2

    def settings(self, quick: bool) -> Sequence[Setting]:
        tasks = f"ranking.tasks={list(_TASKS)}"
        mixtures = (
            ((MIXTURE_8, 8),) if quick else ((MIXTURE_4, 4), (MIXTURE_8, 8))
        )
        return (
            Setting(
                SHARED,
                "shared bottom, 256-128",
                (tasks, "ranking.hidden_units=[256, 128]"),
            ),
            *(
                Setting(
                    name,
                    f"{number} experts of {128 // number} on 256",
                    (
                        tasks,
                        "ranking.hidden_units=[256]",
                        f"ranking.experts={{number: {number}, "
                        f"units: [{128 // number}]}}",
                    ),
                )
                for name, number in mixtures
            ),
            *(_alone(task) for task in ALONE),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        found = bench.measure_ranking(bench.train_ranking())
        own = {_alone(task).name: (metric,) for task, metric in ALONE.items()}
        return {name: found[name] for name in own.get(bench.setting, METRICS)}

    def checks(self, results: Results) -> list[Check]:
        return [
            above(
                f"8 experts rank {what} better than the shared bottom "
                f"({METRICS[metric]})",
                results.of(MIXTURE_8, metric),
                results.of(SHARED, metric),
            )
            for what, metric in (
                ("engagement", "auc_click"),
                ("satisfaction", "auc_liked"),
            )
        ] + self._against_single_tasks(results)

    @staticmethod
    def _against_single_tasks(results: Results) -> list[Check]:
        gains = {
            task: _gain(
                results.of(MIXTURE_8, metric),
                results.of(_alone(task).name, metric),
            )
            for task, metric in ALONE.items()
        }
        seeds = set.intersection(*(set(gain) for gain in gains.values()))
        better = {
            seed: float(sum(gain[seed] > 0.0 for gain in gains.values()))
            for seed in seeds
        }
        worst = {
            seed: min(gain[seed] for gain in gains.values()) for seed in seeds
        }
        return [
            at_least(
                "With 8 experts no task is worse than alone by more than "
                f"{LOSS} (AUC, XAUC)",
                worst,
                -LOSS,
                digits=4,
            ),
            at_least("... and at least two are better", better, 2.0),
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        rows = [
            [
                setting.title,
                *(spread_text(results.of(setting.name, m)) for m in METRICS),
            ]
            for setting in self.settings(quick)
        ]
        return Exhibit(
            tables=(Table("", ["network", *METRICS.values()], rows),)
        )


def _alone(task: str) -> Setting:
    """One task's own network, of the shared bottom's size."""
    overrides = ["ranking.hidden_units=[256, 128]"]
    if task != "watch_time":
        overrides += [
            f"ranking.tasks=[{task}]",
            "ranking.task_weights={watch_time: 0}",
            f"ranking.score_weights={{{task}: 1}}",
        ]
    return Setting(f"alone_{task}", f"{task} alone", tuple(overrides))


def _gain(of: BySeed, over: BySeed) -> dict[int, float]:
    return {seed: of[seed] - over[seed] for seed in of.keys() & over.keys()}
