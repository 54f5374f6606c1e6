"""The training examples, file by file shared out among the workers.

All records of all files, one after the other, are cut into L equal ranges,
the lanes; each is shuffled for itself and gives its part of every global
batch. L does not depend on the number of workers: worker w of W reads lanes
w L/W up to (w + 1) L/W, opens only the files that these lie in, and the parts
of W workers, one after the other, are the batch of a single one. A file in
which one lane ends and the next begins is opened for both.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from models.inputs import (
    EXAMPLE_INDEX,
    check_files,
    example_parser,
    mapped_ahead,
)
from models.keras_setup import tf
from schemas.errors import UsageError
from schemas.examples import ExampleKey
from schemas.hashing import mix

LANES = 8
_FILES_AT_ONCE, _CHUNK = 16, 128


class WorkerRows(NamedTuple):
    """Which rows of each global batch to read.

    A batch is cut into `pieces` equal parts; worker `first // per_worker`
    reads `per_worker` of them from `first` on, one batch per part (one per
    replica).
    """

    pieces: int = 1
    first: int = 0
    per_worker: int = 1


class Segment(NamedTuple):
    """Records `first` to `first + records` of a file."""

    file: str
    first: int
    records: int


class Lane(NamedTuple):
    """A range of the records, and how many of each batch come from it."""

    number: int
    rows: int
    segments: tuple[Segment, ...]


def cut_into_lanes(
    files: Mapping[str, int], batch_size: int, num_lanes: int
) -> list[Lane]:
    """Cuts the records of files into lanes.

    With N records, every lane has enough for N // batch_size batches: lane l
    gives rows c(l) to c(l + 1) of a batch, c(l) = l batch_size // L, and has
    records N c(l) // batch_size to N c(l + 1) // batch_size.

    Args:
      files: TFRecord file -> number of its records.
      batch_size: of the global batch.
      num_lanes: L. Lanes beyond the batch size would be empty, and are not
        there.
    """
    total, ends = sum(files.values()), [*accumulate(files.values())]
    cuts = [lane * batch_size // num_lanes for lane in range(num_lanes + 1)]
    lanes = []
    for number in range(num_lanes):
        rows = cuts[number + 1] - cuts[number]
        first, end = (
            total * cut // batch_size for cut in cuts[number : number + 2]
        )
        segments = []
        for (file, count), file_end in zip(files.items(), ends, strict=True):
            file_first = file_end - count
            inside = max(first, file_first) - file_first
            until = min(end, file_end) - file_first
            if inside < until:
                segments.append(Segment(file, inside, until - inside))
        if rows:
            lanes.append(Lane(number, rows, tuple(segments)))
    return lanes


def training_dataset(
    files: Mapping[str, int],
    keys: Sequence[ExampleKey],
    batch_size: int,
    *,
    padded_lengths: Mapping[str, int],
    seed: int,
    epoch: int,
    skip_batches: int = 0,
    rows: WorkerRows = WorkerRows(),  # noqa: B008, immutable.
    num_lanes: int = LANES,
    shuffle_block: int = 2**16,
) -> tf.data.Dataset:
    """Reads a worker's part of an epoch, shuffled.

    An epoch of N records has N // `batch_size` batches, on every worker; the
    records that do not fill one more are others in each epoch. The order is a
    function of (files, seed, epoch, `batch_size`, `num_lanes`,
    `shuffle_block`): a lane reads its files in an order of the epoch's own,
    16 at a time in turns, and shuffles block after block of what it has read.

    Args:
      files: TFRecord file -> number of its records (`Artifact.records`), in
        an order that is the same on all workers.
      keys: what the examples hold (`schemas.examples`).
      batch_size: global, over all workers.
      padded_lengths: list key -> length L of its tensor [B, L], padded with
        -1, cut beyond; a list key that is not named comes as a ragged tensor.
      seed: of the order.
      epoch: of the order.
      skip_batches: batches already consumed, to resume inside an epoch.
      rows: the rows of this worker.
      num_lanes: L, a multiple of the pieces.
      shuffle_block: records shuffled together, of all lanes; up to three
        times as many are in memory.

    Returns:
      Batches: key -> tensor [B, ...] without the keys of strings, and
      `example_index` int64 [B], the row's index in the global batch.

    Raises:
      InputError: no files, or one of this worker's is not there.
      UsageError: pieces that do not divide the batch or the lanes.
    """
    if batch_size < 1 or batch_size % rows.pieces or num_lanes % rows.pieces:
        raise UsageError(
            "The global `batch_size` and the number of `lanes` must be "
            f"multiples of the number of replicas, {rows.pieces}; received "
            f"{batch_size} and {num_lanes}. Set both in the model's section."
        )
    piece = batch_size // rows.pieces
    first, end = (
        at * num_lanes // rows.pieces
        for at in (rows.first, rows.first + rows.per_worker)
    )
    lanes = [
        lane
        for lane in cut_into_lanes(files, batch_size, num_lanes)
        if first <= lane.number < end
    ]
    check_files({s.file for lane in lanes for s in lane.segments} or files)
    block = -(-shuffle_block // num_lanes)
    parts = tf.data.Dataset.zip(
        tuple(_lane_parts(lane, seed, epoch, block) for lane in lanes)
    ).skip(skip_batches)
    firsts = np.arange(rows.first, rows.first + rows.per_worker) * piece
    # Strings name users, for evaluation; no accelerator takes them.
    numbers = [key for key in keys if key.dtype != "string"]
    parse = example_parser(numbers, padded_lengths)

    def pieces(*parts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        records = tf.concat(parts, axis=0)
        return tf.reshape(records, [rows.per_worker, piece]), firsts

    def examples(records: tf.Tensor, first: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = parse(records)
        parsed[EXAMPLE_INDEX] = first + tf.range(piece, dtype=tf.int64)
        return parsed

    return mapped_ahead(parts.map(pieces).unbatch(), examples)


def _lane_parts(
    lane: Lane, seed: int, epoch: int, block: int
) -> tf.data.Dataset:
    """A lane's part of each batch of an epoch, string [rows].

    Records travel in chunks and are shuffled in blocks: a step of tf.data for
    each record costs more than parsing it.
    """
    lane_seed = int(mix(seed, np.array([epoch]), np.array([lane.number]))[0])
    order = np.argsort(mix(lane_seed, np.arange(len(lane.segments))))
    segments = [lane.segments[i] for i in order]
    columns = (
        tf.constant([s.file for s in segments], tf.string),
        tf.constant([s.first for s in segments], tf.int64),
        tf.constant([s.records for s in segments], tf.int64),
    )
    chunks = tf.data.Dataset.from_tensor_slices(columns).interleave(
        lambda file, first, records: (
            tf.data.TFRecordDataset(file)
            .skip(first)
            .take(records)
            .batch(_CHUNK)
        ),
        cycle_length=max(1, min(_FILES_AT_ONCE, len(segments))),
    )

    def shuffled(number: tf.Tensor, records: tf.Tensor) -> tf.Tensor:
        key = tf.stack([tf.constant(lane_seed >> 1, tf.int64), number])
        return tf.random.experimental.stateless_shuffle(records, key)

    blocks = chunks.rebatch(block).enumerate().map(shuffled).prefetch(1)
    parts = blocks.rebatch(lane.rows, drop_remainder=True)
    # One that ends early would leave the other workers waiting for it.
    count = sum(s.records for s in segments) // lane.rows
    return parts.apply(tf.data.experimental.assert_cardinality(count))
