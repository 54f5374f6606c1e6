"""The videos table in memory: what is known of each video, by row.

The jobs join events with videos by row number, so a join is one lookup of the
distinct ids and one gather per column.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.events import read_tables
from schemas.errors import InputError
from schemas.events import EventSchema


@dataclasses.dataclass(frozen=True)
class VideoCatalogue:
    """All videos, sorted by `video_id`.

    Attributes:
      table: the videos table in stored columns, one chunk a column, ascending
        by `video_id` (UTF-8 bytes), each id once.
    """

    table: pa.Table

    @classmethod
    def read(
        cls, files: Sequence[str], schema: EventSchema
    ) -> "VideoCatalogue":
        """Reads the videos files of an events stage.

        Raises:
          InputError: an unreadable file, no video, or an id that occurs
            twice.
        """
        return cls.of_table(read_tables(files, schema.arrow("videos")))

    @classmethod
    def of_table(cls, table: pa.Table) -> "VideoCatalogue":
        """Sorts a videos table; see `read`."""
        if table.num_rows == 0:
            raise InputError("The videos table is empty; expected all videos.")
        order = pc.array_sort_indices(table.column("video_id"))
        table = table.take(order).combine_chunks()
        ids = table.column("video_id").combine_chunks()
        twice = pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1))
        if pc.any(twice).as_py():
            at = int(np.flatnonzero(twice.to_numpy(zero_copy_only=False))[0])
            raise InputError(
                f"The videos table has video_id {ids[at].as_py()!r} twice; "
                "expected one row a video."
            )
        return cls(table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def video_ids(self) -> pa.StringArray:
        """string [n], ascending."""
        return self.column("video_id")

    @property
    def channel_id(self) -> pa.StringArray:
        """string [n], null where unknown."""
        return self.column("channel_id")

    @property
    def topics(self) -> pa.ListArray:
        """list of string [n], null where unknown."""
        return self.column("topics")

    @property
    def upload_time_us(self) -> pa.Int64Array:
        """int64 [n], UTC microseconds, null where unknown."""
        return self.column("upload_time_us")

    @property
    def duration_s(self) -> pa.DoubleArray:
        """float64 [n], seconds, null where unknown."""
        return self.column("duration_s")

    @property
    def language(self) -> pa.StringArray | None:
        """string [n], null where unknown; None if the log lacks the column."""
        return self._optional("language")

    @property
    def title(self) -> pa.StringArray | None:
        """string [n], null where unknown; None if the log lacks the column."""
        return self._optional("title")

    def column(self, name: str) -> pa.Array:
        """Any stored column (extras too) as one Arrow array."""
        chunks = self.table.column(name)
        return (
            chunks.chunk(0)
            if chunks.num_chunks == 1
            else chunks.combine_chunks()
        )

    def rows(self, video_ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Row number of each id, int64 [n]; -1 unknown or null.

        A call builds a hash table of all videos: look up a shard's ids at
        once, not row by row.
        """
        if isinstance(video_ids, pa.ChunkedArray):
            video_ids = video_ids.combine_chunks()
        found = pc.index_in(video_ids, value_set=self.video_ids)
        return pc.fill_null(found, -1).to_numpy().astype(np.int64)

    def take(self, name: str, rows: np.ndarray) -> pa.Array:
        """Gathers a column by row numbers; row -1 gives null."""
        index = pa.array(rows, pa.int64(), mask=np.asarray(rows) < 0)
        return self.column(name).take(index)

    def _optional(self, name: str) -> pa.Array | None:
        return self.column(name) if name in self.table.column_names else None
