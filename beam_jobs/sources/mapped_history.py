"""Undated history: ordered lists of watched videos to watches before the log.

In: one row per user with a list of video ids, the oldest first. Out: watches
with `undated` = true, whose times only encode the order; see
`mapping.UndatedHistory` for the rules.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from beam_jobs import progress
from beam_jobs.event_files import RawTable
from beam_jobs.event_rows import RawRows
from beam_jobs.sources.mapped_blocks import NOT_UTF8
from beam_jobs.sources.mapped_cells import id_lists, id_texts
from beam_jobs.sources.mapped_files import (
    LogFile,
    find_files,
    num_rows_of,
    parts_of,
    read_blocks,
    read_sample,
)
from beam_jobs.sources.mapping import UndatedHistory, nearest
from schemas.errors import InputError
from schemas.events import EventSchema

STEP_US = 1_000_000


def history_table(
    history: UndatedHistory, schema: EventSchema, root: str
) -> RawTable:
    """The source of the undated watches.

    Raises:
      InputError: a missing file or column.
    """
    files = find_files(
        root, history.patterns, history.file_format, history.delimiter
    )
    for file in files:
        names = read_sample(file).columns
        for used in (history.user_id, history.watched, history.completed):
            if used is not None and used not in names:
                raise InputError(
                    f"{file.name} has no column {used!r}, which "
                    f"undated_history needs{nearest(used, names)} It has: "
                    f"{', '.join(names)}."
                )
    parts = [(n, p) for n, f in enumerate(files) for p in parts_of(f)]
    read = _Read(tuple(files), history, schema.arrow("watches"))
    return RawTable(
        "watches",
        parts,
        read,
        before_log=True,
        num_bytes=sum(file.num_bytes for file in files),
        num_rows=num_rows_of(files),
    )


@dataclasses.dataclass(frozen=True)
class _Read:
    files: tuple[LogFile, ...]
    history: UndatedHistory
    schema: pa.Schema

    def __call__(
        self, part: tuple[Any, ...], log_start_us: int | None
    ) -> Iterator[RawRows]:
        number, unit = part
        file, given = self.files[number], self.history.log_start
        start_us = log_start_us
        if given is not None:
            # A datetime without a zone is UTC, as everywhere in a log.
            epoch = pl.Series([given]).dt.epoch("us")
            start_us = int(epoch[0])
        if start_us is None:
            raise ValueError("An undated history needs the log's start.")
        for block in read_blocks(file, unit):
            try:
                rows = watches_of(block.frame, self.history, start_us)
            except TypeError as error:
                raise InputError(
                    f"{file.name}: undated_history expects a text or number "
                    f"as user_id and lists or texts of video ids: {error}."
                ) from error
            record = rows["row"].to_numpy()
            errors = np.full(len(record), None, object)
            if block.garbled is not None:
                errors[block.garbled[record]] = NOT_UTF8
            table = rows.select(self.schema.names).to_arrow()
            yield RawRows(
                table.cast(self.schema),
                file.name,
                block.numbers[record],
                errors=errors,
                malformed=block.malformed,
            )
            progress.report("read", block.num_records)


def watches_of(
    frame: pl.DataFrame, history: UndatedHistory, log_start_us: int
) -> pl.DataFrame:
    """One row per watch of the lists.

    Args:
      frame: one row per user.
      history: names of the columns.
      log_start_us: UTC microseconds.

    Returns:
      The columns of `watches`, and `row`: the user's row in `frame`.
    """
    lists = frame.select(
        id_texts(frame[history.user_id]).alias("user_id"),
        id_lists(frame[history.watched], history.separator).alias("video_id"),
        pl.int_range(pl.len()).alias("row"),
    ).with_columns(pl.col("video_id").list.len().cast(pl.Int64).alias("n"))
    places = pl.int_ranges(0, "n").alias("i")
    watches = (
        lists.filter(pl.col("n") > 0)
        .with_columns(places)
        .explode("video_id", "i")
    )
    if history.completed is None:
        watches = watches.with_columns(pl.lit(True).alias("completed"))
    else:
        seen_to_end = (
            pl.DataFrame(
                {
                    "row": lists["row"],
                    "video_id": id_lists(
                        frame[history.completed], history.separator
                    ),
                }
            )
            .explode("video_id")
            .unique()
            .with_columns(pl.lit(True).alias("completed"))
        )
        watches = watches.join(
            seen_to_end,
            on=["row", "video_id"],
            how="left",
            maintain_order="left",
        ).with_columns(pl.col("completed").fill_null(False))
    time_us = log_start_us - (pl.col("n") - pl.col("i")) * STEP_US
    return watches.with_columns(
        time_us.alias("event_time_us"),
        pl.lit(None, pl.Float64).alias("watch_time_s"),
        pl.lit(history.source).alias("source"),
        pl.lit(True).alias("undated"),
    )
