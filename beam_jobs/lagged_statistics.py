"""What was shown, clicked and watched up to yesterday, per video and channel.

In go the impressions of some days, out comes one row per video and day; a
request of a day is given the totals over all days strictly before it, which
any server can know. Days begin at local midnight, as in the split. An
impression and its click count to the day it was shown, its watch time to the
day by whose end it was spent: on the day shown nobody knew of it.
"""

from collections.abc import Iterable, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.events import ReadEvents, read_tables
from beam_jobs.histories import TimeIndex
from beam_jobs.output_files import write_parquet
from beam_jobs.runners import run_pipeline

FILE = "statistics.parquet"
DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000

# While adding up, watch time is in whole microseconds: a sum of floats would
# depend on the order of the bundles.
_SUMS = pa.schema(
    [
        ("video_id", pa.string()),
        ("day", pa.int64()),
        ("impressions", pa.int64()),
        ("clicks", pa.int64()),
        ("watch_time_us", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [*[_SUMS.field(i) for i in range(4)], ("watch_time_s", pa.float64())]
)
_READ = pa.schema(
    [
        ("video_id", pa.string()),
        ("event_time_us", pa.int64()),
        ("clicked", pa.bool_()),
        ("watch_time_s", pa.float64()),
    ]
)
_KEYS = ["video_id", "day"]
_TOTALS = ["impressions", "clicks", "watch_time_us"]


def local_days(times_us: np.ndarray, utc_offset_hours: float) -> np.ndarray:
    """Days since 1 January 1970 of local time, int64."""
    return (times_us + round(utc_offset_hours * _HOUR_US)) // DAY_US


def run(
    impressions: Sequence[str],
    path: str,
    utc_offset_hours: float,
    options: PipelineOptions,
    since_us: int | None = None,
) -> dict[str, int]:
    """Counts impressions per video and day into one Parquet file.

    Args:
      impressions: Parquet files of the table `impressions`.
      path: the file to write, ascending by (video_id, day): video_id, day,
        impressions, clicks, watch_time_s (sum over the day).
      utc_offset_hours: local time.
      options: of Beam.
      since_us: leave out impressions before this time.
    """
    with run_pipeline(options) as job:
        (
            job.pipeline
            | "Impressions" >> ReadEvents(impressions, _READ)
            | "Daily"
            >> beam.Map(
                daily_sums,
                utc_offset_hours=utc_offset_hours,
                since_us=since_us,
            )
            | "Merge" >> beam.CombineGlobally(MergeSums()).with_fanout(16)
            | "Write" >> beam.Map(_write, path=path)
        )
    return job.counts


def daily_sums(
    impressions: pa.Table, utc_offset_hours: float, since_us: int | None = None
) -> pa.Table:
    """Sums a batch of impressions per video and day."""
    if since_us is not None:
        late = pc.greater_equal(impressions.column("event_time_us"), since_us)
        impressions = impressions.filter(late)
    times_us = impressions.column("event_time_us").to_numpy()
    watch_time_s = impressions.column("watch_time_s").to_numpy()
    watch_time_us = np.rint(watch_time_s * 1e6).astype(np.int64)
    nothing = np.zeros_like(watch_time_us)
    videos = impressions.column("video_id")
    shown = (
        videos,
        local_days(times_us, utc_offset_hours),
        nothing + 1,
        impressions.column("clicked").cast(pa.int64()),
        nothing,
    )
    # A watch that ends at midnight is known to the day that begins then.
    ends_us = times_us + np.maximum(watch_time_us - 1, 0)
    watched = (
        videos,
        local_days(ends_us, utc_offset_hours),
        nothing,
        nothing,
        watch_time_us,
    )
    return _merged(
        pa.concat_tables(
            pa.table(list(columns), schema=_SUMS)
            for columns in (shown, watched)
        )
    )


class MergeSums(beam.CombineFn):
    """Adds daily sums up, a few tables at a time."""

    _PENDING = 16

    def create_accumulator(self) -> list[pa.Table]:
        return []

    def add_input(
        self, accumulator: list[pa.Table], sums: pa.Table
    ) -> list[pa.Table]:
        accumulator.append(sums)
        if len(accumulator) > self._PENDING:
            return self.compact(accumulator)
        return accumulator

    def merge_accumulators(
        self, accumulators: Iterable[list[pa.Table]]
    ) -> list[pa.Table]:
        return self.compact([sums for a in accumulators for sums in a])

    def compact(self, accumulator: list[pa.Table]) -> list[pa.Table]:
        return [_merged(pa.concat_tables([_SUMS.empty_table(), *accumulator]))]

    def extract_output(self, accumulator: list[pa.Table]) -> pa.Table:
        sums = self.compact(accumulator)[0]
        return sums.sort_by([(key, "ascending") for key in _KEYS])


def _merged(sums: pa.Table) -> pa.Table:
    grouped = sums.group_by(_KEYS, use_threads=False)
    totals = grouped.aggregate([(name, "sum") for name in _TOTALS])
    renamed = {f"{name}_sum": name for name in _TOTALS}
    totals = totals.rename_columns(
        [renamed.get(name, name) for name in totals.column_names]
    )
    return totals.select(_SUMS.names).cast(_SUMS)


def _write(sums: pa.Table, path: str) -> None:
    write_parquet(path, _in_seconds(sums))


def _in_seconds(sums: pa.Table) -> pa.Table:
    watch_time_s = sums.column("watch_time_us").to_numpy() / 1e6
    table = sums.drop_columns("watch_time_us").append_column(
        "watch_time_s", pa.array(watch_time_s)
    )
    return table.cast(SCHEMA)


def _watch_time_us(table: pa.Table) -> np.ndarray:
    """The whole microseconds that `_in_seconds` was given, int64 [n]."""
    seconds = table.column("watch_time_s").to_numpy()
    return np.rint(seconds * 1e6).astype(np.int64)


def fold_days(table: pa.Table, day: int) -> pa.Table:
    """Adds up all days before a day: one row a video, of the day before it.

    Nobody who asks for the totals before that day, or before a later one,
    can tell the difference.

    Args:
      table: rows of `SCHEMA`.
      day: see `local_days`.
    """
    days = np.maximum(table.column("day").to_numpy(), day - 1)
    return _added_up(table, days)


def add_up(table: pa.Table) -> pa.Table:
    """One row a video and day, ascending by them.

    Args:
      table: rows of `SCHEMA`, several a video and day.
    """
    return _added_up(table, table.column("day").to_numpy())


def _added_up(table: pa.Table, days: np.ndarray) -> pa.Table:
    sums = table.select(["video_id", "impressions", "clicks"])
    sums = sums.append_column("day", pa.array(days)).append_column(
        "watch_time_us", pa.array(_watch_time_us(table))
    )
    merged = _merged(sums).sort_by([(key, "ascending") for key in _KEYS])
    return _in_seconds(merged)


class LaggedStatistics:
    """Answers what was known of videos and channels before a day.

    Args:
      table: daily rows of `SCHEMA`, in any order.
      catalogue: tells each video's channel.
    """

    def __init__(self, table: pa.Table, catalogue: VideoCatalogue) -> None:
        self._catalogue = catalogue
        table = table.sort_by("video_id").combine_chunks()
        videos = pc.unique(table.column("video_id"))
        self._videos = videos
        self._channels = pc.unique(catalogue.channel_id).drop_null()
        self._by_video = _Cumulative(
            _codes(table.column("video_id"), videos), table
        )
        self._by_channel = _Cumulative(
            self._channel_codes(table.column("video_id")), table
        )

    @classmethod
    def read(cls, path: str, catalogue: VideoCatalogue) -> "LaggedStatistics":
        """Reads a file that `run` wrote."""
        return cls(read_tables([path], SCHEMA), catalogue)

    def __call__(
        self, video_ids: pa.Array, days: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Totals over the days strictly before each row's day.

        Args:
          video_ids: string [n].
          days: int64 [n], see `local_days`.

        Returns:
          float32 [n] each, for group video and channel:
          `<group>_lagged_impressions` (NaN for the channel of a video that
          has none), `<group>_lagged_click_rate` and
          `<group>_lagged_watch_time_s` (per impression; both NaN without an
          impression).
        """
        found = self._by_video.before(_codes(video_ids, self._videos), days)
        # A video never shown before was shown zero times.
        impressions = "lagged_impressions"
        found[impressions] = np.nan_to_num(found[impressions])
        channel = self._by_channel.before(self._channel_codes(video_ids), days)
        return {f"video_{k}": v for k, v in found.items()} | {
            f"channel_{k}": v for k, v in channel.items()
        }

    def _channel_codes(self, video_ids: pa.Array) -> np.ndarray:
        rows = self._catalogue.rows(video_ids)
        channels = self._catalogue.take("channel_id", rows)
        return _codes(channels, self._channels)


class _Cumulative:
    """Running totals of (code, day) rows; code -1 is left out."""

    def __init__(self, codes: np.ndarray, table: pa.Table) -> None:
        days = table.column("day").to_numpy()
        order = np.lexsort((days, codes))
        order = order[codes[order] >= 0]
        self._index = TimeIndex(codes[order], days[order])
        self._totals = {
            name: np.concatenate(
                [[0], np.cumsum(table.column(name).to_numpy()[order])]
            )
            for name in ("impressions", "clicks")
        }
        self._totals["watch_time_us"] = np.concatenate(
            [[0], np.cumsum(_watch_time_us(table)[order])]
        )

    def before(
        self, codes: np.ndarray, days: np.ndarray
    ) -> dict[str, np.ndarray]:
        start, end = self._index.before(codes, days)
        impressions, clicks, watch_time_us = (
            (total[end] - total[start]).astype(np.float64)
            for total in self._totals.values()
        )
        shown = np.where(impressions > 0, impressions, np.nan)
        return {
            "lagged_impressions": np.where(
                codes < 0, np.nan, impressions
            ).astype(np.float32),
            "lagged_click_rate": (clicks / shown).astype(np.float32),
            "lagged_watch_time_s": (watch_time_us / 1e6 / shown).astype(
                np.float32
            ),
        }


def _codes(
    values: pa.Array | pa.ChunkedArray, distinct: pa.Array
) -> np.ndarray:
    """Position of each value among the distinct ones, -1 where absent."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    found = pc.index_in(values, value_set=distinct, skip_nulls=True)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)
