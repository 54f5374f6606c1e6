"""Training's order: the same for any number of workers, each with its files."""

import os
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.keras_setup import tf
from models.lanes import WorkerRows, cut_into_lanes, training_dataset
from schemas.errors import InputError, UsageError
from schemas.examples import ExampleKey

KEYS = (ExampleKey("label", "int64", ()),)
COUNT, BATCH = 100, 16


def write(path: Path, values: list[int]) -> str:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i in values:
            ints = tf.train.Int64List(value=[i])
            feature = {"label": tf.train.Feature(int64_list=ints)}
            features = tf.train.Features(feature=feature)
            example = tf.train.Example(features=features)
            writer.write(example.SerializeToString())
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, int]:
    """100 examples, 0 to 99, in files of 40, 0, 35 and 25."""
    bounds = [0, 40, 40, 75, 100]
    return {
        write(tmp_path / f"train-{i}", list(range(first, end))): end - first
        for i, (first, end) in enumerate(pairwise(bounds))
    }


def labels(files: dict[str, int], **options: Any) -> list[list[int]]:
    defaults = {"padded_lengths": {}, "seed": 4, "epoch": 1}
    data = training_dataset(files, KEYS, BATCH, **{**defaults, **options})
    return [b["label"].numpy().tolist() for b in data]


def flat(files: dict[str, int], **options: Any) -> list[int]:
    return [*chain(*labels(files, **options))]


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=9),
    st.integers(1, 70),
    st.integers(1, 20),
)
def test_lanes_share_the_records_out(
    counts: list[int], batch_size: int, num_lanes: int
) -> None:
    files = {str(i): count for i, count in enumerate(counts)}
    lanes = cut_into_lanes(files, batch_size, num_lanes)
    assert sum(lane.rows for lane in lanes) == batch_size
    assert max(x.rows for x in lanes) - min(x.rows for x in lanes) <= 1
    # One after the other they are all the records, each once.
    found = [
        (s.file, s.first + i)
        for lane in lanes
        for s in lane.segments
        for i in range(s.records)
    ]
    assert found == [(f, i) for f, count in files.items() for i in range(count)]
    # Each lasts for as many batches as all records fill.
    batches = sum(counts) // batch_size
    for lane in lanes:
        assert sum(s.records for s in lane.segments) // lane.rows >= batches


def test_each_record_once_an_epoch_in_a_new_order(
    files: dict[str, int],
) -> None:
    first = flat(files)
    # 100 examples fill 6 batches of 16.
    assert len(first) == 96 and max(Counter(first).values()) == 1
    assert first == flat(files)
    for other in (flat(files, epoch=2), flat(files, seed=5)):
        # Other examples are left out, and two random orders agree in one
        # place of a lane, by expectation: 8 in all.
        assert set(other) != set(first)
        agreeing = sum(a == b for a, b in zip(first, other, strict=True))
        assert agreeing < 30
    # Neighbours come from all over.
    assert len(set(np.diff(first))) > 30


def test_a_batch_has_rows_of_each_lane(files: dict[str, int]) -> None:
    # Four lanes of 25 records, four rows of each.
    for batch in labels(files, num_lanes=4):
        assert [i // 25 for i in batch] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_an_epoch_is_the_same_when_read_twice(files: dict[str, int]) -> None:
    data = training_dataset(
        files, KEYS, BATCH, padded_lengths={}, seed=1, epoch=1
    )
    one, two = ([b["label"].numpy().tolist() for b in data] for _ in range(2))
    assert one == two and len(one) == 6


def test_each_epoch_reads_a_lane_s_files_in_an_order_of_its_own(
    files: dict[str, int],
) -> None:
    def first_label(epoch: int) -> int:
        # A block of one record leaves the order as it was read.
        return flat(files, num_lanes=1, shuffle_block=1, epoch=epoch)[0]

    # The files begin with 0, 40 and 75; P(one is missing) < 3 (2/3)^12 = .02.
    assert {first_label(epoch) for epoch in range(12)} == {0, 40, 75}


@pytest.mark.parametrize("num_lanes", [8, 12])
def test_skipping_goes_on_where_it_stopped(
    files: dict[str, int], num_lanes: int
) -> None:
    whole = labels(files, num_lanes=num_lanes)
    assert labels(files, num_lanes=num_lanes, skip_batches=4) == whole[4:]
    assert labels(files, num_lanes=num_lanes, skip_batches=7) == []


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_parts_of_the_workers_are_the_batch(
    files: dict[str, int], workers: int
) -> None:
    parts = [labels(files, rows=WorkerRows(workers, w)) for w in range(workers)]
    joined = [[*chain(*step)] for step in zip(*parts, strict=True)]
    assert joined == labels(files)


def test_a_worker_with_two_replicas_reads_two_pieces(
    files: dict[str, int],
) -> None:
    # 12 lanes of a batch of 16 give 1, 1 and 2 rows in turns.
    whole = flat(files, num_lanes=12)
    pieces = list(
        training_dataset(
            files,
            KEYS,
            BATCH,
            padded_lengths={},
            seed=4,
            epoch=1,
            num_lanes=12,
            rows=WorkerRows(pieces=4, first=2, per_worker=2),
        )
    )
    assert len(pieces) == 12
    for i, piece in enumerate(pieces):
        at = 8 + 4 * (i % 2)
        start = 16 * (i // 2) + at
        assert piece["label"].numpy().tolist() == whole[start : start + 4]
        index = piece["example_index"].numpy().tolist()
        assert index == list(range(at, at + 4))
        assert piece["label"].shape == (4,)


def test_a_worker_opens_its_own_files_only(files: dict[str, int]) -> None:
    whole = labels(files)
    # Records 0 to 49 lie in the first and the third file.
    paths = list(files)
    Path(paths[3]).write_bytes(b"no TFRecord at all")
    first = labels(files, rows=WorkerRows(2, 0))
    assert first == [batch[:8] for batch in whole]
    # Records 50 to 99 in the third and the fourth.
    with pytest.raises(tf.errors.DataLossError):
        labels(files, rows=WorkerRows(2, 1))
    os.remove(paths[3])
    assert labels(files, rows=WorkerRows(2, 0)) == first
    with pytest.raises(InputError, match="train-3 is missing"):
        labels(files, rows=WorkerRows(2, 1))


def test_small_blocks_still_give_all(files: dict[str, int]) -> None:
    # Of four lanes of 25: blocks of 2, 2, ... 1.
    found = flat(files, shuffle_block=5, num_lanes=4)
    assert len(set(found)) == 96


def test_a_file_with_fewer_records_than_promised_is_refused(
    files: dict[str, int],
) -> None:
    files[list(files)[-1]] += 60
    # 160 records promised: of the last lane's 20, none is there.
    with pytest.raises(tf.errors.FailedPreconditionError, match="contained"):
        labels(files)


def test_too_few_examples_make_no_batch(files: dict[str, int]) -> None:
    path, count = next(iter(files.items()))
    assert labels({path: 9}) == []
    assert labels({path: 0}) == []
    assert len(labels({path: count})) == 2


def test_what_does_not_fit_is_refused(files: dict[str, int]) -> None:
    with pytest.raises(InputError, match="received none"):
        labels({})
    with pytest.raises(UsageError, match=r"replicas, 3; received 16 and 9"):
        labels(files, rows=WorkerRows(3), num_lanes=9)
    with pytest.raises(UsageError, match=r"replicas, 4; received 16 and 6"):
        labels(files, rows=WorkerRows(4), num_lanes=6)
