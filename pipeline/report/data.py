"""The data: events per day, counts, dead letters, examples, vocabularies."""

import datetime
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.event_rows import DEAD_LETTER_SCHEMA, DEAD_LETTERS, KEYS
from beam_jobs.events import read_row_group, row_groups
from pipeline.pages.blocks import (
    Block,
    Cell,
    Folded,
    Grid,
    Missing,
    Plot,
    Table,
    Text,
    side_by_side,
    words,
)
from pipeline.pages.plots import Axis, Series, lines
from pipeline.report.work_folder import Side, WorkFolder, titled
from schemas.events import TIMED_TABLES
from schemas.split import DAY_US
from schemas.vocabularies import Vocabulary, read_vocabulary

# Rows of a table whose days are counted; beyond, the first files speak for
# all, since a file has users by their hash.
MOST_ROWS = 50_000_000
_DEAD_LETTERS_SHOWN, _RECORD_CHARACTERS = 5, 200
_COMMONEST, _TAILS, _TAIL_POINTS = 5, 4, 60
_COUNTED = (
    *("split", "retrieval_examples", "refit_examples", "retrieval_holdout"),
    *("ranking_examples", "ranking_holdout", "recent_examples"),
)


def data(sides: Sequence[Side]) -> Iterator[Block]:
    """Events, what was refused, and what was made of them."""
    names = [side.name for side in sides]
    if all(side.folder.stage("events") is None for side in sides):
        yield Missing("There are no events yet.")
        return
    plots = []
    for side in sides:
        if side.folder.stage("events") is None:
            yield Missing(f"{side.name} has no events.")
            continue
        said = _bounds_in_words(side.folder)
        plots.append(_per_day(side, len(sides), said))
    tables = [
        _event_counts(side, len(sides))
        for side in sides
        if side.folder.stage("events") is not None
    ]
    yield Grid([*(plot for plot in plots if plot is not None), *tables])
    for side in sides:
        yield from _dead_letters(side, len(sides))
    made = [
        side_by_side(words(name).capitalize(), names, counts)
        for name in _COUNTED
        for counts in [[_stage_counts(side.folder, name) for side in sides]]
        if any(counts)
    ]
    if made:
        yield Folded("What was made of them, in numbers", [Grid(made)])


def vocabularies(sides: Sequence[Side]) -> Iterator[Block]:
    """Sizes, commonest terms and tails of the vocabularies."""
    plots = []
    for side in sides:
        stage = side.folder.stage("vocabularies")
        if stage is None:
            yield Missing(
                titled("There are no vocabularies yet", side, len(sides)) + "."
            )
            continue
        spaces = [
            name.removesuffix(".counts.txt")
            for name in stage.names()
            if name.endswith(".counts.txt")
        ]
        found = [read_vocabulary(stage.path, space) for space in spaces]
        filled = [v for v in found if v.size]
        yield Table(
            titled("Terms seen in the training days", side, len(sides)),
            [
                *("ID space", "commonest, with their counts"),
                *("terms", "occurrences"),
                *("share of the first 1 %", "seen once"),
            ],
            [_about_terms(v) for v in filled],
            text_columns=2,
        )
        largest = sorted(filled, key=lambda v: -v.size)[:_TAILS]
        if largest:
            plots.append(_tails(largest, side, len(sides)))
    if plots:
        yield Grid(plots)


def days_of(
    folder: WorkFolder, table: str
) -> tuple[dict[datetime.date, int], int, int]:
    """Events of a table by the day, in local time.

    Returns:
      day -> dated events, in order; how many files were counted, of how many.
    """
    files = folder.needed("events").files(f"{table}-")
    columns = ["event_time_us"]
    if folder.schema.has(table, "undated"):
        columns.append("undated")
    wanted = pa.schema(
        [f for f in folder.schema.arrow(table) if f.name in columns]
    )
    hours = folder.bounds.utc_offset_hours if folder.bounds else 0.0
    offset_us = round(hours * 3_600_000_000)
    counts = Counter[int]()
    counted = rows = 0
    for path in files:
        if rows >= MOST_ROWS:
            break
        for place in row_groups(path):
            group = read_row_group(place, wanted)
            if "undated" in columns:
                undated = pc.fill_null(group.column("undated"), False)
                group = group.filter(pc.invert(undated))
            times = group.column("event_time_us").to_numpy()
            days, numbers = np.unique(
                (times + offset_us) // DAY_US, return_counts=True
            )
            counts.update(
                dict(zip(days.tolist(), numbers.tolist(), strict=True))
            )
            rows += group.num_rows
        counted += 1
    first = datetime.date(1970, 1, 1)
    by_day = {
        first + datetime.timedelta(days=day): counts[day]
        for day in sorted(counts)
    }
    return by_day, counted, len(files)


