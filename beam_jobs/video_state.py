"""Counters of videos, carried from one day to the next.

What was shown, clicked and watched is summed per video and day
(`lagged_statistics`). A request of the next day asks for the totals before
its own day or, where it began before midnight, before the day that ended: so
the state has two rows a video at most, the last day's and one of all days
before. Channels need no counters of their own, they are sums of their videos'.
"""

from collections.abc import Sequence

import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import lagged_statistics
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.events import read_tables
from beam_jobs.lagged_statistics import SCHEMA, LaggedStatistics, fold_days
from beam_jobs.output_files import write_parquet
from schemas.artifacts import join
from schemas.days import DayRange

_DAY_FILE = "video_statistics.parquet"
_STATE_FILE = ("state", "videos.parquet")


def run(
    impressions: Sequence[str],
    days: DayRange,
    parent: str | None,
    output: str,
    options: PipelineOptions,
) -> None:
    """Writes each day's sums, and the state after the last day.

    Args:
      impressions: Parquet files of the table; earlier rows are left out.
      days: which days.
      parent: folder of the state before them, if there is one.
      output: folder that has the days' folders and `state`.
      options: of Beam.
    """
    path = join(output, "all_days.parquet")
    lagged_statistics.run(impressions, path, days.utc_offset_hours, options)
    sums = read_tables([path], SCHEMA)
    FileSystems.delete([path])
    numbers = sums.column("day").to_numpy()
    for number, day in enumerate(days, days.first_number):
        rows = sums.filter(pa.array(numbers == number))
        write_parquet(join(output, str(day), _DAY_FILE), rows)
    new = sums.filter(pa.array(numbers >= days.first_number))
    last = days.first_number + len(days) - 1
    state = fold_days(_with_state(new, parent), last)
    write_parquet(join(output, *_STATE_FILE), state)


def read(
    days: DayRange, parent: str | None, output: str, catalogue: VideoCatalogue
) -> LaggedStatistics:
    """What was known on each of the days, from what `run` wrote."""
    files = [join(output, str(day), _DAY_FILE) for day in days]
    sums = _with_state(read_tables(files, SCHEMA), parent)
    return LaggedStatistics(sums, catalogue)


def _with_state(sums: pa.Table, parent: str | None) -> pa.Table:
    if parent is None:
        return sums
    state = read_tables([join(parent, *_STATE_FILE)], SCHEMA)
    return pa.concat_tables([state, sums])
