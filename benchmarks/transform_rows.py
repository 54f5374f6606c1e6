"""What analyse + transform is measured on: impressions with nine quantities.

A row is an impression: its request's key and time, its place in the request,
its video, the score it was shown for, and what was known of its video and
channel up to the day before. Duration and age of the video come from the
videos table during the transform. Rows of a request follow one another; a row
group never cuts a request.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs import lagged_statistics
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.lagged_statistics import LaggedStatistics, local_days
from beam_jobs.runners import pipeline_options
from benchmarks.logs import ROW_GROUP_ROWS, Log, make_log
from benchmarks.row_columns import INPUT_COLUMNS, ROWS_FILE
from schemas.hashing import hash_strings, mix


def make_rows(path: Path, num_rows: int) -> int:
    """Writes `rows.parquet` of about `num_rows` rows below `path`.

    Returns:
      The number of rows.
    """
    log = make_log(path, num_rows, ("impressions",))
    target = path / ROWS_FILE
    if not target.exists():
        statistics = path / lagged_statistics.FILE
        lagged_statistics.run(
            log.files("impressions"), str(statistics), 0.0, pipeline_options()
        )
        catalogue = VideoCatalogue.read(log.files("videos"), log.schema)
        known = LaggedStatistics.read(str(statistics), catalogue)
        unfinished = path / f"{ROWS_FILE}.tmp"
        writer = None
        for rows in _rows(log, known):
            writer = writer or pq.ParquetWriter(unfinished, rows.schema)
            writer.write_table(rows)
        assert writer is not None  # A log has impressions.
        writer.close()
        unfinished.rename(target)
    return int(pq.read_metadata(target).num_rows)


def _rows(log: Log, known: LaggedStatistics) -> Iterator[pa.Table]:
    for file in log.files("impressions"):
        events = pl.read_parquet(file).sort(
            "event_time_us", "user_id", "request_id", "position"
        )
        table = events.to_arrow()
        days = local_days(events["event_time_us"].to_numpy(), 0.0)
        videos = table.column("video_id").cast(pa.string())
        lagged = known(videos.combine_chunks(), days)
        key = mix(
            0,
            hash_strings(table.column("user_id").cast(pa.string())),
            hash_strings(table.column("request_id").cast(pa.string())),
        )
        is_first = np.append(True, key[1:] != key[:-1])
        starts = np.flatnonzero(is_first)
        rows = pa.table(
            {
                "request_key": key.astype(np.int64),
                "request_time_us": table.column("event_time_us"),
                "slot": np.arange(len(key)) - starts[np.cumsum(is_first) - 1],
                "video_id": videos,
                "candidate_score": table.column("candidate_score").cast(
                    pa.float32()
                ),
                **{name: lagged[name] for name in INPUT_COLUMNS[1:]},
            }
        )
        start = 0
        while start < rows.num_rows:
            end = rows.num_rows
            if end - start > ROW_GROUP_ROWS:
                at = np.searchsorted(starts, start + ROW_GROUP_ROWS, "right")
                end = int(starts[at - 1])
            yield rows.slice(start, end - start)
            start = end


def main() -> None:
    """Makes the rows; prints their number as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--num_rows", type=int, required=True)
    args = parser.parse_args()
    print(json.dumps({"rows": make_rows(args.path, args.num_rows)}))


if __name__ == "__main__":
    main()
