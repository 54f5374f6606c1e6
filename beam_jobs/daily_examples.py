"""Examples of single days, before the transform, and the state after them.

In go the events of the days since a midnight and the state that an earlier
version left at that midnight; out come, per day, the examples that began on
it, with raw terms and everything that a later choice needs (`label_time_us`,
when the label's watch had ended, the priority of the draw), and the state at
the last midnight. A run over several days is the run over each of them, one
after the other: so are the bytes.

    YYYY-MM-DD/{retrieval,ranking}-SSSSS-of-NNNNN.parquet
    YYYY-MM-DD/video_statistics.parquet
    state/{watches,searches,impressions}-SSSSS-of-NNNNN.parquet
    state/videos.parquet
    days.json

Ranking and videos where the log has impressions: see `daily_ranking` and
`video_state`.
"""

import datetime
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import video_state
from beam_jobs.daily_ranking import RankingDays, ranking_path
from beam_jobs.histories import RawRequests, watch_end_us
from beam_jobs.lagged_statistics import local_days
from beam_jobs.output_files import make_folder, write_bytes, write_parquet
from beam_jobs.retrieval_examples import CHUNK_ROWS
from beam_jobs.retrieval_labels import label_priority
from beam_jobs.runners import count, run_pipeline
from beam_jobs.split import time_range
from beam_jobs.stored_requests import stored_schema, to_table
from beam_jobs.user_shards import GroupByUserShard, UserShard, num_shards_of
from beam_jobs.user_state import FOLDER, StateSchema, UserState
from beam_jobs.watch_rows import completed_rows, undated
from schemas.artifacts import join
from schemas.config import (
    BeamConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.days import DAYS_FILE, DayRange, local_day, midnight_us
from schemas.errors import InputError
from schemas.events import TIMED_TABLES, EventSchema
from schemas.requests import RawInput, retrieval_inputs

# Beside the request: the label, and what the choice among labels needs.
LABELS = pa.schema(
    [
        ("user_id", pa.string()),
        ("label_video_id", pa.string()),
        ("label_time_us", pa.int64()),
        ("label_end_us", pa.int64()),
        ("priority", pa.uint64()),
    ]
)
# The cap on heavy users is by day: what a day's files hold must not depend on
# which other days are in the run.
_NO_CAP = 2**62


def event_days(
    event_files: Mapping[str, Sequence[str]],
    schema: EventSchema,
    utc_offset_hours: float,
    folder: str,
    options: PipelineOptions,
) -> tuple[datetime.date, datetime.date]:
    """The local days of the first and the last dated event.

    Args:
      event_files: timed table -> files.
      schema: what the log has.
      utc_offset_hours: local time.
      folder: for a passing file.
      options: of the runner.

    Raises:
      InputError: there is no dated event, or a file is unreadable.
    """
    path = join(folder, "range.json")
    with run_pipeline(options) as job:
        _ = time_range(job.pipeline, event_files, schema) | "Write" >> beam.Map(
            lambda r: write_bytes(path, json.dumps(r).encode())
        )
    with FileSystems.open(path, compression_type="uncompressed") as stream:
        found = json.loads(stream.read().decode())
    FileSystems.delete([path])
    if not found:
        raise InputError("The log has no dated event; no day has examples.")
    return (
        local_day(found["start"], utc_offset_hours),
        local_day(found["last"], utc_offset_hours),
    )


def run(
    *,
    event_files: Mapping[str, Sequence[str]],
    users: Sequence[str],
    videos: Sequence[str],
    schema: EventSchema,
    days: DayRange,
    parent: str | None,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
    shards: BeamConfig,
    seed: int,
    output: str,
    options: PipelineOptions,
) -> dict[str, int]:
    """Writes the days' examples, `days.json` and the state after them.

    Args:
      event_files: timed table -> files; rows before the days are left out.
      users, videos: files of these tables; `users` may be empty.
      schema: what the log has.
      days: which days; no event is after them.
      parent: folder whose state ends where the days begin; None: the days
        are the log's first, and undated watches precede them.
      retrieval, ranking: how far a request looks back.
      shards: number of files, and the cap on a user's events of one table
        and day.
      seed: of the draw among a user's labels.
      output: an existing folder.
      options: of the runner.

    Returns:
      Counters `retrieval_examples`, `ranking_examples`, and per table
      `<table>_before_since` (rows before the days), `<table>_over_user_cap`,
      `state_<table>`, and `undated_watches_not_first` (left out: only a
      first day has a history before it).

    Raises:
      InputError: unreadable files.
    """
    for day in days:
        make_folder(join(output, str(day)))
    make_folder(join(output, FOLDER))
    sources = {
        t: {"all": list(event_files[t])} for t in TIMED_TABLES if schema.has(t)
    }
    if schema.has("users"):
        sources["users"] = {"all": list(users)}
    num_shards = num_shards_of(sources, shards.num_shards)
    ranking_days = None
    if schema.has("impressions"):
        ranking_days = RankingDays(
            days, parent, output, videos, schema, retrieval, ranking
        )
        if ranking.lagged_statistics:
            video_state.run(
                event_files["impressions"], days, parent, output, options
            )
    write = _WriteDays(
        days=days,
        parent=parent,
        output=output,
        num_shards=num_shards,
        cap=shards.max_events_per_user,
        seed=seed,
        inputs=label_inputs(schema, retrieval, ranking),
        state=StateSchema.of(schema, retrieval),
        ranking=ranking_days,
    )
    with run_pipeline(options) as job:
        _ = (
            job.pipeline
            | "Group" >> GroupByUserShard(sources, schema, num_shards, _NO_CAP)
            | "Write" >> beam.ParDo(write)
        )
    write_bytes(join(output, DAYS_FILE), days.to_json().encode())
    return job.counts


def label_inputs(
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
) -> tuple[RawInput, ...]:
    """The request's stored inputs; its time is the label's."""
    inputs = retrieval_inputs(schema, retrieval, ranking)
    return tuple(i for i in inputs if i.name != "request_time_us")


def retrieval_path(folder: str, day: str, shard: int, shards: int) -> str:
    """Path of a day's next-watch examples of a shard."""
    return join(folder, day, f"retrieval-{shard:05d}-of-{shards:05d}.parquet")


class _WriteDays(beam.DoFn):
    """Writes a shard's days, one after the other, then its state."""

    def __init__(
        self,
        *,
        days: DayRange,
        parent: str | None,
        output: str,
        num_shards: int,
        cap: int,
        seed: int,
        inputs: tuple[RawInput, ...],
        state: StateSchema,
        ranking: RankingDays | None,
    ) -> None:
        self._days, self._parent, self._output = days, parent, output
        self._num_shards, self._cap = num_shards, cap
        self._seed, self._inputs, self._state = seed, inputs, state
        self._ranking = ranking

    def setup(self) -> None:
        self._statistics = None
        if self._ranking is not None:
            self._statistics = self._ranking.statistics()

    def process(self, shard: UserShard) -> None:
        place = (shard.shard, self._num_shards)
        state = UserState.read(self._state, self._parent, *place)
        shard = with_users(shard, state)
        dated = list(self._days)
        parts = by_day(shard, self._days, self._parent is None, self._cap)
        for day, events in zip(dated, parts, strict=True):
            today = state.followed_by(events)
            path = retrieval_path(self._output, str(day), *place)
            self._write_retrieval(path, today)
            if self._ranking is not None:
                path = ranking_path(self._output, str(day), *place)
                self._ranking.write(path, today, self._statistics)
            start_us, end_us = (
                midnight_us(d, self._days.utc_offset_hours)
                for d in (day, day + datetime.timedelta(days=1))
            )
            state = state.after(today, start_us, end_us)
        state.write(self._output, *place)
        for table, rows in state.tables.items():
            count(f"state_{table}", rows.num_rows)

    def _write_retrieval(self, path: str, today: UserShard) -> None:
        """All labels of a day, in the order of the shard."""
        rows = completed_rows(today, "train")
        users = today.user_codes["watches"][rows]
        times_us = today.times_us("watches")[rows]
        requests = RawRequests(today, self._inputs)
        stored = [stored_schema(self._inputs).empty_table()]
        for start in range(0, rows.size, CHUNK_ROWS):
            some = slice(start, start + CHUNK_ROWS)
            request = requests(users[some], times_us[some])
            stored.append(to_table(request, self._inputs))
        request_columns = pa.concat_tables(stored)
        labels = pa.table(
            [
                today.user_ids.take(pa.array(users)),
                today.arrow("watches", "video_id").take(pa.array(rows)),
                times_us,
                watch_end_us(today)[rows],
                label_priority(today, rows, self._seed),
            ],
            schema=LABELS,
        )
        for name in request_columns.column_names:
            labels = labels.append_column(name, request_columns.column(name))
        write_parquet(path, labels.combine_chunks())
        count("retrieval_examples", rows.size)


def with_users(shard: UserShard, state: UserState) -> UserShard:
    """The same events in a shard that knows the state's users as well."""
    columns = [
        pa.chunked_array([shard.user_ids]),
        *(rows.column("user_id") for rows in state.tables.values()),
    ]
    known = pc.unique(
        pa.chunked_array([c for column in columns for c in column.chunks])
    )
    user_ids = known.take(pc.array_sort_indices(known))
    place = pc.index_in(shard.user_ids, value_set=user_ids).to_numpy()
    codes = {
        table: place.astype(np.int64)[rows]
        for table, rows in shard.user_codes.items()
    }
    return UserShard(shard.shard, user_ids, shard.tables, codes)


def by_day(
    shard: UserShard, days: DayRange, is_first: bool, cap: int
) -> Iterator[UserShard]:
    """The events of each day, the users of the whole shard.

    Args:
      shard: the events.
      days: which days; rows before them are counted and left out.
      is_first: undated watches precede the first day; else they are left out.
      cap: rows kept per user, table and day, the most recent ones.
    """
    tables: dict[str, list[pa.Table]] = {}
    codes: dict[str, list[np.ndarray]] = {}
    for table in [t for t in TIMED_TABLES if t in shard.tables]:
        number = local_days(shard.times_us(table), days.utc_offset_hours)
        number -= days.first_number
        before = number < 0
        if table == "watches":
            old = undated(shard)
            before &= ~old
            number[old] = 0 if is_first else -1
            left_out = 0 if is_first else old.sum()
            count("undated_watches_not_first", left_out)
        count(f"{table}_before_since", before.sum())
        users = shard.user_codes[table]
        keep = _most_recent(number, users, cap)
        count(f"{table}_over_user_cap", (number >= 0).sum() - keep.size)
        rows = shard.tables[table].take(pa.array(keep)).combine_chunks()
        ends = np.searchsorted(number[keep], np.arange(len(days) + 1))
        spans = list(itertools.pairwise(ends))
        tables[table] = [rows.slice(a, b - a) for a, b in spans]
        codes[table] = [users[keep[a:b]] for a, b in spans]
    for day in range(len(days)):
        yield UserShard(
            shard.shard,
            shard.user_ids,
            shard.tables | {t: rows[day] for t, rows in tables.items()},
            shard.user_codes | {t: users[day] for t, users in codes.items()},
        )


def _most_recent(days: np.ndarray, users: np.ndarray, cap: int) -> np.ndarray:
    """Rows by (day, user, order), the last `cap` of each day and user.

    Rows of a negative day are left out.
    """
    rows = np.flatnonzero(days >= 0)
    rows = rows[np.lexsort((users[rows], days[rows]))]
    key = days[rows] * (users.max(initial=0) + 1) + users[rows]
    ends = np.searchsorted(key, key, side="right")
    kept: np.ndarray = rows[ends - np.arange(rows.size) <= cap]
    return kept