def _per_day(side: Side, sides: int, said: str) -> Plot | None:
    """Events per day by table, with the days of the split in words."""
    folder = side.folder
    series, cut = [], []
    days: set[datetime.date] = set()
    for table in TIMED_TABLES:
        if not folder.schema.has(table):
            continue
        by_day, counted, files = days_of(folder, table)
        if not by_day:
            continue
        days |= by_day.keys()
        places = [day.toordinal() for day in by_day]
        series.append(Series(table, list(by_day.values()), places))
        if counted < files:
            cut.append(f"{table}: {counted} of {files} files are counted")
    if not series:
        return None
    least = min(min(one.y) for one in series)
    most = max(max(one.y) for one in series)
    plot = lines(
        f"Events per day, {folder.workdir}",
        Axis("day", ticks=_dates(sorted(days))),
        Axis("events", log=most > 100 * least),
        series,
    )
    title = titled("Events per day", side, sides)
    return Plot(title, plot, "; ".join([said, *cut]).strip("; "))


def _dates(
    days: Sequence[datetime.date], most: int = 5
) -> tuple[tuple[float, str], ...]:
    """At most so many days, evenly apart, as ticks."""
    every = -(-len(days) // most)
    return tuple(
        (float(day.toordinal()), f"{day:%b} {day.day}") for day in days[::every]
    )


def moment(time_us: int, utc_offset_hours: float) -> str:
    """A time in microseconds as local date and time."""
    local = datetime.timedelta(
        microseconds=time_us + round(utc_offset_hours * 3_600_000_000)
    )
    return f"{datetime.datetime(1970, 1, 1) + local:%Y-%m-%d %H:%M}"


def _bounds_in_words(folder: WorkFolder) -> str:
    bounds = folder.bounds
    if bounds is None:
        return ""
    if bounds.protocol == "last_watch":
        return (
            "Of each user the last watch is the test, the one before it "
            "validation."
        )
    ends = [
        moment(time, bounds.utc_offset_hours)
        for time in (bounds.train_end_us, bounds.valid_end_us)
    ]
    return f"Training ends {ends[0]}, validation {ends[1]}; the rest is test."


def _event_counts(side: Side, sides: int) -> Table:
    kinds = ("read", "good", "bad", "duplicates")
    counts = side.folder.needed("events").counts
    rows: list[list[Cell]] = [
        [table, *(counts.get(f"{table}.{kind}") for kind in kinds)]
        for table in KEYS
        if f"{table}.read" in counts
    ]
    return Table(
        titled("Records", side, sides),
        ["table", *kinds],
        rows,
        "read = good + bad + duplicates",
    )


def _dead_letters(side: Side, sides: int) -> Iterator[Block]:
    """Reasons and some records of what was refused."""
    stage = side.folder.stage("events")
    if stage is None:
        return
    reasons = {
        name: count for name, count in stage.counts.items() if ".bad." in name
    }
    title = titled("Dead letters", side, sides)
    if not sum(reasons.values()):
        yield Text(f"{title}: none, every record that was read is good.")
        return
    commonest = sorted(reasons.items(), key=lambda r: (-r[1], r[0]))
    yield Table(
        title,
        ["table", "reason", "records"],
        [
            [table, words(reason), float(count)]
            for name, count in commonest
            for table, _, reason in [name.partition(".bad.")]
            if count
        ],
        text_columns=2,
    )
    shown = list(
        itertools.islice(
            _records(stage.files(f"{DEAD_LETTERS}-")), _DEAD_LETTERS_SHOWN
        )
    )
    yield Table(
        titled("Some of them", side, sides),
        ["table", "reason", "file and row", "beginning of the record"],
        [
            [
                row["table"],
                words(row["reason"]),
                f"{row['file']}:{row['row']}",
                row["record"][:_RECORD_CHARACTERS],
            ]
            for row in shown
        ],
        text_columns=4,
    )


def _records(files: Sequence[str]) -> Iterator[dict[str, str]]:
    for path in files:
        for place in row_groups(path):
            yield from read_row_group(place, DEAD_LETTER_SCHEMA).to_pylist()


def _stage_counts(folder: WorkFolder, name: str) -> dict[str, float | None]:
    """What a data stage counted, without the zeros."""
    stage = folder.stage(name)
    if stage is None:
        return {}
    counts = sorted(stage.counts.items())
    return {words(c): float(count) for c, count in counts if count}


def _about_terms(vocabulary: Vocabulary) -> list[str | float | None]:
    counts = vocabulary.counts
    total = float(counts.sum())
    first = max(1, len(counts) // 100)
    commonest = vocabulary.terms[:_COMMONEST].to_pylist()
    return [
        vocabulary.space,
        ", ".join(
            f"{term} ({count:,})"
            for term, count in zip(commonest, counts, strict=False)
        ),
        float(vocabulary.size),
        total,
        f"{counts[:first].sum() / total:.1%}",
        f"{(counts == 1).mean():.1%}",
    ]


def _tails(vocabularies: Sequence[Vocabulary], side: Side, sides: int) -> Plot:
    series = []
    for one in vocabularies:
        ranks = np.unique(
            np.geomspace(1, one.size, _TAIL_POINTS).round().astype(np.int64)
        )
        counts = one.counts[ranks - 1]
        series.append(Series(one.space, counts.tolist(), ranks.tolist()))
    title = titled("Tails of the vocabularies", side, sides)
    plot = lines(
        f"Tails, {side.folder.workdir}",
        Axis("rank of the term", log=True),
        Axis("occurrences", log=True),
        series,
    )
    said = "The largest ID spaces; a straight line is a power law."
    return Plot(title, plot, said)
