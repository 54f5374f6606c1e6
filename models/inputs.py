"""TFRecords -> batches of tensors: what evaluation reads, in file order.

Training reads the same examples shuffled and shared out: see `models.lanes`.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from models.keras_setup import tf
from schemas.errors import InputError
from schemas.examples import ExampleKey
from schemas.features import PADDING_ID, FeatureSet

# Index of a row in the global batch, added to every batch: what dropout
# needs to be the same on any number of workers.
EXAMPLE_INDEX = "example_index"
Parser = Callable[[tf.Tensor], dict[str, tf.Tensor]]


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
) -> tf.data.Dataset:
    """Reads all examples once, file after file.

    Args:
      files: TFRecord files, in any order; they are read sorted.
      keys: what the examples hold (`schemas.examples`).
      batch_size: rows of all batches but the last, which may be smaller.
      padded_lengths: list key -> length L of its tensor [B, L], padded with
        -1, cut beyond; a list key that is not named comes as a ragged tensor.

    Returns:
      Batches: key -> tensor [B, ...].

    Raises:
      InputError: no files, or one is not there.
    """
    check_files(files)
    records = tf.data.TFRecordDataset(sorted(files)).batch(batch_size)
    return mapped_ahead(records, example_parser(keys, padded_lengths))


def mapped_ahead(
    elements: tf.data.Dataset, function: Callable[..., Any]
) -> tf.data.Dataset:
    """Maps on all cores, in order, with two results ready ahead.

    Without tf.data's autotuner: the end of an iterator waits for its thread,
    which at times sleeps through being told, for another 5 s.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return (
        # Untuned, this means as many calls at once as there are threads.
        elements.map(function, tf.data.AUTOTUNE, deterministic=True)
        .prefetch(2)
        .with_options(options)
    )


def example_parser(
    keys: Sequence[ExampleKey], padded_lengths: Mapping[str, int]
) -> Parser:
    """Returns serialized tf.Examples [B] -> key -> tensor [B, ...].

    See `dataset` for the arguments.
    """
    spec = {key.name: key.parse_spec() for key in keys}

    def parse(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed: dict[str, tf.Tensor] = tf.io.parse_example(serialized, spec)
        for name, length in padded_lengths.items():
            if name in parsed:
                bag = parsed[name]
                parsed[name] = bag.to_tensor(PADDING_ID, shape=[None, length])
        return parsed

    return parse


def check_files(files: Collection[str]) -> None:
    """Raises InputError where there are no files, or one is not there."""
    if not files:
        raise InputError(
            "Expected TFRecord files, received none; run the stage that "
            "writes the examples first."
        )
    for file in sorted(files):
        if not tf.io.gfile.exists(file):
            raise InputError(
                f"{file} is missing; run the stage that writes it again."
            )


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
