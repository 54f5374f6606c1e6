"""The shuffle of the jobs: rows travel to their shards as Arrow columns.

A row's shard is a stable hash of its key (user or video) mod the number of
shards. Batches are cut by shard and the slices travel as compressed Arrow IPC
streams, so that a grouping moves thousands of elements, not one per event.

Two things keep it fast at any size. A slice of a few rows costs as much as
one of a thousand, so rows wait until slices are thick; and a batch cannot be
cut into thousands of thick slices, so beyond `ONE_PASS_SHARDS` the rows are
partitioned twice, by groups of shards and then within a group (radix
partitioning). An in-process runner keeps all that is being grouped in memory:
there the slices wait in a file (`spill.py`).
"""

import io
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from beam_jobs.runners import spill_folder
from beam_jobs.spill import Spilled, SpillFile, load
from schemas.hashing import hash_strings, mix

# Beam's runners get slow and some refuse elements of tens of megabytes.
MAX_ELEMENT_BYTES = 8 << 20
# Below it the fixed cost of a slice (some 100 us to write, send and read one)
# outweighs that of its rows.
SLICE_ROWS = 1000
# 128 x SLICE_ROWS: what one row group of our files (131,072 rows) can be cut
# into without thin slices.
ONE_PASS_SHARDS = 128
# Some 30 MB of events: many shards fit a worker's memory, and hundreds of
# thousands of events share the fixed cost of a shard (files, tables: 10 ms).
_ROWS_PER_SHARD = 1 << 18
_MIN_SHARDS, _MAX_SHARDS = 8, 40_000
# Shards per task of the second pass: 4,096 shards of 30 MB in 64 groups make
# tasks of 2 GB, streamed; more tasks would only make thinner slices.
_SHARDS_PER_SALT = 4096

# A table's name and its rows: an IPC stream, or where one was spilled.
Slice = tuple[str, bytes | Spilled]


def num_shards_for(num_rows: int) -> int:
    """How many shards a log of so many rows is divided into by default."""
    wanted = math.ceil(num_rows / _ROWS_PER_SHARD)
    return min(max(wanted, _MIN_SHARDS), _MAX_SHARDS)


def shard_numbers(
    keys: pa.Array | pa.ChunkedArray, num_shards: int
) -> np.ndarray:
    """The shard of each key, int64 [n]: stable hash mod `num_shards`."""
    hashes = mix(0, hash_strings(keys))
    return (hashes % np.uint64(num_shards)).astype(np.int64)


class GroupByShard(beam.PTransform):
    """Brings the rows of each shard together.

    Args:
      keys: table -> the column whose hash decides on a row's shard.
      num_shards: number of shards.

    Expands collections of (table, `pa.Table`), as a dict from label to
    collection, to a PCollection of (shard, iterable of `Slice`): each number
    exactly once; a shard without rows has the one slice ("", b"").
    """

    def __init__(self, keys: Mapping[str, str], num_shards: int) -> None:
        super().__init__()
        if num_shards < 1:
            raise ValueError(
                f"`num_shards` must be at least 1, got {num_shards}."
            )
        self._keys, self._num_shards = dict(keys), num_shards

    # Beam reads annotations as type hints, and knows none for a mapping.
    def expand(self, batches: Any) -> beam.PCollection:
        pipeline = next(iter(batches.values())).pipeline
        folder = spill_folder(pipeline.options)
        # Of k groups each has at most `width` shards; both are near the root.
        two_passes = self._num_shards > ONE_PASS_SHARDS
        groups = min(ONE_PASS_SHARDS, math.ceil(math.sqrt(self._num_shards)))
        width = math.ceil(self._num_shards / groups) if two_passes else 1
        salts = 1 + self._num_shards // _SHARDS_PER_SALT if two_passes else 1
        cut = _Cut(self._keys, self._num_shards, width, salts)
        slices = [
            rows | f"Split/{label}" >> beam.ParDo(SplitRows(cut, folder))
            for label, rows in batches.items()
        ]
        if two_passes:
            fine = _Cut(self._keys, self._num_shards, 1, 1, fan_out=width)
            grouped = (
                slices
                | "AllGroups" >> beam.Flatten()
                | "ByGroup" >> beam.GroupByKey()
            )
            slices = [
                grouped | "SplitAgain" >> beam.ParDo(SplitAgain(fine, folder))
            ]
        # An empty slice per shard: no shard is missing for want of rows.
        numbers = range(self._num_shards)
        slices.append(
            pipeline
            | "ShardNumbers"
            >> beam.Create([(n, ("", b"")) for n in numbers], reshuffle=False)
        )
        return (
            slices
            | "AllSlices" >> beam.Flatten()
            | "ByShard" >> beam.GroupByKey()
        )


