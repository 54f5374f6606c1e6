"""Divides the events into training, validation and test, once.

Protocol `time`: whole days at the end of the log; a day begins at midnight of
the configured offset. Protocol `last_watch`: each user's last dated watch is
the test, the one before it validation; searches and impressions follow the
watch that comes next or at the same time.

Out come `split.json`, `test.json` and, per part, the timed tables by user
shard, in the total order of `user_shards`: the same events give the same
bytes, and no byte of a training file depends on a later event.
"""

import datetime
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.events import ReadEvents
from beam_jobs.histories import watch_end_us
from beam_jobs.output_files import make_folder, write_bytes, write_parquet
from beam_jobs.runners import count, run_pipeline
from beam_jobs.shard_rows import PART
from beam_jobs.user_shards import (
    GroupByUserShard,
    UserShard,
    num_shards_of,
)
from beam_jobs.watch_rows import undated
from schemas.buckets import bucket_name
from schemas.config import SplitConfig
from schemas.errors import InputError
from schemas.events import TIMED_TABLES, EventSchema
from schemas.split import BOUNDS_FILE, DAY_US, TEST_FILE, SplitBounds

PARTS = ("train", "valid", "test")
# Beside PARTS: after the test interval, in no part.
_BEYOND = len(PARTS)
_NO_CAP = 2**62
_EPOCH = datetime.date(1970, 1, 1)


def run(
    event_files: Mapping[str, Sequence[str]],
    schema: EventSchema,
    config: SplitConfig,
    num_shards: int | None,
    output: str,
    options: PipelineOptions,
) -> dict[str, int]:
    """Writes the split's folder.

    Args:
      event_files: timed table -> Parquet files; other tables are ignored.
      schema: what the log has.
      config: the protocol and its intervals.
      num_shards: files per part and table; None: as many as the events'.
      output: an empty folder.
      options: of the runner.

    Returns:
      counts `<part>_<table>`, `after_test_<table>` and
      `undated_watches`.

    Raises:
      InputError: a log too short for the intervals, a test outside the log,
        a part without watches, or unreadable files.
    """
    tables = {t: list(event_files[t]) for t in TIMED_TABLES if schema.has(t)}
    sources = {t: {"all": files} for t, files in tables.items()}
    num_shards = num_shards_of(sources, num_shards)
    for part in PARTS:
        make_folder(FileSystems.join(output, part))
    with run_pipeline(options) as job:
        shards = job.pipeline | "Group" >> GroupByUserShard(
            sources, schema, num_shards, _NO_CAP
        )
        if config.protocol == "time":
            bounds = _time_bounds(job.pipeline, tables, schema, config)
            shards |= "ByTime" >> beam.Map(
                part_by_time, beam.pvalue.AsSingleton(bounds)
            )
        else:
            shards |= "ByLastWatch" >> beam.Map(part_by_last_watch)
            bounds = (
                shards
                | "Ends" >> beam.Map(part_ends)
                | "AllEnds" >> beam.CombineGlobally(_merge_ends)
                | "Bounds" >> beam.Map(last_watch_bounds)
            )
        _ = bounds | "WriteBounds" >> beam.Map(_write_bounds, output=output)
        _ = shards | "WriteParts" >> beam.Map(
            _write_parts, output=output, num_shards=num_shards
        )
    _check_parts(job.counts, config)
    return job.counts


