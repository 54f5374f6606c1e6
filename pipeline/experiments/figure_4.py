"""Figure 4: the example age tells the model when a video is popular."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from beam_jobs.events import read_tables
from beam_jobs.sources.simulated import simulate
from models.inputs import dataset, max_lengths
from models.keras_setup import tf
from pipeline.experiments import age_curves
from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, plot, series, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import Check, at_least, at_most
from pipeline.pages.blocks import Table
from pipeline.pages.plots import Axis, Series, lines
from pipeline.video_columns import video_column
from schemas.examples import retrieval_keys
from schemas.split import DAY_US
from schemas.vocabularies import Vocabulary, read_vocabulary

CONTEXTS, VIDEOS = 2000, 50
# Days of the window before an upload and after it, for there to be a curve.
DAYS_AROUND = 5
# How many times the log's users the true popularity is counted from: beside
# the log's own, its noise is small.
CROWD = 4
WITH, WITHOUT = "with_age", "without_age"
# As in the paper; the scales give the age as hat functions.
ONE_NUMBER = "one_number"


class Figure4(Experiment):
    """With the example age a video's probability follows its popularity."""

    name = "figure_4"
    title = "Figure 4: the example age"
    source = "Covington et al. 2016, section 3.3"
    claim = (
        "A model trained with the age of its examples represents the upload "
        "time and time-dependent popularity of a video; without it, it "
        "predicts about the average likelihood over the training window."
    )
    protocol = (
        f"{CONTEXTS:,} contexts of training examples are fixed and only the "
        "example age is swept over the days of the window. Ours goes in as hat "
        "functions, one a day (`retrieval.example_age_hats`); as one number, "
        "the paper's way, it is beside it. The probability is "
        f"the full softmax's, the mean over the contexts, of the {VIDEOS} "
        "most watched videos uploaded inside the window. The log's curve is "
        "a video's share of a day's completed watches; the true popularity is "
        f"its share among {CROWD} times as many users of the same platform, "
        "simulated apart, whom no model sees. (Attractiveness, which the "
        "simulator draws candidates by, is beside them: what is watched "
        "follows it late, after it was recommended.) A constant curve's "
        "correlation is undefined and counts as 0."
    )
    caveat = (
        "A video's own curve in the log is noisy, with some tens of watches a "
        "day, and the watch history of a context says when it is from, which "
        "takes part of the effect from the age."
    )
    stages = ("retrieval_examples",)
    sections = ("simulator", "retrieval", "retrieval_examples")
    version = 2

    def settings(self, quick: bool) -> Sequence[Setting]:
        return (
            Setting(WITH, "with example age"),
            Setting(
                ONE_NUMBER,
                "with it as one number",
                ("retrieval.example_age_hats=1",),
            ),
            Setting(
                WITHOUT,
                "without",
                ("retrieval.left_out=[example_age]",),
            ),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        data, bounds = bench.data, bench.data.bounds
        vocabulary = read_vocabulary(data.vocabularies().path, "video")
        videos, upload_day = _chosen(bench, vocabulary)
        model = bench.train_retrieval()
        ages = age_curves.day_ages(bounds)
        curves = {
            "model": age_curves.swept_probabilities(
                model, _contexts(bench), ages, videos
            ),
            "log": age_curves.daily_shares(_watches(bench), vocabulary, bounds)[
                videos - 1
            ],
            "crowd": age_curves.daily_shares(_crowd(bench), vocabulary, bounds)[
                videos - 1
            ],
            "pull": age_curves.true_shares(
                bench.truth("video_truth"), vocabulary, len(ages)
            )[videos - 1],
        }
        found = {
            f"correlation_{one}_{other}": float(
                np.median(age_curves.correlations(curves[one], curves[other]))
            )
            for one, other in (
                ("model", "log"),
                ("model", "crowd"),
                ("model", "pull"),
                ("log", "crowd"),
                ("log", "pull"),
            )
        }
        flatness = curves["model"].max(axis=1) / curves["model"].min(axis=1)
        found["flatness"] = float(np.median(flatness))
        for side, of_videos in curves.items():
            means = age_curves.by_days_since_upload(of_videos, upload_day)
            found |= {f"curve.{side}.{age:+03d}": p for age, p in means.items()}
        return found

    def checks(self, results: Results) -> list[Check]:
        return [
            at_least(
                "With the example age, a video's curve correlates with its "
                "share of the log (median of 50 videos): 0.9 or more",
                results.of(WITH, "correlation_model_log"),
                0.9,
            ),
            at_least(
                "... and with the true popularity, which no model sees",
                results.of(WITH, "correlation_model_crowd"),
                0.9,
            ),
            at_most(
                "Without it the curve is flat: max / min at most 1.3",
                results.of(WITHOUT, "flatness"),
                1.3,
            ),
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        return Exhibit(
            plot(
                "Class probability by days since upload",
                lambda: lines(
                    "Class probability by days since upload",
                    Axis("days since upload"),
                    Axis("class probability"),
                    [
                        _curve("with example age", results, WITH, "model"),
                        _curve("as one number", results, ONE_NUMBER, "model"),
                        _curve("without", results, WITHOUT, "model"),
                        _curve("true popularity", results, WITH, "crowd", True),
                    ],
                ),
                "Mean of the videos and seeds; the band is the spread over "
                "the seeds.",
            ),
            (_correlations(results, self.settings(quick)),),
        )


def _correlations(results: Results, settings: Sequence[Setting]) -> Table:
    """Each model's correlations, and the log's own as what there can be."""

    def shown(setting: str, name: str) -> str:
        return spread_text(results.of(setting, name), 3)

    others = ("crowd", "pull")
    models = [
        [
            setting.title,
            *(
                shown(setting.name, f"correlation_model_{other}")
                for other in ("log", *others)
            ),
            shown(setting.name, "flatness"),
        ]
        for setting in settings
    ]
    log = [shown(WITH, f"correlation_log_{other}") for other in others]
    return Table(
        "",
        [
            "model",
            "correlation with the log",
            "with the true popularity",
            "with the attractiveness",
            "max / min",
        ],
        [*models, ["the log itself", "1", *log, None]],
    )


def _curve(
    title: str,
    results: Results,
    setting: str,
    side: str,
    reference: bool = False,
) -> Series:
    """A side's probability by days since upload."""
    prefix = f"curve.{side}."
    ages = sorted(results.names(prefix), key=int)
    return series(
        title,
        results,
        [(setting, prefix + age) for age in ages],
        [int(age) for age in ages],
        reference,
    )


def _chosen(
    bench: Bench, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """The most watched videos that were uploaded well inside the window.

    Returns:
      ids and days of upload, int64 [n].
    """
    bounds = bench.data.bounds
    upload_us = video_column(bench.data, vocabulary, "upload_time_us")
    assert upload_us is not None  # Simulated logs have it.
    days = (bounds.train_end_us - bounds.log_start_us) // DAY_US
    day = np.floor((upload_us - bounds.log_start_us) / DAY_US).astype(np.int64)
    inside = (day >= DAYS_AROUND) & (day < days - DAYS_AROUND)
    # Ids are by falling count.
    rows = np.flatnonzero(inside)[:VIDEOS]
    return rows + 1, day[rows]


def _contexts(bench: Bench) -> Mapping[str, tf.Tensor]:
    """Query features of training examples, the first of each file.

    A file's order is that of a hash: its first ones are drawn at random.
    """
    data, config = bench.data, bench.run.config
    files = data.retrieval_examples().files("train-")
    keys = retrieval_keys(
        data.features,
        "train",
        example_age=config.retrieval_examples.example_age,
    )
    each = -(-CONTEXTS // len(files))
    parts = []
    for file in files:
        examples = dataset(
            [file], keys, each, padded_lengths=max_lengths(data.features)
        )
        parts += list(examples.take(1))
    names = [f.name for f in data.features.select("query")]
    return {n: tf.concat([p[n] for p in parts], 0)[:CONTEXTS] for n in names}


def _watches(bench: Bench) -> pa.Table:
    columns = {"video_id", "event_time_us", "completed"}
    schema = bench.data.schema.arrow("watches")
    wanted = pa.schema([f for f in schema if f.name in columns])
    return read_tables(bench.data.part("train")["watches"], wanted)


def _crowd(bench: Bench) -> pa.Table:
    """Watches of many more users of the platform: its videos are the same."""
    config = bench.run.config
    more = {"num_users": CROWD * config.simulator.num_users}
    return simulate(
        config.simulator.model_copy(update=more), config.seed
    ).tables["watches"]
