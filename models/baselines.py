"""What a trained model has to beat: the training watches and popularity.

In: the split's training watches (Parquet) and the video vocabulary. Out:
scorers with the interface of the model's own, `scores(batch) -> [b, V]`, so
that all are measured by the same code. Only training days are read.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from schemas.hashing import hash_strings
from schemas.split import DAY_US


class Scorer(Protocol):
    """Scores every video of the vocabulary for a batch of cases."""

    @property
    def num_videos(self) -> int:
        """V, the columns of `scores`."""

    def scores(self, batch: Mapping[str, Any]) -> np.ndarray:
        """Returns float32 [b, V]; column j belongs to video id j + 1."""


class VideoVocabulary(Protocol):
    """What the baselines need of `schemas.vocabularies.Vocabulary`."""

    @property
    def size(self) -> int: ...

    def ids(self, terms: pa.Array) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Watches:
    """Completed, dated training watches of known videos, all columns [n].

    Attributes:
      user: uint64 hash of the user id.
      video: int64 id in 1..V.
      time_us: int64.
    """

    user: np.ndarray
    video: np.ndarray
    time_us: np.ndarray

    def since(self, time_us: int) -> "Watches":
        """Those from a time on."""
        kept = self.time_us >= time_us
        return Watches(self.user[kept], self.video[kept], self.time_us[kept])


def read_watches(files: Sequence[str], vocabulary: VideoVocabulary) -> Watches:
    """Reads the watches that count as labels, in the files' order."""
    columns = ["user_id", "video_id", "event_time_us", "completed"]
    parts = []
    for path in files:
        with FileSystems.open(path, compression_type="uncompressed") as raw:
            file = pq.ParquetFile(pa.PythonFile(raw, mode="r"))
            names = file.schema_arrow.names
            undated = ["undated"] if "undated" in names else []
            rows = file.read(columns=columns + undated)
        keep = rows["completed"]
        if undated:
            dated = pc.invert(pc.fill_null(rows["undated"], False))
            keep = pc.and_(keep, dated)
        rows = rows.filter(keep)
        video = vocabulary.ids(rows["video_id"].combine_chunks())
        known = video > 0
        user = hash_strings(rows["user_id"])
        time_us = rows["event_time_us"].to_numpy()
        parts.append((user[known], video[known], time_us[known]))
    if not parts:
        raise ValueError("Expected one or more files of watches, got none.")
    user, video, time_us = map(np.concatenate, zip(*parts, strict=True))
    return Watches(user, video, time_us)


def popularity_counts(watches: Watches, num_videos: int) -> np.ndarray:
    """How often each of the videos 1..V was watched, int64 [V]."""
    return np.bincount(watches.video - 1, minlength=num_videos)


class Popularity:
    """The same ranking for everyone: counts per video."""

    def __init__(self, counts: np.ndarray) -> None:
        """Takes counts [V] of the videos 1..V."""
        self._row = np.asarray(counts, np.float32)

    @property
    def num_videos(self) -> int:
        return len(self._row)

    def scores(self, batch: Mapping[str, Any]) -> np.ndarray:
        users = len(history_rows(batch["watch_history"]))
        return np.broadcast_to(self._row, (users, self.num_videos))


def recent_popularity(
    watches: Watches, num_videos: int, train_end_us: int, recent_days: int
) -> Popularity:
    """Counts the watches of the last `recent_days` of the training days."""
    recent = watches.since(train_end_us - recent_days * DAY_US)
    return Popularity(popularity_counts(recent, num_videos))


def history_rows(ids: Any) -> list[np.ndarray]:
    """Splits a batch of id lists into one array a row, padding left out.

    Args:
      ids: int [b, n] padded with -1, or a ragged tensor [b, None].
    """
    if hasattr(ids, "row_splits"):
        values = np.asarray(ids.values)
        return np.split(values, np.asarray(ids.row_splits)[1:-1])
    return [row[row >= 0] for row in np.asarray(ids)]
