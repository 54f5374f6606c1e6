"""TFRecords: the values come back, the bytes are equal, files are whole."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from beam_jobs.example_files import (
    Distinct,
    ExampleWriter,
    FilesBehind,
    Ragged,
    Repeated,
    encode_examples,
    read_examples,
    without_padding,
    write_examples,
)
from schemas.examples import ExampleKey

KEYS = (
    ExampleKey("bag", "int64", None),
    ExampleKey("id", "int64", ()),
    ExampleKey("knots", "float32", (2, 4)),
    ExampleKey("name", "string", ()),
    ExampleKey("weights", "float32", None),
)


def columns() -> dict:
    return {
        "bag": Ragged(np.array([7, -3, 2**40]), np.array([0, 2, 2, 3])),
        "id": np.array([0, -1, 2**62]),
        "knots": np.arange(24, dtype=np.float32).reshape(3, 2, 4),
        "name": np.array([b"a", b"", b"\xff\x00"], object),
        "weights": Ragged(
            np.array([np.nan, 1.5], np.float32), np.array([0, 0, 1, 2])
        ),
    }


def test_values_come_back(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tfrecord")
    assert write_examples(path, columns(), KEYS) == 3
    rows = list(read_examples([path], KEYS))
    assert [r["bag"].tolist() for r in rows] == [[7, -3], [], [2**40]]
    assert [int(r["id"]) for r in rows] == [0, -1, 2**62]
    assert [r["name"] for r in rows] == [b"a", b"", b"\xff\x00"]
    assert rows[1]["knots"].tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert [r["weights"].tolist() for r in rows[::2]] == [[], [1.5]]
    assert np.isnan(rows[1]["weights"]).tolist() == [True]


def test_pieces_are_one_example_to_protobuf_and_to_the_batch_parser() -> None:
    encoded = encode_examples(columns(), KEYS)
    example = tf.train.Example.FromString(encoded[0])
    assert sorted(example.features.feature) == [k.name for k in KEYS]
    assert list(example.features.feature["bag"].int64_list.value) == [7, -3]
    spec = {k.name: k.parse_spec() for k in KEYS}
    parsed = tf.io.parse_example(encoded, spec)
    assert parsed["bag"].to_list() == [[7, -3], [], [2**40]]
    assert parsed["id"].numpy().tolist() == [0, -1, 2**62]


_HASH = """
import hashlib, numpy as np
from beam_jobs.example_files import encode_examples
from schemas.examples import ExampleKey
keys = [ExampleKey(f"key_{i}", "int64", ()) for i in range(12)]
rows = {k.name: np.arange(50) for k in keys}
print(hashlib.sha256(b"".join(encode_examples(rows, keys))).hexdigest())
"""


def test_bytes_are_equal_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _HASH],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            cwd=Path(__file__).parents[2],
        ).stdout
        for seed in range(2)
    }
    assert len(outputs) == 1


def test_a_failed_file_does_not_appear(tmp_path: Path) -> None:
    path = tmp_path / "x.tfrecord"
    with (
        pytest.raises(ValueError, match="Expected the columns"),
        ExampleWriter(str(path), KEYS) as writer,
    ):
        writer.write(columns())
        writer.write({})
    assert list(tmp_path.iterdir()) == []


def test_a_second_attempt_replaces_the_first(tmp_path: Path) -> None:
    path = str(tmp_path / "x.tfrecord")
    write_examples(path, columns(), KEYS)
    key = ExampleKey("id", "int64", ())
    write_examples(path, {"id": np.array([5])}, [key])
    assert [int(r["id"]) for r in read_examples([path], [key])] == [5]
    assert os.listdir(tmp_path) == ["x.tfrecord"]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("id", np.array([1, 2, 3], np.int32), "expected int64, received int32"),
        ("id", np.zeros((3, 2), np.int64), "received an array of shape"),
        ("bag", np.zeros((3, 2), np.int64), "expected Ragged"),
        (
            "knots",
            Ragged(np.zeros(3, np.float32), np.arange(4)),
            "received a ragged column",
        ),
    ],
)
def test_wrong_columns_are_refused(
    name: str, values: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_examples({**columns(), name: values}, KEYS)


def test_without_padding() -> None:
    bag = np.array([[3, 0, -1], [-1, -1, -1], [5, -1, -1]])
    stripped = without_padding(bag)
    # Id 0, out of vocabulary, is part of the bag and its length.
    assert stripped.values.tolist() == [3, 0, 5]
    assert stripped.row_splits.tolist() == [0, 2, 2, 3]


def test_equal_rows_are_encoded_once_to_the_same_bytes() -> None:
    key = ExampleKey("age", "float32", (2,))
    values = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    rows = np.array([2, 0, 0, 1, 2])
    repeated = Repeated(Distinct(values), rows)
    # Two chunks of one column share what was encoded.
    chunks = [
        encode_examples({"age": repeated.slice(some)}, [key])
        for some in (slice(0, 3), slice(3, 9))
    ]
    plain = encode_examples({"age": values[rows]}, [key])
    assert [example for chunk in chunks for example in chunk] == plain
    lists = Ragged(np.array([7, 8, 9]), np.array([0, 2, 2, 3]))
    bag = ExampleKey("bag", "int64", None)
    assert encode_examples(
        {"bag": Repeated(Distinct(lists), np.array([2, 1, 0]))}, [bag]
    ) == encode_examples(
        {"bag": Ragged(np.array([9, 7, 8]), np.array([0, 1, 1, 3]))}, [bag]
    )
    few = Repeated.of(np.array([5.0, 4.0, 5.0], np.float32))
    assert few.distinct.values.tolist() == [4, 5]
    assert few.distinct.values[few.rows].tolist() == [5, 4, 5]


def test_files_behind_are_there_after_the_wait(tmp_path: Path) -> None:
    key = ExampleKey("id", "int64", ())
    files = FilesBehind()
    paths = [str(tmp_path / f"train-{i}.tfrecord") for i in range(3)]
    for i, path in enumerate(paths):
        chunks = [{"id": np.array([10 * i + n])} for n in range(2)]
        files.write(path, [key], chunks)
    files.wait()
    found = [int(e["id"]) for e in read_examples(paths, [key])]
    assert found == [0, 1, 10, 11, 20, 21]
    # A wrong last chunk: told by the wait, and no file appears.
    wrong = str(tmp_path / "wrong.tfrecord")
    files.write(wrong, [key], [{"id": np.array([1])}, {"id": np.array([1.5])}])
    with pytest.raises(ValueError, match="expected int64, received float64"):
        files.wait()
    files.close()
    assert not (tmp_path / "wrong.tfrecord").exists()
    assert len(list(tmp_path.iterdir())) == 3
