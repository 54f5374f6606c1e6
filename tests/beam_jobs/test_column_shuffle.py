"""The shuffle against plain Python: which rows come together, and how."""

import collections
from collections.abc import Iterable
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest

from beam_jobs import column_shuffle
from beam_jobs.column_shuffle import (
    Cut,
    GroupByShard,
    Slice,
    SplitRows,
    from_ipc,
    num_shards_for,
    shard_numbers,
    shards_per_task,
    to_ipc,
)
from beam_jobs.runners import count, pipeline_options, run_pipeline
from beam_jobs.spill import SpillFile, load

FRUIT = {"fruit": "name", "box": "owner"}


def batches(num_rows: int, num_batches: int) -> list[tuple[str, pa.Table]]:
    """Numbered rows of two tables, in batches."""
    found = []
    for rows in np.array_split(np.arange(num_rows), num_batches):
        names = [f"n{i % 997}" for i in rows]
        found.append(("fruit", pa.table({"name": names, "row": rows})))
        rows = rows + num_rows
        found.append(("box", pa.table({"row": rows, "owner": names})))
    return found


class _Save(beam.DoFn):
    """Writes group, table, key and row of each row; counts slices."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def process(self, element: tuple[int, Iterable[Slice]]) -> None:
        group, slices = element
        with open(f"{self._folder}/{group}", "x") as file:
            for table, data in slices:
                count("slices", bool(table))
                count("in_files", not isinstance(data, bytes))
                if table:
                    for row in from_ipc(data).to_pylist():
                        key = row[FRUIT[table]]
                        file.write(f"{table} {key} {row['row']}\n")


def shuffled(
    folder: Path, num_shards: int, width: int = 1, num_batches: int = 8
) -> tuple[dict[int, list[str]], dict[str, int]]:
    """Group -> its rows as text, and counters, by a real job."""
    folder.mkdir()
    all_batches = batches(8_000, num_batches)
    with run_pipeline(pipeline_options()) as job:
        halves = {
            "one": job.pipeline | "One" >> beam.Create(all_batches[::2]),
            "two": job.pipeline | "Two" >> beam.Create(all_batches[1::2]),
        }
        _ = (
            halves
            | GroupByShard(FRUIT, num_shards, width)
            | beam.ParDo(_Save(folder))
        )
    groups = {
        int(path.name): sorted(path.read_text().splitlines())
        for path in folder.iterdir()
    }
    return groups, job.counts


def expected(num_shards: int, width: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = collections.defaultdict(list)
    for table, rows in batches(8_000, 1):
        for row in rows.to_pylist():
            key = row[FRUIT[table]]
            shard = int(shard_numbers(pa.array([key]), num_shards)[0])
            found[shard // width].append(f"{table} {key} {row['row']}")
    groups = range(-(-num_shards // width))
    return {group: sorted(found[group]) for group in groups}


@pytest.mark.parametrize(
    ("num_shards", "width", "one_pass_groups"),
    [
        (5, 1, 128),  # one pass
        (1200, 1, 128),  # two passes; 997 names leave some shards empty
        (1200, 100, 128),  # thin shards in 12 groups, one pass
        (1200, 7, 16),  # 172 groups of 7 shards, in two passes
        (13, 1, 3),  # a last wide group that is not full
    ],
)
def test_every_row_reaches_its_group_once(
    num_shards: int,
    width: int,
    one_pass_groups: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(column_shuffle, "ONE_PASS_GROUPS", one_pass_groups)
    groups, counts = shuffled(tmp_path / "groups", num_shards, width)
    assert groups == expected(num_shards, width)
    # This runner's own memory holds places in files alone.
    assert counts["in_files"] == counts["slices"]


def test_salted_groups_come_together_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_shuffle, "_GROUPS_PER_SALT", 64)
    groups, _ = shuffled(tmp_path / "groups", 300)
    assert groups == expected(300, 1)


def test_rows_wait_until_slices_are_thick(tmp_path: Path) -> None:
    # 8,000 rows of each of 2 tables over 2 shards. Waiting rows are cut at
    # 2,000: 80 batches of 100 rows give 4 cuts of 2 slices, 16 in all; cut
    # batch by batch they would be 320. (A second bundle may add 4 cuts.)
    _, counts = shuffled(tmp_path / "groups", 2, num_batches=80)
    assert 16 <= counts["slices"] <= 24


def test_a_second_pass_makes_slices_ten_times_thicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of 500 rows, 400 shards: about one row a slice where every batch
    # is cut at once.
    monkeypatch.setattr(column_shuffle, "SLICE_ROWS", 1)
    monkeypatch.setattr(column_shuffle, "ONE_PASS_GROUPS", 1 << 20)
    _, thin = shuffled(tmp_path / "thin", 400, num_batches=16)
    monkeypatch.setattr(column_shuffle, "SLICE_ROWS", 50)
    monkeypatch.setattr(column_shuffle, "ONE_PASS_GROUPS", 128)
    _, thick = shuffled(tmp_path / "thick", 400, num_batches=16)
    assert thin["slices"] > 8 * thick["slices"]


def test_a_slice_stays_below_the_largest_element() -> None:
    # 64 MiB of bytes that do not compress.
    words = np.random.default_rng(1).bytes(64 << 20)
    column = pa.array([words[i : i + 1024] for i in range(0, 64 << 20, 1024)])
    slices = list(to_ipc(pa.table({"word": column})))
    assert max(map(len, slices)) < 8.1 * (1 << 20)
    restored = pa.concat_tables([from_ipc(data) for data in slices])
    assert restored.column("word").combine_chunks().equals(column)


def test_pieces_travel_where_there_is_no_folder() -> None:
    cut = Cut({"fruit": "name"}, 3, 1, 1, 3)
    split = SplitRows(cut, None)
    split.start_bundle()
    (_, rows), *_ = batches(100, 1)
    assert list(split.process(("fruit", rows))) == []  # Too few to cut.
    sent = [windowed.value for windowed in split.finish_bundle()]
    restored = pa.concat_tables([from_ipc(data) for _, (_, data) in sent])
    assert all(isinstance(data, bytes) for _, (_, data) in sent)
    assert sorted(restored.column("row").to_pylist()) == list(range(100))


def test_spilled_bytes_are_read_back(tmp_path: Path) -> None:
    file = SpillFile(str(tmp_path))
    assert list(tmp_path.iterdir()) == []  # Nothing is made for nothing.
    places = [file.put(data) for data in (b"one", b"", b"three")]
    assert [load(place) for place in places] == [b"one", b"", b"three"]
    assert load(b"here") == b"here"


def test_a_job_leaves_no_spilled_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    _, counts = shuffled(tmp_path / "groups", 3)
    assert counts["in_files"] > 0
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("num_rows", "num_shards"),
    [
        (0, 8),
        (1_700_000, 8),
        (10_000_000, 39),  # 10,000,000 / 262,144 = 38.1
        (10**11, 40_000),
    ],
)
def test_number_of_shards_follows_the_rows(
    num_rows: int, num_shards: int
) -> None:
    assert num_shards_for(num_rows) == num_shards


def test_only_thin_shards_share_a_task() -> None:
    # 10 million rows in 10,000 shards: 1,000 a shard, 262 of them a task.
    assert shards_per_task(10_000, 10_000_000) == 262
    assert shards_per_task(40_000, 10**11) == 1
    assert shards_per_task(8, 0) == 8 << 18


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 1"):
        GroupByShard(FRUIT, 0)
