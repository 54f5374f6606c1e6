"""Requests written to Parquet and read back, slot by slot."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.stored_requests import from_table, stored_schema, to_table
from schemas.requests import RawInput

INPUTS = (
    RawInput("time", "int64", "request"),
    RawInput("word", "string", "request"),
    RawInput("age", "float32", "request"),
    RawInput("words", "string", "request", inner=2),
    RawInput("watch_id", "string", "watch", 3),
    RawInput("watch_time", "int64", "watch", 3),
    RawInput("watch_seconds", "float32", "watch", 3),
    RawInput("topics", "string", "candidate", 3, inner=2),
    RawInput("score", "float32", "candidate", 3),
)


def random_requests(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    request = {}
    for raw in INPUTS:
        shape = (n, *raw.shape)
        kind = raw.numpy_dtype
        if raw.dtype == "string":
            values = rng.choice(
                np.array([b"", b"a", b"\xc3\xa9t\xc3\xa9"], object), shape
            )
        else:
            values = rng.integers(1, 9, shape).astype(kind)
            values[rng.random(shape) < 0.3] = raw.absent
        request[raw.name] = values
    return request


def test_any_request_is_read_back_as_it_was(tmp_path) -> None:
    rng = np.random.default_rng(4)
    request = random_requests(200, rng)
    path = tmp_path / "r.parquet"
    pq.write_table(to_table(request, INPUTS), path)
    back = from_table(pq.read_table(path), INPUTS)
    for raw in INPUTS:
        assert back[raw.name].dtype == raw.numpy_dtype
        np.testing.assert_array_equal(back[raw.name], request[raw.name])
    some = from_table(pq.read_table(path).slice(50, 7), INPUTS)
    np.testing.assert_array_equal(some["topics"], request["topics"][50:57])


def test_lists_end_at_the_last_slot_that_their_axis_fills() -> None:
    request = random_requests(1, np.random.default_rng(1)) | {
        "words": np.array([[b"x", b""]], object),
        "watch_id": np.array([[b"v1", b"", b""]], object),
        "watch_time": np.array([[5, 0, 0]]),
        "watch_seconds": np.array([[np.nan, 2.5, np.nan]], np.float32),
        "topics": np.array([[[b"t", b"u"], [b"", b""], [b"", b""]]], object),
        "score": np.full((1, 3), np.nan, np.float32),
    }
    row = to_table(request, INPUTS).to_pylist()[0]
    assert row["words"] == ["x"]
    # The second watch has only a time watched; it keeps its slot.
    assert row["watch_id"] == ["v1", ""]
    assert row["watch_time"] == [5, 0]
    assert row["topics"] == [["t", "u"]]
    assert len(row["score"]) == 1


def test_no_request_at_all() -> None:
    empty = to_table(random_requests(0, np.random.default_rng(0)), INPUTS)
    assert empty.num_rows == 0
    assert empty.schema == stored_schema(INPUTS)
    back = from_table(empty, INPUTS)
    assert {n: v.shape for n, v in back.items()} == {
        raw.name: (0, *raw.shape) for raw in INPUTS
    }
    assert isinstance(empty, pa.Table)
