"""What is read back from TFRecords, and in what order."""

from itertools import chain
from pathlib import Path

import pytest

from models.inputs import (
    dataset,
    mapped_ahead,
    max_lengths,
    naming_corrupt_files,
)
from models.keras_setup import tf
from schemas.errors import InputError
from schemas.examples import ExampleKey
from schemas.features import Feature, FeatureSet

KEYS = (
    ExampleKey("label", "int64", ()),
    ExampleKey("bag", "int64", None),
    ExampleKey("other_list", "int64", None),
    ExampleKey("values", "float32", (2,)),
)
LENGTHS = {"bag": 4}
COUNT = 50


def bag_of(i: int) -> list[int]:
    return list(range(1, 1 + i % 6))  # Lengths 0 to 5; 4 is the limit.


def example(i: int) -> bytes:
    def ints(values: list[int]) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    floats = tf.train.FloatList(value=[i / 2, -i])
    feature = {
        "label": ints([i]),
        "bag": ints(bag_of(i)),
        "other_list": ints([i] * (i % 3)),
        "values": tf.train.Feature(float_list=floats),
        "not_asked_for": ints([9]),
    }
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"train-{i}.tfrecord") for i in range(3)]
    for shard, path in enumerate(paths):
        with tf.io.TFRecordWriter(path) as writer:
            for i in range(shard, COUNT, 3):
                writer.write(example(i))
    return paths


def labels(files: list[str]) -> list:
    data = dataset(files, KEYS, 8, padded_lengths=LENGTHS)
    return [b["label"].numpy().tolist() for b in data]


def test_values_and_padding(files: list[str]) -> None:
    batches = list(dataset(files, KEYS, 8, padded_lengths=LENGTHS))
    seen = 0
    for batch in batches:
        assert batch["bag"].shape[1] == 4
        for row, i in enumerate(batch["label"].numpy()):
            bag = (bag_of(i) + [-1] * 4)[:4]
            assert batch["bag"][row].numpy().tolist() == bag
            assert batch["other_list"][row].numpy().tolist() == [i] * (i % 3)
            assert batch["values"][row].numpy().tolist() == [i / 2, -i]
            seen += 1
    assert seen == COUNT


def test_without_shuffling_files_follow_each_other(files: list[str]) -> None:
    flat = [*chain(*labels(files[::-1]))]
    assert flat == [i for s in range(3) for i in range(s, COUNT, 3)]


def test_the_last_batch(files: list[str]) -> None:
    assert [len(b) for b in labels(files)] == [8] * 6 + [2]


def test_a_corrupt_file_is_named(files: list[str]) -> None:
    path = Path(files[1])
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with (
        pytest.raises(InputError, match=r"train-1\.tfrecord is no intact"),
        naming_corrupt_files(files),
    ):
        labels(files)


def test_a_truncated_file_is_named(files: list[str]) -> None:
    path = Path(files[2])
    path.write_bytes(path.read_bytes()[:-3])
    with (
        pytest.raises(InputError, match=r"train-2\.tfrecord"),
        naming_corrupt_files(files),
    ):
        labels(files)


def test_missing_files_are_refused(files: list[str]) -> None:
    with pytest.raises(InputError, match="received none"):
        labels([])
    with pytest.raises(InputError, match=r"gone\.tfrecord is missing"):
        labels([*files, "/nowhere/gone.tfrecord"])


def test_max_lengths_are_those_of_the_bags() -> None:
    features = FeatureSet(
        (
            Feature("watch_history", "bag", "query", "video", 50),
            Feature("user_region", "categorical", "query", "region"),
            Feature("user_age", "continuous", "query"),
            Feature("query_topics", "bag", "request", "topic", 4),
            # Stored padded, with an axis of candidates.
            Feature("topics", "bag", "candidate", "topic", 4),
        )
    )
    assert max_lengths(features) == {"watch_history": 50, "query_topics": 4}


def test_what_is_mapped_ahead_keeps_its_order_and_is_not_tuned() -> None:
    numbers = tf.data.Dataset.range(100)
    squares = mapped_ahead(numbers, lambda n: n * n)
    assert [*squares.as_numpy_iterator()] == [n * n for n in range(100)]
    # The tuner's thread may keep the end of an iterator waiting for 5 s.
    assert squares.options().autotune.enabled is False