class _Cut:
    """How a table is cut: which rows have a key in common.

    The key of shard s is s // width, and with several salts one of `salts`
    keys for it, so that one group of a pass is several tasks.
    """

    def __init__(
        self,
        keys: Mapping[str, str],
        num_shards: int,
        width: int,
        salts: int,
        fan_out: int | None = None,
    ) -> None:
        self._keys, self._num_shards = dict(keys), num_shards
        self._width, self._salts = width, salts
        # Into how many slices rows that wait together are cut.
        self.fan_out = fan_out or math.ceil(num_shards / width)

    def __call__(
        self, table: str, rows: pa.Table
    ) -> Iterator[tuple[int, bytes]]:
        """Yields (key, IPC stream)."""
        shards = shard_numbers(rows.column(self._keys[table]), self._num_shards)
        # The salt only spreads work: any number that is the same when the
        # same rows are cut again will do.
        salt = int(shards[0]) % self._salts if len(shards) else 0
        for number, piece in cut_rows(rows, shards // self._width):
            for data in to_ipc(piece):
                yield number * self._salts + salt, data


class _Waiting:
    """Rows that wait to be cut, by table."""

    def __init__(self, cut: _Cut) -> None:
        self._cut = cut
        self._rows: dict[str, list[pa.Table]] = defaultdict(list)
        self._counts: Counter[str] = Counter()

    def add(
        self, table: str, rows: pa.Table
    ) -> Iterator[tuple[int, str, bytes]]:
        """Keeps rows; yields (key, table, IPC stream) when slices are thick."""
        self._rows[table].append(rows)
        self._counts[table] += rows.num_rows
        if self._counts[table] >= SLICE_ROWS * self._cut.fan_out:
            yield from self._take(table)

    def rest(self) -> Iterator[tuple[int, str, bytes]]:
        """Yields what is left, thick or thin."""
        for table in sorted(self._rows):
            yield from self._take(table)

    def _take(self, table: str) -> Iterator[tuple[int, str, bytes]]:
        rows = pa.concat_tables(self._rows.pop(table)).combine_chunks()
        del self._counts[table]
        for key, data in self._cut(table, rows):
            yield key, table, data


class _Sends(beam.DoFn):
    """What both passes share: slices leave in memory or in a file."""

    def __init__(self, cut: _Cut, folder: str | None) -> None:
        super().__init__()
        self._cut, self._folder = cut, folder

    def start_bundle(self) -> None:
        self._file = SpillFile(self._folder) if self._folder else None
        self._waiting = _Waiting(self._cut)

    def finish_bundle(self) -> Iterator[Any]:
        for keyed in self._sent(self._waiting.rest()):
            yield GlobalWindows.windowed_value(keyed)

    def _sent(
        self, slices: Iterable[tuple[int, str, bytes]]
    ) -> Iterator[tuple[int, Slice]]:
        for key, table, data in slices:
            place = data if self._file is None else self._file.put(data)
            yield key, (table, place)


class SplitRows(_Sends):
    """(table, rows) to (key, slice); rows of a bundle wait for company."""

    def process(
        self, element: tuple[str, pa.Table]
    ) -> Iterator[tuple[int, Slice]]:
        yield from self._sent(self._waiting.add(*element))


class SplitAgain(_Sends):
    """The second pass: a group's slices, streamed, to its shards'."""

    def process(
        self, element: tuple[int, Iterable[Slice]]
    ) -> Iterator[tuple[int, Slice]]:
        for table, data in element[1]:
            yield from self._sent(self._waiting.add(table, from_ipc(data)))


def cut_rows(
    rows: pa.Table, numbers: np.ndarray
) -> Iterator[tuple[int, pa.Table]]:
    """Yields (number, its rows in their order) for the numbers there are."""
    order = np.argsort(numbers, kind="stable")
    rows, numbers = rows.take(pa.array(order)), numbers[order]
    bounds = np.flatnonzero(np.diff(numbers, prepend=-1, append=-1))
    for start, end in itertools.pairwise(bounds):
        yield int(numbers[start]), rows.slice(start, end - start)


def to_ipc(rows: pa.Table) -> Iterator[bytes]:
    """Compressed IPC streams of at most about `MAX_ELEMENT_BYTES` each."""
    if rows.num_rows == 0:
        return
    # `get_total_buffer_size` would count what a slice shares with its parent.
    step = max(1, rows.num_rows * MAX_ELEMENT_BYTES // max(1, rows.nbytes))
    for start in range(0, rows.num_rows, step):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, rows.schema, options=_IPC) as writer:
            writer.write_table(rows.slice(start, step).combine_chunks())
        yield sink.getvalue()


def from_ipc(data: bytes | Spilled) -> pa.Table:
    """The rows of a slice."""
    return pa.ipc.open_stream(load(data)).read_all()


_IPC = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1))
