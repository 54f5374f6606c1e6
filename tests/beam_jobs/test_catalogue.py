"""The videos in memory: sorted, unique, looked up by row."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.catalogue import VideoCatalogue
from schemas.errors import InputError
from schemas.events import EventSchema

TABLE = pa.table(
    {
        "video_id": ["b", "a", "é", "B"],
        "channel_id": ["c1", None, "c2", "c1"],
        "topics": pa.array(
            [["x", "y"], None, [], ["z"]], pa.list_(pa.string())
        ),
        "upload_time_us": pa.array([2, 1, None, 4], pa.int64()),
        "duration_s": [20.0, None, 3.0, 4.0],
    }
)


def test_reads_sorted_and_finds_rows(tmp_path) -> None:
    for number in range(2):
        pq.write_table(
            TABLE.slice(2 * number, 2), tmp_path / f"v{number}.parquet"
        )
    videos = VideoCatalogue.read(
        [str(tmp_path / "v1.parquet"), str(tmp_path / "v0.parquet")],
        EventSchema.of_tables({"videos": TABLE}),
    )
    # By UTF-8 bytes: B = 0x42, a = 0x61, b = 0x62, é = 0xC3A9.
    assert videos.video_ids.to_pylist() == ["B", "a", "b", "é"]
    assert videos.channel_id.to_pylist() == ["c1", None, "c1", "c2"]
    assert videos.topics.to_pylist() == [["z"], None, ["x", "y"], []]
    assert videos.upload_time_us.to_pylist() == [4, 1, 2, None]
    assert videos.language is None
    rows = videos.rows(pa.array(["é", "nowhere", "B", None, "é"]))
    assert rows.dtype == np.int64
    assert rows.tolist() == [3, -1, 0, -1, 3]
    assert videos.take("duration_s", rows).to_pylist() == [
        3.0,
        None,
        4.0,
        None,
        3.0,
    ]


def test_repeated_and_missing_videos_are_refused() -> None:
    with pytest.raises(InputError, match="'a' twice"):
        VideoCatalogue.of_table(pa.concat_tables([TABLE, TABLE.slice(1, 1)]))
    with pytest.raises(InputError, match="empty"):
        VideoCatalogue.of_table(TABLE.slice(0, 0))
