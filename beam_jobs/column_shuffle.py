"""The shuffle of the jobs: rows travel to their shards as Arrow columns.

A row's shard is a stable hash of its key (user or video) mod the number of
shards. Batches are cut by shard and the slices travel as compressed Arrow IPC
streams, so that a grouping moves thousands of elements, not one per event.

What keeps it fast at any size: a slice of a few rows costs as much as one of
a thousand. So rows wait until slices are thick; thin shards travel in groups;
and as a batch cannot be cut into thousands of thick slices, beyond
`ONE_PASS_GROUPS` the rows are partitioned twice, into wide groups and then
within each (radix partitioning). An in-process runner keeps all that is being
grouped in memory: there the slices wait in a file (`spill.py`).
"""

import dataclasses
import io
import itertools
import math
import struct
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
ONE_PASS_GROUPS = 128
# Some 30 MB of events: many shards fit a worker's memory, and hundreds of
# thousands of events share the fixed cost of a shard (files, tables: 10 ms).
_ROWS_PER_SHARD = 1 << 18
_MIN_SHARDS, _MAX_SHARDS = 8, 40_000
# 8,192 groups are 90 wide ones, so 90 tasks of the second pass; each further
# 8,192 add as many, at the price of thinner slices.
_GROUPS_PER_SALT = 8192

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


def shards_per_task(num_shards: int, num_rows: int) -> int:
    """How many thin shards to move together: none of thick ones."""
    return max(1, _ROWS_PER_SHARD * num_shards // max(num_rows, 1))


class GroupByShard(beam.PTransform):
    """Brings the rows of each shard together.

    Args:
      keys: table -> the column whose hash decides on a row's shard.
      num_shards: number of shards.
      width: neighbouring shards that come as one group, where they are thin.

    Expands collections of (table, `pa.Table`), as a dict from label to
    collection, to a PCollection of (group, iterable of `Slice`): group g has
    the shards g * width .. (g + 1) * width - 1. Each number exactly once; a
    group without rows has the one slice ("", b"").
    """

    def __init__(
        self, keys: Mapping[str, str], num_shards: int, width: int = 1
    ) -> None:
        super().__init__()
        if num_shards < 1 or width < 1:
            raise ValueError(
                "`num_shards` and `width` must be at least 1, got "
                f"{num_shards} and {width}."
            )
        self._keys = dict(keys)
        self._num_shards, self._width = num_shards, width

    # Beam reads annotations as type hints, and knows none for a mapping.
    def expand(self, batches: Any) -> beam.PCollection:
        pipeline = next(iter(batches.values())).pipeline
        folder = spill_folder(pipeline.options)
        num_groups = math.ceil(self._num_shards / self._width)
        last = self._cut(self._width)
        slices: list[beam.PCollection]
        if num_groups <= ONE_PASS_GROUPS:
            slices = self._split(batches, last, folder)
        else:
            # Both passes cut into about the root of the number of groups.
            wide = math.ceil(
                num_groups / min(ONE_PASS_GROUPS, math.isqrt(num_groups))
            )
            salts = 1 + num_groups // _GROUPS_PER_SALT
            first = self._cut(self._width * wide, salts)
            last = dataclasses.replace(last, fan_out=wide)
            grouped = (
                self._split(batches, first, folder)
                | "AllSplit" >> beam.Flatten()
                | "ByWideGroup" >> beam.GroupByKey()
            )
            slices = [
                grouped | "SplitAgain" >> beam.ParDo(SplitAgain(last, folder))
            ]
        # An empty slice per group: no shard is missing for want of rows.
        empty = [(number, ("", b"")) for number in range(num_groups)]
        slices.append(
            pipeline | "Groups" >> beam.Create(empty, reshuffle=False)
        )
        return (
            slices
            | "AllSlices" >> beam.Flatten()
            | "ByGroup" >> beam.GroupByKey()
        )

    def _cut(self, width: int, salts: int = 1) -> "Cut":
        fan_out = math.ceil(self._num_shards / width)
        return Cut(self._keys, self._num_shards, width, salts, fan_out)

    def _split(
        self,
        batches: Mapping[str, beam.PCollection],
        cut: "Cut",
        folder: str | None,
    ) -> list[beam.PCollection]:
        return [
            rows | f"Split/{label}" >> beam.ParDo(SplitRows(cut, folder))
            for label, rows in batches.items()
        ]


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a table is cut into slices.

    Attributes:
      keys: table -> the column whose hash decides on a row's shard.
      num_shards: number of shards.
      width: shards that have a key in common: that of shard s is s // width.
      salts: how many keys there are in place of each, so that a group of the
        first pass is several tasks of the second.
      fan_out: into how many slices rows that wait together are cut.
    """

    keys: Mapping[str, str]
    num_shards: int
    width: int
    salts: int
    fan_out: int

    def __call__(
        self, table: str, rows: pa.Table
    ) -> Iterator[tuple[int, bytes]]:
        """Yields (key, IPC stream)."""
        shards = shard_numbers(rows.column(self.keys[table]), self.num_shards)
        # The salt only spreads work: any number that is the same when the
        # same rows are cut again will do.
        salt = int(shards[0]) % self.salts if len(shards) else 0
        for number, piece in cut_rows(rows, shards // self.width):
            for data in to_ipc(piece):
                yield number * self.salts + salt, data


class _Waiting:
    """Rows that wait to be cut, by table."""

    def __init__(self, cut: Cut) -> None:
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

    def __init__(self, cut: Cut, folder: str | None) -> None:
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
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows.slice(start, step).combine_chunks())
        # As one piece: Arrow's own compression sets up a codec per buffer,
        # which takes 1 ms for a slice of a thousand rows; this takes 0.2.
        yield struct.pack("<q", sink.tell()) + _CODEC.compress(
            sink.getbuffer(), asbytes=True
        )


def from_ipc(data: bytes | Spilled) -> pa.Table:
    """The rows of a slice."""
    data = load(data)
    (size,) = struct.unpack_from("<q", data)
    stream = _CODEC.decompress(memoryview(data)[8:], size)
    return pa.ipc.open_stream(stream).read_all()


# A third of the bytes, which is what a cluster's shuffle costs.
_CODEC = pa.Codec("zstd", 1)
