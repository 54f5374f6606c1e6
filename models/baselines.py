"""What a trained model has to beat: popularity and co-watch counts.

In: the split's training watches (Parquet) and the video vocabulary. Out:
scorers with the interface of the model's own, `scores(batch) -> [b, V]`, so
that all are measured by the same code. Only training days are read.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from schemas.hashing import hash_strings

_DAY_US = 86_400_000_000
# Far below the smallest co-watch score: popularity only parts equal videos.
_POPULARITY_SHARE = 1e-6


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
    recent = watches.time_us >= train_end_us - recent_days * _DAY_US
    counts = np.bincount(watches.video[recent] - 1, minlength=num_videos)
    return Popularity(counts)


class CoWatch:
    """Videos that others watched soon after the ones in the context.

    The weight of video j for a context video i is n_ij / sqrt(n_i n_j): how
    often j was among the next `window` completed watches of a user after i,
    over the geometric mean of how often each was watched (cosine). A video's
    score is the sum over the context's last `context` watches, the p-th most
    recent of them with weight 1 / p. Videos without any such link keep the
    order of popularity, below all others.
    """

    def __init__(
        self,
        watches: Watches,
        num_videos: int,
        *,
        window: int = 10,
        context: int = 20,
    ) -> None:
        counts = np.bincount(watches.video - 1, minlength=num_videos)
        source, target, together = _pairs(watches, num_videos, window)
        norm = np.sqrt(counts[source].astype(np.float64) * counts[target])
        self._weights = (together / norm).astype(np.float32)
        self._targets = target
        # Row i of the sparse matrix is starts[i]:starts[i + 1].
        self._starts = np.searchsorted(source, np.arange(num_videos + 1))
        smallest = self._weights.min(initial=1.0)
        scale = smallest * _POPULARITY_SHARE / max(counts.max(initial=1), 1)
        self._popularity = (counts * scale).astype(np.float32)
        self._context = context

    @property
    def num_videos(self) -> int:
        return len(self._popularity)

    def scores(self, batch: Mapping[str, Any]) -> np.ndarray:
        rows = history_rows(batch["watch_history"])
        scores = np.tile(self._popularity, (len(rows), 1))
        for row, history in zip(scores, rows, strict=True):
            for place, video in enumerate(history[: self._context], start=1):
                if video < 1:
                    continue
                links = slice(self._starts[video - 1], self._starts[video])
                # A row's targets are distinct, so += adds each of them.
                row[self._targets[links]] += self._weights[links] / place
        return scores


def _pairs(
    watches: Watches, num_videos: int, window: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts ordered pairs of different videos at most `window` watches apart.

    Equal times are ordered by video, as in the histories.

    Returns:
      source, target (from 0), count: int64 [pairs], sorted by source, target.
    """
    order = np.lexsort((watches.video, watches.time_us, watches.user))
    user, video = watches.user[order], watches.video[order] - 1
    keys = np.empty(0, np.int64)
    counts = np.empty(0, np.int64)
    for lag in range(1, window + 1):
        source, target = video[:-lag], video[lag:]
        linked = (user[:-lag] == user[lag:]) & (source != target)
        new = source[linked] * num_videos + target[linked]
        # One lag at a time: memory is that of the distinct pairs, not of
        # `window` times the watches.
        keys, counts = _merge(keys, counts, new)
    return keys // num_videos, keys % num_videos, counts


def _merge(
    keys: np.ndarray, counts: np.ndarray, new: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    distinct, added = np.unique(new, return_counts=True)
    merged, inverse = np.unique(
        np.concatenate([keys, distinct]), return_inverse=True
    )
    total = np.bincount(inverse, np.concatenate([counts, added]), len(merged))
    return merged, total.astype(np.int64)


def history_rows(ids: Any) -> list[np.ndarray]:
    """Splits a batch of id lists into one array a row, padding left out.

    Args:
      ids: int [b, n] padded with -1, or a ragged tensor [b, None].
    """
    if hasattr(ids, "row_splits"):
        values = np.asarray(ids.values)
        return np.split(values, np.asarray(ids.row_splits)[1:-1])
    return [row[row >= 0] for row in np.asarray(ids)]


def baselines(
    watch_files: Iterable[str],
    vocabulary: VideoVocabulary,
    counts: np.ndarray,
    *,
    train_end_us: int,
    recent_days: int,
) -> dict[str, Scorer]:
    """Builds the three baselines by the names of the metrics table.

    Args:
      watch_files: the split's training watches.
      vocabulary: of the videos.
      counts: the vocabulary's own counts [V].
      train_end_us: end of the training days.
      recent_days: evaluation.recent_days.
    """
    watches = read_watches(sorted(watch_files), vocabulary)
    size = vocabulary.size
    return {
        "popularity": Popularity(counts),
        "recent_popularity": recent_popularity(
            watches, size, train_end_us, recent_days
        ),
        "co_watch": CoWatch(watches, size),
    }