def time_bounds(
    first_us: int, last_us: int, config: SplitConfig
) -> tuple[SplitBounds, int]:
    """Day boundaries from the times of the first and the last dated event.

    Returns:
      The bounds and the end of the test interval.

    Raises:
      InputError: the log is too short, or `test_start` is outside.
    """
    offset_us = round(config.utc_offset_hours * 3_600_000_000)

    def midnight(day: int) -> int:
        return day * DAY_US - offset_us

    first_day = (first_us + offset_us) // DAY_US
    last_day = (last_us + offset_us) // DAY_US
    test_day = last_day - config.test_days + 1
    if config.test_start is not None:
        test_day = (config.test_start - _EPOCH).days
        if not first_day <= test_day <= last_day:
            raise InputError(
                f"split.test_start {config.test_start} is outside the log, "
                f"which has events from {_date(first_day)} to "
                f"{_date(last_day)}."
            )
    if test_day - config.valid_days <= first_day:
        raise InputError(
            f"The log has events from {_date(first_day)} to "
            f"{_date(last_day)}, {last_day - first_day + 1} day(s); "
            f"{config.test_days} test and {config.valid_days} validation "
            "day(s) leave no day to train on. Give a longer log or set "
            "split.test_days, split.valid_days or split.test_start."
        )
    bounds = SplitBounds(
        "time",
        log_start_us=midnight(first_day),
        train_end_us=midnight(test_day - config.valid_days),
        valid_end_us=midnight(test_day),
        utc_offset_hours=config.utc_offset_hours,
    )
    return bounds, midnight(test_day + config.test_days)


def part_by_time(
    shard: UserShard, bounds_and_end: tuple[SplitBounds, int]
) -> UserShard:
    """Sets `part` by the interval of each event; undated watches train."""
    bounds, test_end_us = bounds_and_end
    edges = np.array([bounds.train_end_us, bounds.valid_end_us, test_end_us])
    parts = {
        table: np.searchsorted(edges, shard.times_us(table), side="right")
        for table in shard.tables
    }
    parts["watches"][undated(shard)] = 0
    return _with_parts(shard, parts)


def part_by_last_watch(shard: UserShard) -> UserShard:
    """Sets `part` by the last two dated watches of each user.

    Users with fewer than three dated watches train with all they have. Equal
    times are ordered by `video_id`, as the shard is.
    """
    users = shard.user_codes["watches"]
    dated = np.flatnonzero(~undated(shard))
    num_users = len(shard.user_ids)
    per_user = np.bincount(users[dated], minlength=num_users)
    ends = np.cumsum(per_user)  # Rows of `dated` are ordered by user.
    parts = {"watches": np.zeros(users.size, np.int64)}
    split = np.flatnonzero(per_user >= 3)
    last, before = dated[ends[split] - 1], dated[ends[split] - 2]
    parts["watches"][last], parts["watches"][before] = 2, 1
    far = np.iinfo(np.int64).max
    test_us = np.full(num_users, far)
    valid_us = np.full(num_users, far)
    test_us[split] = shard.times_us("watches")[last]
    valid_us[split] = shard.times_us("watches")[before]
    for table in set(shard.tables) - {"watches"}:
        code, times = shard.user_codes[table], shard.times_us(table)
        parts[table] = (times >= valid_us[code]).astype(np.int64)
        parts[table] += times >= test_us[code]
    return _with_parts(shard, parts)


def part_ends(shard: UserShard) -> dict[str, int]:
    """First dated watch and, per part, the last end of a dated watch."""
    dated = ~undated(shard)
    parts = shard.numpy("watches", PART)
    starts, ends = shard.times_us("watches"), watch_end_us(shard)[:-1]
    found = {}
    if dated.any():
        found["start"] = int(starts[dated].min())
    for number, part in enumerate(PARTS):
        rows = dated & (parts == number)
        if rows.any():
            found[part] = int(ends[rows].max())
    return found


def last_watch_bounds(ends: Mapping[str, int]) -> tuple[SplitBounds, int]:
    """Bounds that enclose each part's watches: one past the last end.

    Raises:
      InputError: no user has three dated watches.
    """
    if "test" not in ends or "train" not in ends:
        raise InputError(
            "No user has three dated watches, so none has a test label; "
            "the protocol last_watch needs longer histories."
        )
    train_end = ends["train"] + 1
    valid_end = max(train_end, ends["valid"] + 1)
    bounds = SplitBounds("last_watch", ends["start"], train_end, valid_end, 0.0)
    return bounds, max(valid_end, ends["test"] + 1)


