"""What was shown, clicked and watched so far, looked up inside a SavedModel.

A request cannot know the lagged statistics that the transform graph takes in,
so the exported model carries their newest values: the totals over all days,
as a request of the day after them would have been given in training.
"""

import dataclasses
import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.keras_setup import tf

GROUPS = ("video", "channel")
_COUNTS = ("impressions", "clicks", "watch_time_s")
# Names of the raw inputs, in the order of `LaggedTable.values`' columns.
COLUMNS = tuple(
    f"{group}_lagged_{name}"
    for group in GROUPS
    for name in ("impressions", "click_rate", "watch_time_s")
)


@dataclasses.dataclass(frozen=True)
class LaggedTable:
    """Statistics of N videos and, as row N, of a video that is not known.

    Attributes:
      video_ids: string [N], distinct.
      values: float32 [N + 1, 6], columns `COLUMNS`: impressions, clicks per
        impression, seconds watched per impression, of the video and of its
        channel. Rates without an impression are NaN; so is all of a channel
        that is not known. A video that was never shown has 0 impressions.
    """

    video_ids: pa.StringArray
    values: np.ndarray

    @classmethod
    def build(cls, statistics: pa.Table, videos: pa.Table) -> "LaggedTable":
        """Adds the days up.

        Args:
          statistics: daily rows with video_id, impressions, clicks and
            watch_time_s.
          videos: the videos table; video_id and channel_id are read.
        """
        shown = statistics.column("video_id").combine_chunks()
        known = videos.column("video_id").combine_chunks()
        ids = pc.unique(pa.concat_arrays([known, shown]))
        channel_of_video = _codes(videos.column("channel_id"))
        rows = _rows(shown, ids)
        counts = np.stack(
            [statistics.column(c).to_numpy().astype(float) for c in _COUNTS],
            axis=1,
        )
        by_video = np.zeros((len(ids), len(_COUNTS)))
        np.add.at(by_video, rows, counts)
        # Videos outside the table, and those without a channel, have none.
        channel = np.full(len(ids), -1)
        channel[_rows(known, ids)] = channel_of_video
        by_channel = np.zeros((channel.max(initial=-1) + 2, len(_COUNTS)))
        np.add.at(by_channel, channel, by_video)
        by_channel[-1] = np.nan
        unknown = np.array([[0.0, 0.0, 0.0], [np.nan, np.nan, np.nan]])
        return cls(
            ids,
            np.concatenate(
                [
                    _rates(np.concatenate([by_video, unknown[:1]])),
                    _rates(np.concatenate([by_channel[channel], unknown[1:]])),
                ],
                axis=1,
            ).astype(np.float32),
        )


class LaggedLookup(tf.Module):
    """Looks rows of a `LaggedTable` up by video id, in stock operations.

    Args:
      table: the values; they become a variable.
      folder: where the ids are written, to be an asset of the SavedModel.
    """

    def __init__(self, table: LaggedTable, folder: str) -> None:
        super().__init__(name="lagged_statistics")
        path = os.path.join(folder, "lagged_video_ids.txt")
        with tf.io.gfile.GFile(path, "w") as file:
            file.write("".join(f"{v}\n" for v in table.video_ids.to_pylist()))
        lines = tf.lookup.TextFileInitializer(
            path,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        # Unknown ids get the last row.
        self._rows = tf.lookup.StaticHashTable(lines, len(table.video_ids))
        self._values = tf.Variable(table.values, trainable=False)

    def __call__(self, video_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns float32 of the ids' shape by name of `COLUMNS`."""
        values = tf.gather(self._values, self._rows.lookup(video_ids))
        columns = tf.unstack(values, len(COLUMNS), axis=-1)
        return dict(zip(COLUMNS, columns, strict=True))


def _rates(totals: np.ndarray) -> np.ndarray:
    """Impressions, clicks and seconds [n, 3] to what the columns hold."""
    impressions = totals[:, :1]
    shown = np.where(impressions > 0, impressions, np.nan)
    return np.concatenate([impressions, totals[:, 1:] / shown], axis=1)


def _rows(values: pa.Array, ids: pa.Array) -> np.ndarray:
    found = pc.index_in(values, value_set=ids)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def _codes(values: pa.ChunkedArray) -> np.ndarray:
    """A number from 0 per distinct value, -1 for null."""
    indices = values.combine_chunks().dictionary_encode().indices
    return pc.fill_null(indices, -1).to_numpy().astype(np.int64)
