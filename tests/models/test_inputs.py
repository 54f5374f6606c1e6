"""Order, completeness and slices of what is read back from TFRecords."""

from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from models.inputs import (
    WorkerRows,
    dataset,
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


def labels(files: list[str], batch: int = 8, **options: object) -> list:
    data = dataset(files, KEYS, batch, padded_lengths=LENGTHS, **options)
    return [b["label"].numpy().tolist() for b in data]


def flat_labels(files: list[str], **options: object) -> list[int]:
    return [*chain(*labels(files, **options))]


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
            assert batch["example_index"][row] == row
            seen += 1
    assert seen == COUNT


def test_without_shuffling_files_follow_each_other(files: list[str]) -> None:
    flat = flat_labels(files[::-1])
    assert flat == [i for s in range(3) for i in range(s, COUNT, 3)]


def test_each_record_once_an_epoch_in_a_new_order(files: list[str]) -> None:
    def order(files: list[str], **options: int) -> list[int]:
        return flat_labels(files, shuffle=True, **options)

    first = order(files, seed=1, epoch=1)
    assert Counter(first) == Counter(range(COUNT))
    assert first == order(files, seed=1, epoch=1)
    assert first == order(files[::-1], seed=1, epoch=1)
    for other in (order(files, seed=1, epoch=2), order(files, seed=2, epoch=1)):
        assert sorted(other) == sorted(first)
        # Two random orders of 50 agree in one place, by expectation.
        agreeing = sum(a == b for a, b in zip(first, other, strict=True))
        assert agreeing < 8
    # Neighbours come from all over: sorted files would differ by 3 each.
    assert len(set(np.diff(first))) > 20


def test_an_epoch_is_the_same_when_read_twice(files: list[str]) -> None:
    data = dataset(files, KEYS, 8, padded_lengths=LENGTHS, shuffle=True)
    one, two = ([b["label"].numpy().tolist() for b in data] for _ in range(2))
    assert one == two


def test_each_epoch_reads_the_files_in_an_order_of_its_own(
    files: list[str],
) -> None:
    def first_label(epoch: int) -> int:
        # A buffer of one record leaves the order as it was read.
        options = {"shuffle": True, "shuffle_buffer": 1, "epoch": epoch}
        return flat_labels(files, **options)[0]

    # The files begin with 0, 1 and 2; P(one is missing) < 3 (2/3)^12 = .02.
    assert {first_label(epoch) for epoch in range(12)} == {0, 1, 2}


def test_the_last_batch(files: list[str]) -> None:
    assert [len(b) for b in labels(files)] == [8] * 6 + [2]
    assert [len(b) for b in labels(files, drop_remainder=True)] == [8] * 6


def test_skipping_goes_on_where_it_stopped(files: list[str]) -> None:
    options = {"shuffle": True, "seed": 4, "epoch": 3}
    whole = labels(files, **options)
    assert labels(files, skip_batches=5, **options) == whole[5:]
    assert labels(files, skip_batches=7, **options) == []


@pytest.mark.parametrize("workers", [2, 4])
def test_slices_of_the_workers_are_the_batch(
    files: list[str], workers: int
) -> None:
    options = {"shuffle": True, "seed": 4, "drop_remainder": True}
    whole = labels(files, **options)
    parts = [
        labels(files, rows=WorkerRows(workers, w, 1), **options)
        for w in range(workers)
    ]
    joined = [[*chain(*step)] for step in zip(*parts, strict=True)]
    assert joined == whole


def test_a_worker_with_two_replicas_reads_two_pieces(files: list[str]) -> None:
    options = {"shuffle": True, "seed": 4, "drop_remainder": True}
    whole = flat_labels(files, **options)
    rows = WorkerRows(pieces=4, first=2, per_worker=2)
    data = dataset(files, KEYS, 8, padded_lengths=LENGTHS, rows=rows, **options)
    pieces = list(data)
    assert len(pieces) == 12
    for i, piece in enumerate(pieces):
        start = 8 * (i // 2) + 4 + 2 * (i % 2)
        assert piece["label"].numpy().tolist() == whole[start : start + 2]
        index = [4 + 2 * (i % 2), 5 + 2 * (i % 2)]
        assert piece["example_index"].numpy().tolist() == index
        assert piece["label"].shape == (2,)


def test_a_small_shuffle_buffer_still_gives_all(files: list[str]) -> None:
    flat = flat_labels(files, shuffle=True, shuffle_buffer=5)
    assert Counter(flat) == Counter(range(COUNT))


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


def test_missing_files_and_wrong_batches_are_refused(files: list[str]) -> None:
    with pytest.raises(InputError, match="received none"):
        labels([])
    with pytest.raises(InputError, match=r"gone\.tfrecord is missing"):
        labels([*files, "/nowhere/gone.tfrecord"])
    with pytest.raises(ValueError, match=r"replicas, 3; received 8"):
        labels(files, rows=WorkerRows(3, 0, 1), drop_remainder=True)
    with pytest.raises(ValueError, match="drop_remainder=True"):
        labels(files, rows=WorkerRows(2, 0, 1))


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
