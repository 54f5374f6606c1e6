"""Expected watch time beside the simulator's truth."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.events import read_tables
from models.ranking_predictions import Predictions
from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, plot, series, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import Check, at_most
from pipeline.pages.blocks import Table
from pipeline.pages.plots import Axis, lines

DECILES = 10
SECONDS = "expected_watch_time_s"
_SETTING = "weighted_logistic"
_SIDES = {"predicted": "predicted", "true": "true", "watched": "as watched"}


class ExpectedWatchTime(Experiment):
    """Weighted logistic regression gives seconds, not only an order."""

    name = "watch_time"
    title = "Expected watch time"
    source = "Covington et al. 2016, section 4.2"
    claim = (
        "With impressions weighted by their watch time, the learnt odds are "
        "the expected watch time. (Here `objective: expected_watch_time`, "
        "whose odds are it exactly; the paper's are it nearly where clicks "
        "are rare.)"
    )
    protocol = (
        "Impressions of the test day by tenths of rising prediction; in each "
        "the mean prediction, the mean of what the simulator expects of these "
        "very impressions, clicked or not, and the mean of what was watched."
    )
    caveat = (
        "The test day comes two days after the last one that was learnt: "
        "interests have drifted, and new videos are known by little more than "
        "their channel."
    )
    stages = ("ranking_examples", "ranking_holdout")
    sections = ("ranking", "ranking_examples")

    def settings(self, quick: bool) -> Sequence[Setting]:
        return (
            Setting(
                _SETTING,
                "weighted logistic regression",
                (
                    "ranking.objective=expected_watch_time",
                    f"ranking.score_weights={{{SECONDS}: 1}}",
                    "ranking.hidden_units=[256, 128]",
                    # Videos learnt by heart are predicted too far apart.
                    "ranking.embedding_dropout=0.5",
                ),
            ),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        shown = bench.trainer.predict_ranking(
            bench.train_ranking(),
            bench.data.ranking_holdout(),
            "test",
            detailed=True,
        )
        sides = {
            "predicted": np.asarray(shown.outputs[SECONDS], np.float64),
            "true": _truth(bench, shown),
            "watched": np.asarray(shown.labels["watch_time_s"], np.float64),
        }
        means = decile_means(sides["predicted"], sides)
        error = np.abs(means["predicted"] / means["true"] - 1.0)
        found = {"greatest_error": float(error.max())}
        for side, values in means.items():
            found |= {
                f"{side}.{decile:02d}": float(value)
                for decile, value in enumerate(values, 1)
            }
        return found

    def checks(self, results: Results) -> list[Check]:
        return [
            at_most(
                "In no tenth is the prediction further from the truth than 5 %",
                results.of(_SETTING, "greatest_error"),
                0.05,
            )
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        deciles = range(1, DECILES + 1)
        return Exhibit(
            plot(
                "Watch time by tenths of the prediction",
                lambda: lines(
                    "Watch time by tenths of the prediction",
                    Axis("tenth of the impressions"),
                    Axis("mean watch time, s"),
                    [
                        series(
                            title,
                            results,
                            [(_SETTING, f"{side}.{d:02d}") for d in deciles],
                            [float(d) for d in deciles],
                            side == "true",
                        )
                        for side, title in _SIDES.items()
                    ],
                ),
            ),
            (
                Table(
                    "",
                    ["tenth", *_SIDES.values()],
                    [
                        [
                            str(d),
                            *(
                                spread_text(
                                    results.of(_SETTING, f"{side}.{d:02d}"), 2
                                )
                                for side in _SIDES
                            ),
                        ]
                        for d in deciles
                    ],
                ),
            ),
        )


def decile_means(
    by: np.ndarray, sides: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Means of each array [n] in tenths by rising `by` [n]."""
    parts = np.array_split(np.argsort(by, kind="stable"), DECILES)
    return {
        side: np.array([values[part].mean() for part in parts])
        for side, values in sides.items()
    }


def _truth(bench: Bench, shown: Predictions) -> np.ndarray:
    """The simulator's expectation of each impression, float64 [n] seconds."""
    columns = ("request_id", "video_id", "event_time_us", "position")
    schema = bench.data.schema.arrow("impressions")
    impressions = read_tables(
        bench.data.part("test")["impressions"],
        pa.schema([f for f in schema if f.name in columns]),
    )
    # Simulated logs have positions; the context was asked for.
    assert shown.context is not None and shown.position is not None
    return expected_of(
        shown.context.time_us,
        shown.position,
        impressions,
        bench.truth("impression_truth"),
    )


def expected_of(
    time_us: np.ndarray,
    position: np.ndarray,
    impressions: pa.Table,
    truth: pa.Table,
) -> np.ndarray:
    """What is true of impressions that are known by moment and place.

    Args:
      time_us, position: int64 [n].
      impressions: of the log: `request_id`, `video_id`, `event_time_us`,
        `position`.
      truth: `request_id`, `video_id`, `expected_watch_time_s`.

    Returns:
      float64 [n], seconds.

    Raises:
      ValueError: an impression is not there, or two are at one place of one
        moment.
    """
    known = impressions.join(
        truth.select(["request_id", "video_id", SECONDS]),
        ["request_id", "video_id"],
        join_type="inner",
    )
    asked = pa.table(
        {
            "event_time_us": time_us,
            "position": position,
            "row": np.arange(len(position)),
        }
    )
    rows = asked.join(known, ["event_time_us", "position"], join_type="inner")
    if len(rows) != len(asked):
        raise ValueError(
            f"Expected one impression in the log for each of {len(asked)}, "
            f"found {len(rows)}: some are not there, or two requests are of "
            "one microsecond."
        )
    ordered = rows.take(pc.sort_indices(rows["row"]))
    return np.asarray(ordered[SECONDS], np.float64)
