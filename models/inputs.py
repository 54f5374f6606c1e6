"""TFRecords -> batches of tensors, in an order that follows from the seed.

Workers read the same global batches and parse their own rows of them, so the
rows of N workers, one after the other, are the batch of one worker.
"""

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from models.keras_setup import tf
from schemas.errors import InputError
from schemas.examples import ExampleKey
from schemas.features import PADDING_ID, FeatureSet
from schemas.hashing import mix

# Index of a row in the global batch, added to every batch: what dropout
# needs to be the same on any number of workers.
EXAMPLE_INDEX = "example_index"


class WorkerRows(NamedTuple):
    """Which rows of each global batch to read.

    A batch is cut into `pieces` equal parts; worker `first // per_worker`
    reads `per_worker` of them from `first` on, one batch per part (one per
    replica).
    """

    pieces: int = 1
    first: int = 0
    per_worker: int = 1


def max_lengths(features: FeatureSet) -> dict[str, int]:
    """Bag name -> length it is padded to, for `dataset`.

    The bags of candidates are stored padded.
    """
    bags = features.select("query", "request", kind="bag")
    return {f.name: f.max_length for f in bags if f.max_length is not None}


def dataset(
    files: Sequence[str],
    keys: Sequence[ExampleKey],
    batch_size: int,
    *,
    padded_lengths: Mapping[str, int],
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    drop_remainder: bool = False,
    skip_batches: int = 0,
    rows: WorkerRows = WorkerRows(),  # noqa: B008, immutable.
    shuffle_buffer: int = 2**17,
) -> tf.data.Dataset:
    """Reads an epoch of examples.

    Order: with `shuffle`, files in an order drawn from (seed, epoch), read 16
    at a time in turns, and through a shuffle buffer; without, file after
    file. Both are the same at each call.

    Args:
      files: TFRecord files, in any order.
      keys: what the examples hold (`schemas.examples`).
      batch_size: global, over all workers.
      padded_lengths: list key -> length L of its tensor [B, L], padded with
        -1, cut beyond; a list key that is not named comes as a ragged tensor.
      seed: of the order.
      epoch: of the order.
      shuffle: whether to shuffle.
      drop_remainder: whether to leave a last, smaller batch out.
      skip_batches: batches already consumed, to resume inside an epoch.
      rows: the rows of this worker; more than one piece needs
        `drop_remainder`.
      shuffle_buffer: records held for shuffling.

    Returns:
      Batches: key -> tensor [B, ...], and `example_index` int64 [B].

    Raises:
      InputError: no files, or one is not there.
      ValueError: a batch that the pieces do not divide.
    """
    _check(files, batch_size, drop_remainder, rows)
    files = sorted(files)
    if shuffle:
        hashes = [zlib.crc32(f.rsplit("/", 1)[-1].encode()) for f in files]
        order = np.argsort(mix(seed, np.asarray(hashes) + (epoch << 32)))
        files = [files[i] for i in order]
    records = tf.data.Dataset.from_tensor_slices(files).interleave(
        tf.data.TFRecordDataset,
        cycle_length=min(16, len(files)) if shuffle else 1,
    )
    if shuffle:
        order_seed = mix(seed, np.asarray([epoch]))[0] >> np.uint64(1)
        records = records.shuffle(
            shuffle_buffer, int(order_seed), reshuffle_each_iteration=False
        )
    batches = records.batch(batch_size, drop_remainder).skip(skip_batches)
    spec = {key.name: key.parse_spec() for key in keys}
    piece = batch_size // rows.pieces

    def parse(serialized: tf.Tensor, first: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(serialized, spec)
        for name, length in padded_lengths.items():
            if name in parsed:
                bag = parsed[name]
                parsed[name] = bag.to_tensor(PADDING_ID, shape=[None, length])
        count = tf.size(serialized, out_type=tf.int64)
        parsed[EXAMPLE_INDEX] = first + tf.range(count)
        return parsed

    if rows.pieces > 1:
        mine = np.arange(rows.first, rows.first + rows.per_worker) * piece

        def cut(serialized: tf.Tensor) -> tf.data.Dataset:
            return tf.data.Dataset.from_tensor_slices(mine).map(
                lambda first: (serialized[first : first + piece], first)
            )

        parts = batches.flat_map(cut)
        # Slices of unknown bounds have lost their static size.
        parts = parts.map(lambda s, first: (tf.ensure_shape(s, [piece]), first))
    else:
        parts = batches.map(lambda s: (s, tf.zeros([], tf.int64)))
    return parts.map(parse, tf.data.AUTOTUNE, deterministic=True).prefetch(2)


@contextlib.contextmanager
def naming_corrupt_files(files: Sequence[str]) -> Iterator[None]:
    """Turns a TFRecord error inside the block into one naming the file.

    TensorFlow says "corrupted record at 4711" of some file.

    Raises:
      InputError: one of the files is corrupt or truncated.
    """
    try:
        yield
    except tf.errors.DataLossError as error:
        for file in sorted(files):
            try:
                for _ in tf.data.TFRecordDataset(file).batch(1024):
                    pass
            except tf.errors.DataLossError as found:
                raise InputError(
                    f"{file} is no intact TFRecord file ({found.message}). "
                    "Delete its stage's folder and run the stage again."
                ) from error
        raise


def _check(
    files: Sequence[str],
    batch_size: int,
    drop_remainder: bool,
    rows: WorkerRows,
) -> None:
    if not files:
        raise InputError(
            "Expected TFRecord files, received none; run the stage that "
            "writes the examples first."
        )
    for file in files:
        if not tf.io.gfile.exists(file):
            raise InputError(
                f"{file} is missing; run the stage that writes it again."
            )
    if batch_size < 1 or batch_size % rows.pieces:
        raise ValueError(
            f"The global `batch_size` must be a multiple of the number of "
            f"replicas, {rows.pieces}; received {batch_size}."
        )
    if rows.pieces > 1 and not drop_remainder:
        raise ValueError(
            "Several replicas need batches of one size: pass "
            "`drop_remainder=True`."
        )
