"""NumPy columns to TFRecord files of tf.Examples, equal bytes for equal data.

A tf.Example is a protobuf map, whose entries a serialiser writes in an order
that differs from run to run. So each key is encoded alone (a map of one
entry has one order) and the pieces are joined: protobuf defines the
concatenation of two messages as their merge, and TensorFlow's parsers rely on
it too.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import tensorflow as tf
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from beam_jobs.output_files import whole_file
from schemas.examples import ExampleKey
from schemas.features import PADDING_ID


class Ragged(NamedTuple):
    """Lists of any length: row i is values[row_splits[i]:row_splits[i + 1]]."""

    values: np.ndarray
    row_splits: np.ndarray


class Distinct:
    """Rows that many examples share: they are encoded once, for all chunks."""

    def __init__(self, values: np.ndarray | Ragged) -> None:
        self.values = values
        self._encoded: np.ndarray | None = None

    def encoded(self, key: ExampleKey) -> np.ndarray:
        """The rows as tf.Examples of one key, object [n] of bytes."""
        if self._encoded is None:
            rows = _encoded(key, self.values)
            self._encoded = np.empty(len(rows), object)
            self._encoded[:] = rows
        return self._encoded


class Repeated(NamedTuple):
    """Row i is row rows[i] of the distinct ones."""

    distinct: Distinct
    rows: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Repeated":
        """A column [n] of few values."""
        distinct, rows = np.unique(values, return_inverse=True)
        return cls(Distinct(distinct), rows)

    def slice(self, rows: slice) -> "Repeated":
        """Some of the rows."""
        return Repeated(self.distinct, self.rows[rows])


Column = np.ndarray | Ragged | Repeated
_NUMPY = {"int64": np.int64, "float32": np.float32, "string": np.object_}
_ARROW = {
    "int64": pa.int64(),
    "float32": pa.float32(),
    "string": pa.large_binary(),
}


def without_padding(bag: np.ndarray) -> Ragged:
    """Drops the -1 of a padded bag [n, L]; order within a row is kept."""
    used = bag != PADDING_ID
    splits = np.concatenate(([0], np.cumsum(used.sum(axis=1))))
    return Ragged(bag[used], splits.astype(np.int64))


def encode_examples(
    columns: Mapping[str, Column], keys: Sequence[ExampleKey]
) -> list[bytes]:
    """Serialises rows as tf.Examples.

    Args:
      columns: one column per key. Fixed shapes: [n, *shape]. Lists: `Ragged`
        (or a plain (values, row_splits) pair). `Repeated` rows are encoded
        once. Dtypes are the key's; strings are object arrays of bytes.
      keys: what an example holds; their order is the order in the bytes.

    Raises:
      ValueError: a column missing, unknown, or of another dtype or shape.
    """
    names = [key.name for key in keys]
    if set(columns) != set(names):
        raise ValueError(
            f"Expected the columns {sorted(names)}, received {sorted(columns)}."
        )
    pieces = [_encoded(key, columns[key.name]) for key in keys]
    return [b"".join(row) for row in zip(*pieces, strict=True)]


def _encoded(key: ExampleKey, column: Column) -> list[bytes]:
    """Each row as a tf.Example of one key."""
    if isinstance(column, Repeated):
        repeated: list[bytes] = column.distinct.encoded(key)[
            column.rows
        ].tolist()
        return repeated
    batch = pa.RecordBatch.from_arrays([_lists(key, column)], [key.name])
    encoded: list[bytes] = RecordBatchToExamplesEncoder().encode(batch)
    return encoded


class ExampleWriter:
    """Writes chunks of rows to one TFRecord file, whole or not at all.

    Use as a context manager; the file appears when the block ends well. A
    thread encodes and writes a chunk while the caller makes the next one.

    Attributes:
      num_examples: how many were written, once the block has ended.
    """

    def __init__(self, path: str, keys: Sequence[ExampleKey]) -> None:
        self._path, self._keys = path, tuple(keys)
        self._last: futures.Future[None] | None = None
        self.num_examples = 0

    def __enter__(self) -> Self:
        # Closed in reverse: the last chunk is in the file before its renaming.
        self._open = contextlib.ExitStack()
        path = self._open.enter_context(whole_file(self._path))
        self._writer = self._open.enter_context(tf.io.TFRecordWriter(path))
        self._thread = self._open.enter_context(futures.ThreadPoolExecutor(1))
        return self

    def write(self, columns: Mapping[str, Column]) -> None:
        """Appends rows; see `encode_examples`.

        Raises:
          ValueError: the rows of the call before do not fit; those of the
            last one are found out about when the block ends.
        """
        self._wait()
        self._last = self._thread.submit(self._append, columns)

    def _append(self, columns: Mapping[str, Column]) -> None:
        for example in encode_examples(columns, self._keys):
            self._writer.write(example)
            self.num_examples += 1

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._open:
            if error is not None:
                # Seen by what is open: the file does not appear.
                raise error
            self._wait()


def write_chunks(
    path: str,
    keys: Sequence[ExampleKey],
    chunks: Iterable[Mapping[str, Column]],
) -> None:
    """Writes one TFRecord file of chunks of rows as they come."""
    with ExampleWriter(path, keys) as file:
        for columns in chunks:
            file.write(columns)


class FilesBehind:
    """Writes the files of one shard while the caller prepares the next one.

    For a DoFn: made in `setup`, waited for before the next shard's files (so
    two shards at most are in memory) and when the bundle ends.
    """

    def __init__(self) -> None:
        self._thread = futures.ThreadPoolExecutor(1)
        self._writing: list[futures.Future[None]] = []

    def write(
        self,
        path: str,
        keys: Sequence[ExampleKey],
        chunks: Iterable[Mapping[str, Column]],
    ) -> None:
        """As `write_chunks`; returns at once."""
        task = self._thread.submit(write_chunks, path, keys, chunks)
        self._writing.append(task)

    def wait(self) -> None:
        """Returns when all files are there; raises what went wrong."""
        writing, self._writing = self._writing, []
        for task in writing:
            task.result()

    def close(self) -> None:
        self._thread.shutdown()


def write_examples(
    path: str, columns: Mapping[str, Column], keys: Sequence[ExampleKey]
) -> int:
    """Writes one TFRecord file of rows held in memory; returns their number."""
    with ExampleWriter(path, keys) as writer:
        writer.write(columns)
    return writer.num_examples


def read_examples(
    paths: Iterable[str], keys: Sequence[ExampleKey]
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the examples of files, parsed: for tests and small checks.

    A fixed key gives its shape, a list a vector.
    """
    spec = {key.name: key.parse_spec() for key in keys}
    for path in sorted(paths):
        for record in tf.data.TFRecordDataset(path):
            parsed = tf.io.parse_single_example(record, spec)
            yield {name: value.numpy() for name, value in parsed.items()}


def _lists(key: ExampleKey, column: np.ndarray | Ragged) -> pa.LargeListArray:
    """A column as one list of values per example."""
    if isinstance(column, tuple):
        if key.shape is not None:
            raise ValueError(
                f"Key {key.name!r} has the shape {key.shape}, received a "
                "ragged column."
            )
        values, splits = column
    else:
        if key.shape is None or column.shape[1:] != key.shape:
            expected = "Ragged" if key.shape is None else f"[n, *{key.shape}]"
            raise ValueError(
                f"Key {key.name!r}: expected {expected}, received an array "
                f"of shape {column.shape}."
            )
        width = int(np.prod(key.shape, dtype=np.int64))
        values = column.reshape(-1)
        splits = np.arange(len(column) + 1) * width
    if values.dtype != _NUMPY[key.dtype]:
        raise ValueError(
            f"Key {key.name!r}: expected {key.dtype}, received {values.dtype}."
        )
    return pa.LargeListArray.from_arrays(
        pa.array(splits, pa.int64()), pa.array(values, _ARROW[key.dtype])
    )
