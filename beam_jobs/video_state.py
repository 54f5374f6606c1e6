"""Counters of videos, carried from one day to the next.

What was shown, clicked and watched is summed per video and day
(`lagged_statistics`). A request of the next day asks for the totals before
its own day or, where it began before midnight, before the day that ended: so
the state has a row a video of the last day, one of all days before and, where
a watch goes on over midnight, one of the day that will know its watch time.
Channels need no counters of their own, they are sums of their videos'.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import lagged_statistics
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.events import read_tables
from beam_jobs.lagged_statistics import (
    SCHEMA,
    LaggedStatistics,
    add_up,
    fold_days,
)
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
    lagged_statistics.run(
        impressions, path, days.utc_offset_hours, options, days.start_us
    )
    sums = read_tables([path], SCHEMA)
    FileSystems.delete([path])
    if parent is not None:
        # Watches that went on over midnight count to these days.
        sums = add_up(pa.concat_tables([_state(parent), sums]))
    numbers = sums.column("day").to_numpy()
    for number, day in enumerate(days, days.first_number):
        rows = sums.filter(pa.array(numbers == number))
        write_parquet(join(output, str(day), _DAY_FILE), rows)
    last = days.first_number + len(days) - 1
    write_parquet(join(output, *_STATE_FILE), fold_days(sums, last))


def read(
    days: DayRange, parent: str | None, output: str, catalogue: VideoCatalogue
) -> LaggedStatistics:
    """What was known on each of the days, from what `run` wrote."""
    files = [join(output, str(day), _DAY_FILE) for day in days]
    sums = read_tables(files, SCHEMA)
    if parent is not None:
        state = _state(parent)
        # What it holds of these days is in their files.
        before = pc.less(state.column("day"), days.first_number)
        sums = pa.concat_tables([state.filter(before), sums])
    return LaggedStatistics(sums, catalogue)


def _state(folder: str) -> pa.Table:
    return read_tables([join(folder, *_STATE_FILE)], SCHEMA)
