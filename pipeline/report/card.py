"""A model card (Mitchell et al. 2019), computed from what was measured.

Data, intended use, limits, metrics by slice. The thresholds decide what is
worth a word under the limits; every number in it is of the evaluation.
"""

from collections.abc import Iterator, Mapping, Sequence

from models.retrieval_slices import BUCKETS
from pipeline.pages.blocks import Block, Facts, Missing, Table, Text, words
from pipeline.report.data import moment
from pipeline.report.ranking import buckets_of
from pipeline.report.retrieval import columns_of, largest_rate
from pipeline.report.work_folder import Side, WorkFolder, titled
from schemas.split import DAY_US

# A slice is worth a word if it has so little of the hit rate of all, or is
# calibrated so badly.
_POOR_SHARE, _CALIBRATED = 0.75, (0.9, 1.1)
_CUTS = ("by_activity", "by_video_age", "by_duration", "by_surface")
_HEADLINES = (
    ("retrieval.hit_rate_at_100", "hit rate at 100, test"),
    ("index.recall_at_100", "recall of the index at 100"),
    ("ranking.auc_click", "AUC of the click, test"),
    ("ranking.weighted_per_user_loss", "weighted per-user loss, test"),
    ("ranking.calibration", "expected / observed watch time, test"),
)


def overview(sides: Sequence[Side]) -> Iterator[Block]:
    """The few numbers that are asked for first."""
    for side in sides:
        if len(sides) > 1:
            yield Text(side.folder.workdir, side.name)
        facts = headlines(side.folder)
        if facts:
            yield Facts(facts)
        else:
            yield Missing("Nothing is made here yet.")


def headlines(folder: WorkFolder) -> list[tuple[str, str]]:
    """(number, what it is) of the data and of both models."""
    facts = []
    if (events := folder.stage("events")) is not None:
        for table in ("users", "videos", "watches", "impressions"):
            count = events.counts.get(f"{table}.good")
            if count:
                facts.append((f"{count:,}", table))
    measured = dict(folder.metrics)
    if (index := folder.stage("index")) is not None:
        measured |= index.metrics
    for name, what in _HEADLINES:
        if name in measured:
            facts.append((f"{measured[name]:.3f}", what))
    return facts


def model_card(sides: Sequence[Side]) -> Iterator[Block]:
    """The card of each side."""
    for side in sides:
        folder, several = side.folder, len(sides)
        if not {"retrieval_model", "ranking_model"} & folder.stages.keys():
            yield Missing(
                titled("There is no model to describe yet", side, several) + "."
            )
            continue
        if several > 1:
            yield Text("", side.name)
        yield Text(_data(folder), "Data")
        yield Text(_use(folder), "Intended use")
        limits = limits_of(folder)
        yield Table(
            titled("Limits", side, several),
            ["what", "measured"],
            limits,
            text_columns=2,
        )
        if (table := _slices(side, several)) is not None:
            yield table


def limits_of(folder: WorkFolder) -> list[list[str]]:
    """What the numbers warn of: [limit, what was measured]."""
    metrics = folder.metrics
    if not metrics:
        return [["Nothing is measured on a test yet.", "run `evaluate`"]]
    return [
        *_coverage(folder, metrics),
        *_poor_slices(metrics),
        *_uncalibrated(metrics),
        *_better_baselines(metrics),
        *_unmeasured(folder, metrics),
    ]


def _data(folder: WorkFolder) -> str:
    events, bounds = folder.stage("events"), folder.bounds
    said = []
    if events is not None:
        where = "an outside log"
        if "simulator" in events.manifest["config"]:
            where = "a simulated platform, whose users are no people"
        counts = {
            table: events.counts.get(f"{table}.good", 0)
            for table in ("users", "videos", "watches", "impressions")
        }
        said.append(
            f"{where}, "
            + ", ".join(f"{n:,} {table}" for table, n in counts.items() if n)
        )
    if bounds is not None and bounds.protocol == "time":
        start, train, valid = (
            moment(time, bounds.utc_offset_hours)
            for time in (
                bounds.log_start_us,
                bounds.train_end_us,
                bounds.valid_end_us,
            )
        )
        days = (bounds.train_end_us - bounds.log_start_us) / DAY_US
        said.append(
            f"trained on {days:.0f} days from {start} to {train}, the epoch "
            f"chosen on what follows up to {valid}, tested on what is later"
        )
    elif bounds is not None:
        said.append(
            "each user's last watch is the test, the one before it "
            "chose the epoch"
        )
    return "; ".join(said) + "."


