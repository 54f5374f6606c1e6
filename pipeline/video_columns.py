"""The columns of the videos table, by the ids of the vocabulary."""

import numpy as np
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from pipeline.stages import DataStages
from schemas.vocabularies import Vocabulary


def video_column(
    data: DataStages, videos: Vocabulary, column: str
) -> np.ndarray | None:
    """A number of each video of the vocabulary.

    Args:
      data: the data stages of the run.
      videos: the vocabulary, V terms.
      column: such as `upload_time_us` or `duration_s`.

    Returns:
      float64 [V], NaN where the log does not say; None if it has no such
      column at all.
    """
    if not data.schema.has("videos", column):
        return None
    found = np.full(videos.size + 1, np.nan)
    for path in data.entity_files("videos"):
        with FileSystems.open(path) as stream:
            rows = pq.read_table(stream, columns=["video_id", column])
        ids = videos.ids(rows["video_id"].combine_chunks())
        values = rows[column].to_numpy(zero_copy_only=False)
        found[ids] = values  # Those of id 0 are cut off below.
    return found[1:]