def time_range(
    pipeline: beam.Pipeline,
    tables: Mapping[str, Sequence[str]],
    schema: EventSchema,
) -> beam.PCollection:
    """The times of the first and the last dated event of all tables.

    Returns:
      PCollection of one dict: `start` and `last`, or nothing if there is no
      dated event.
    """
    ranges = []
    for table, files in sorted(tables.items()):
        names = [
            n
            for n in ("event_time_us", "undated")
            if n in schema.arrow(table).names
        ]
        columns = pa.schema([schema.arrow(table).field(n) for n in names])
        ranges.append(
            pipeline
            | f"Times/{table}" >> ReadEvents(files, columns)
            | f"Range/{table}" >> beam.FlatMap(_time_range)
        )
    return (
        ranges
        | "AllRanges" >> beam.Flatten()
        | "Range" >> beam.CombineGlobally(_merge_ends)
    )


def _time_bounds(
    pipeline: beam.Pipeline,
    tables: Mapping[str, Sequence[str]],
    schema: EventSchema,
    config: SplitConfig,
) -> beam.PCollection:
    return time_range(pipeline, tables, schema) | "Bounds" >> beam.Map(
        functools.partial(_bounds_of, config=config)
    )


def _time_range(rows: pa.Table) -> Iterator[dict[str, int]]:
    times = rows.column("event_time_us")
    if "undated" in rows.column_names:
        dated = pc.invert(pc.fill_null(rows.column("undated"), False))
        times = times.filter(dated)
    if len(times):
        ends = pc.min_max(times).as_py()
        yield {"start": ends["min"], "last": ends["max"]}


def _merge_ends(found: Iterable[Mapping[str, int]]) -> dict[str, int]:
    merged: dict[str, int] = {}
    for ends in found:
        for name, value in ends.items():
            choose = min if name == "start" else max
            merged[name] = choose(merged.get(name, value), value)
    return merged


def _bounds_of(
    ends: Mapping[str, int], config: SplitConfig
) -> tuple[SplitBounds, int]:
    if not ends:
        raise InputError("The log has no dated event; there is none to split.")
    return time_bounds(ends["start"], ends["last"], config)


def _with_parts(shard: UserShard, parts: Mapping[str, np.ndarray]) -> UserShard:
    tables = {}
    for table, rows in shard.tables.items():
        index = rows.column_names.index(PART)
        values = pa.array(parts[table].astype(np.int8))
        tables[table] = rows.set_column(index, PART, values)
    return UserShard(shard.shard, shard.user_ids, tables, shard.user_codes)


def _write_parts(shard: UserShard, output: str, num_shards: int) -> None:
    for table, rows in shard.tables.items():
        parts = shard.numpy(table, PART)
        rows = rows.drop_columns([PART])
        for number, part in enumerate(PARTS):
            chosen = rows.filter(pa.array(parts == number))
            name = bucket_name(table, shard.shard, num_shards)
            write_parquet(FileSystems.join(output, part, name), chosen)
            count(f"{part}_{table}", chosen.num_rows)
        count(f"after_test_{table}", np.sum(parts == _BEYOND))
    count("undated_watches", undated(shard).sum())


def _write_bounds(bounds_and_end: tuple[SplitBounds, int], output: str) -> None:
    bounds, test_end_us = bounds_and_end
    test = json.dumps({"test_end_us": test_end_us}, indent=1) + "\n"
    write_bytes(
        FileSystems.join(output, BOUNDS_FILE), bounds.to_json().encode()
    )
    write_bytes(FileSystems.join(output, TEST_FILE), test.encode())


def _check_parts(counts: Mapping[str, int], config: SplitConfig) -> None:
    dated = {part: counts.get(f"{part}_watches", 0) for part in PARTS}
    dated["train"] -= counts.get("undated_watches", 0)
    empty = [part for part in PARTS if dated[part] <= 0]
    if empty:
        raise InputError(
            f"The split leaves no dated watch in: {', '.join(empty)} "
            f"(protocol {config.protocol}). Choose other intervals in the "
            "section `split`."
        )


def _date(day: int) -> datetime.date:
    return _EPOCH + datetime.timedelta(days=int(day))