def _use(folder: WorkFolder) -> str:
    ranks = folder.stage("ranking_model") is not None
    found = "finds, among the videos of this log, those that a user is likely "
    found += "to watch next, from the watch history"
    if folder.stage("events") and folder.schema.has("searches"):
        found += ", the searches"
    found += " and what the log says of the user"
    if ranks:
        found += "; orders them by expected watch time"
    return (
        f"{found}. It knows this catalogue and this population alone: for "
        "another log train anew. What is popular, and what an earlier system "
        "chose to show, is in the data, and so in the lists. It predicts what "
        "is watched, not what is good for who watches it, and must not decide "
        "anything about a person."
    )


def _coverage(
    folder: WorkFolder, metrics: Mapping[str, float]
) -> Iterator[list[str]]:
    holdout = folder.stage("retrieval_holdout")
    if holdout is not None and holdout.counts.get("test_labels"):
        counts = holdout.counts
        unknown = counts.get("test_labels_out_of_vocabulary", 0)
        share = unknown / counts["test_labels"]
        yield [
            "Videos that are newer than the training cannot be recommended.",
            f"{share:.1%} of the test's watches are of such",
        ]
    if "retrieval.cases" in metrics:
        yield [
            "The test is of one period; how another would go is not measured.",
            f"{metrics['retrieval.cases']:,.0f} users in it",
        ]


def _poor_slices(metrics: Mapping[str, float]) -> Iterator[list[str]]:
    rate = largest_rate(metrics)
    if rate is None:
        return
    whole = metrics[f"retrieval.{rate}"]
    for bucket in BUCKETS:
        value = metrics.get(f"retrieval.{bucket}.{rate}")
        is_known = "out_of_vocabulary" not in bucket
        if value is not None and is_known and value < _POOR_SHARE * whole:
            name = words(bucket.partition(".")[2])
            yield [
                f"Retrieval is weaker where: {name}.",
                f"{words(rate)} {value:.3f}, of all {whole:.3f}",
            ]


def _uncalibrated(metrics: Mapping[str, float]) -> Iterator[list[str]]:
    least, most = _CALIBRATED
    for cut in _CUTS:
        for bucket in buckets_of(metrics, cut):
            start = f"ranking.{cut}.{bucket}.calibration"
            low = metrics.get(f"{start}_low", metrics.get(start))
            high = metrics.get(f"{start}_high", metrics.get(start))
            if low is None or high is None or not (low > most or high < least):
                continue
            yield [
                f"Expected watch time is off where: {words(bucket)}.",
                f"{metrics[start]:.2f} times what was watched "
                f"({low:.2f} to {high:.2f})",
            ]


def _better_baselines(metrics: Mapping[str, float]) -> Iterator[list[str]]:
    for name in ("hit_rate_at_100", "hit_rate_at_100_seen_removed"):
        ours = metrics.get(f"retrieval.{name}")
        for baseline, prefix in columns_of(metrics).items():
            value = metrics.get(prefix + name)
            if (
                prefix.startswith("baselines.")
                and None not in (ours, value)
                and value > ours  # type: ignore[operator]
            ):
                yield [
                    f"A baseline finds more: {baseline}.",
                    f"{words(name)} {value:.3f}, the model {ours:.3f}",
                ]


def _unmeasured(
    folder: WorkFolder, metrics: Mapping[str, float]
) -> Iterator[list[str]]:
    if not any(key.startswith("ranking.") for key in metrics):
        yield ["Nothing is ranked: the log has no impressions.", "not measured"]
    elif not any(key.startswith("ranking.off_policy.") for key in metrics):
        yield [
            "What another order would have earned is not known: no positions "
            "were left to chance.",
            "not measured",
        ]
    missing = [
        column
        for table, column in (
            ("users", "region"),
            ("users", "language"),
            ("users", "gender"),
            ("users", "age"),
        )
        if not folder.schema.has(table, column)
    ]
    if missing:
        yield [
            "Whether groups of users are served alike is not measured, and "
            "cannot be where the log does not tell them.",
            f"the log lacks {', '.join(missing)}",
        ]
    else:
        yield [
            "Whether regions, languages, genders and ages are served alike is "
            "not measured.",
            "not measured",
        ]


def _slices(side: Side, sides: int) -> Table | None:
    """Both models' main metrics by the slices they have."""
    metrics, rate = side.folder.metrics, largest_rate(side.folder.metrics)
    rows: list[list[str | float | None]] = []
    for bucket in BUCKETS if rate else ():
        if (value := metrics.get(f"retrieval.{bucket}.{rate}")) is not None:
            name = words(bucket.partition(".")[2])
            rows.append(["retrieval", name, words(str(rate)), value])
    for cut in _CUTS:
        for bucket in buckets_of(metrics, cut):
            for metric in ("auc_click", "calibration"):
                value = metrics.get(f"ranking.{cut}.{bucket}.{metric}")
                if value is not None:
                    rows.append(
                        ["ranking", words(bucket), words(metric), value]
                    )
    if not rows:
        return None
    return Table(
        titled("Metrics by slice, test", side, sides),
        ["model", "slice", "metric", "value"],
        rows,
        text_columns=3,
    )
