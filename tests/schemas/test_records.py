"""Counting records against TensorFlow's own reader and writer."""

from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import RecordCounter


def framed(lengths: list[int]) -> bytes:
    # 8 of the length, 4 and 4 of checksums, which are not looked at.
    return b"".join(
        n.to_bytes(8, "little") + b"CRC1" + b"\xff" * n + b"CRC2"
        for n in lengths
    )


def count(data: bytes, chunk: int) -> int:
    counter = RecordCounter()
    for start in range(0, len(data), chunk):
        counter.add(data[start : start + chunk])
    return counter.count


@given(st.lists(st.integers(0, 40), max_size=20), st.integers(1, 60))
def test_records_are_counted_however_the_bytes_are_cut(
    lengths: list[int], chunk: int
) -> None:
    assert count(framed(lengths), chunk) == len(lengths)


@pytest.mark.parametrize("chunk", [7, 1000, 1 << 20])
def test_a_file_of_tensorflow(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i in range(321):
            writer.write(b"x" * (i % 50))
    assert count(path.read_bytes(), chunk) == 321
