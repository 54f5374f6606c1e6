"""The columnar shuffle against plain Python grouping and sorting."""

import pickle
import random
from collections import defaultdict
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs import column_shuffle, shard_rows, user_shards
from beam_jobs.runners import pipeline_options, run_pipeline
from beam_jobs.user_shards import (
    GroupByUserShard,
    UserShard,
    build_shard,
    build_shards,
    num_shards_of,
    shard_numbers,
    split_batch,
)
from schemas.buckets import bucket_name
from schemas.errors import InputError
from schemas.events import EventSchema

DAY = 1_600_000_000_000_000
SCHEMA = EventSchema(
    {
        "watches": (
            "user_id",
            "video_id",
            "event_time_us",
            "watch_time_s",
            "completed",
            "source",
        ),
        "searches": ("user_id", "query", "event_time_us"),
    }
)
WATCHES = SCHEMA.arrow("watches")


def watches(rows: list[tuple]) -> pa.Table:
    """(user, video, seconds after DAY, watch time, completed) rows."""
    names = ("user_id", "video_id", "event_time_us", "watch_time_s")
    values = [
        (u, v, DAY + t * 1_000_000, w, c, "home") for u, v, t, w, c in rows
    ]
    columns = list(zip(*values, strict=True)) or [[]] * 6
    return pa.table(
        dict(zip((*names, "completed", "source"), columns, strict=True)),
        schema=WATCHES,
    )


def shards_of(
    batches: list[tuple[str, pa.Table]], num_shards: int, cap: int = 10**9
) -> list[UserShard]:
    """The shuffle without a runner, pieces in a shuffled order."""
    pieces = defaultdict(list)
    for part, batch in batches:
        for shard, piece in split_batch(
            batch, table="watches", part=part, num_shards=num_shards, cap=cap
        ):
            pieces[shard].append(piece)
    for found in pieces.values():
        random.Random(7).shuffle(found)
    return [
        build_shard((n, pieces[n]), schemas={"watches": WATCHES}, cap=cap)
        for n in range(num_shards)
    ]


def as_rows(shards: list[UserShard]) -> list[tuple]:
    """(user, video, time, watch time, completed, part) of all shards."""
    return [
        (
            r["user_id"],
            r["video_id"],
            (r["event_time_us"] - DAY) // 1_000_000,
            r["watch_time_s"],
            r["completed"],
            r["part"],
        )
        for shard in shards
        for r in shard.tables["watches"].to_pylist()
    ]


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "ü", "c"]),
        st.sampled_from(["v1", "v2", "v10"]),
        st.integers(0, 4),
        st.sampled_from([None, 0.5, 2.0]),
        st.booleans(),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(ROWS, st.integers(1, 4), st.integers(1, 5))
def test_shards_hold_all_rows_in_a_total_order(
    rows: list[tuple], num_shards: int, step: int
) -> None:
    batches = [
        ("train", watches(rows[i : i + step]))
        for i in range(0, len(rows), step)
    ]
    shards = shards_of(batches, num_shards)

    def key(row: tuple) -> tuple:
        user, video, time, spent, completed, _ = row
        # Null sorts last; then the stored order of columns.
        spent_key = (spent is None, spent or 0.0)
        return (user.encode(), time, video, spent_key, completed)

    found = as_rows(shards)
    assert sorted(found, key=key) == sorted(
        [(*row, 0) for row in rows], key=key
    )
    for shard in shards:
        inside = as_rows([shard])
        assert inside == sorted(inside, key=key)
        users = shard.user_ids.to_pylist()
        assert users == sorted({r[0] for r in inside}, key=str.encode)
        codes = shard.user_codes["watches"]
        assert [users[c] for c in codes] == [r[0] for r in inside]
    # A user lives in one shard.
    owners = [u for shard in shards for u in shard.user_ids.to_pylist()]
    assert len(owners) == len(set(owners))


def test_row_and_batch_order_leave_no_trace() -> None:
    rows = [
        (f"u{i % 7}", f"v{i % 5}", i % 3, float(i % 2), i % 4 == 0)
        for i in range(200)
    ]
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)
    one = shards_of([("train", watches(rows))], 3)
    other = shards_of(
        [("train", watches(shuffled[i : i + 17])) for i in range(0, 200, 17)],
        3,
    )
    for left, right in zip(one, other, strict=True):
        assert left.tables["watches"].equals(right.tables["watches"])
        assert left.user_ids.equals(right.user_ids)


def test_cap_keeps_the_most_recent_of_each_part() -> None:
    rows = [("a", f"v{t}", t, None, True) for t in range(6)]
    batches = [
        ("train", watches([*rows[:4], ("b", "x", 0, None, True)])),
        ("valid", watches(rows[4:])),
    ]
    (shard,) = shards_of(batches, 1, cap=2)
    # Of a's training watches at 0..3 the last two remain, although two later
    # ones are in the validation part: those displace nothing.
    assert [(r[0], r[2], r[5]) for r in as_rows([shard])] == [
        ("a", 2, 0),
        ("a", 3, 0),
        ("a", 4, 1),
        ("a", 5, 1),
        ("b", 0, 0),
    ]


def test_elements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column_shuffle, "MAX_ELEMENT_BYTES", 4096)
    rows = watches([("a", f"v{t}", t, 1.0, True) for t in range(1000)])
    pieces = list(
        split_batch(rows, table="watches", part="train", num_shards=1, cap=2000)
    )
    # 1,000 rows of some 45 bytes at 4 KiB each: about eleven pieces. The
    # schema and the padding of a stream come on top.
    assert 8 <= len(pieces) <= 20
    assert max(len(data) for _, (_, data) in pieces) < 2 * 4096
    (shard,) = shards_of([("train", rows)], 1)
    assert shard.tables["watches"].num_rows == 1000


def test_a_shard_too_large_is_an_input_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(user_shards, "MAX_SHARD_BYTES", 1000)
    with pytest.raises(InputError, match=r"raise beam\.num_shards"):
        shards_of(
            [("train", watches([("a", "v", t, 1.0, True) for t in range(99)]))],
            1,
        )


def test_shard_numbers_do_not_depend_on_neighbours() -> None:
    names = pa.array([f"u{i}" for i in range(1000)])
    together = shard_numbers(names, 8)
    alone = [int(shard_numbers(names.slice(i, 1), 8)[0]) for i in range(50)]
    assert together[:50].tolist() == alone
    # 125 expected in each of 8; binomial standard deviation 10.5.
    assert np.all(np.abs(np.bincount(together, minlength=8) - 125) < 53)


class _Save(beam.DoFn):
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def process(self, shard: UserShard) -> None:
        with open(f"{self._folder}/{shard.shard}.pickle", "wb") as file:
            pickle.dump(shard, file)


def test_transform_gives_every_shard_once(tmp_path: Path) -> None:
    rows = watches([("a", "v", 1, None, True), ("b", "v", 2, 1.0, False)])
    pq.write_table(rows, tmp_path / "train.parquet", row_group_size=1)
    later = watches([("a", "v", 9, None, True)])
    pq.write_table(later, tmp_path / "valid.parquet")
    saved = tmp_path / "shards"
    saved.mkdir()
    with run_pipeline(pipeline_options()) as job:
        _ = (
            job.pipeline
            | GroupByUserShard(
                {
                    "watches": {
                        "train": [str(tmp_path / "train.parquet")],
                        "valid": [str(tmp_path / "valid.parquet")],
                    },
                    "searches": {"train": []},
                },
                SCHEMA,
                num_shards=6,
                max_events_per_user=1,
                columns={"watches": ["user_id", "event_time_us"]},
            )
            | beam.ParDo(_Save(str(saved)))
        )
    shards = [
        pickle.loads((saved / f"{n}.pickle").read_bytes()) for n in range(6)
    ]
    # Two users fill at most two of six shards; the others are there, empty,
    # with the columns of their tables.
    assert sum(len(s.user_ids) for s in shards) == 2
    for shard in shards:
        assert shard.tables["watches"].column_names == [
            "user_id",
            "event_time_us",
            "part",
        ]
        assert shard.tables["searches"].num_rows == 0
    found = sorted(
        (r["user_id"], r["part"])
        for s in shards
        for r in s.tables["watches"].to_pylist()
    )
    assert found == [("a", 0), ("a", 1), ("b", 0)]
    assert job.counts == {
        "searches_capped_users": 0,
        "searches_over_user_cap": 0,
        "watches_capped_users": 0,
        "watches_over_user_cap": 0,
    }


@pytest.mark.parametrize("group_rows", [4, 100])
def test_cap_is_counted_across_batches(tmp_path: Path, group_rows: int) -> None:
    rows = watches([("a", f"v{t}", t, None, True) for t in range(10)])
    # Exactly as many as may be: not capped.
    more = watches([("b", f"v{t}", t, None, True) for t in range(3)])
    # Row groups of 4, 4, 4 and 1 rows, or one: whatever falls before or after
    # the shuffle, with cap 3 of 13 rows 7 go, all of one user.
    rows = pa.concat_tables([rows, more])
    pq.write_table(rows, tmp_path / "w.parquet", row_group_size=group_rows)
    with run_pipeline(pipeline_options()) as job:
        _ = job.pipeline | GroupByUserShard(
            {"watches": {"all": [str(tmp_path / "w.parquet")]}}, SCHEMA, 2, 3
        )
    assert job.counts == {
        "watches_capped_users": 1,
        "watches_over_user_cap": 7,
    }


def test_thin_shards_are_the_same_together() -> None:
    rows = watches(
        [(f"u{i % 19}", f"v{i % 5}", i % 7, None, True) for i in range(300)]
    )
    pieces = list(
        split_batch(rows, table="watches", part="train", num_shards=10, cap=9)
    )
    schemas = {"watches": WATCHES}
    together = [
        shard
        for group in range(3)  # Shards 0-3, 4-7 and 8-9.
        for shard in build_shards(
            (group, [p for n, p in pieces if n // 4 == group]),
            num_shards=10,
            width=4,
            schemas=schemas,
            cap=9,
        )
    ]
    assert [shard.shard for shard in together] == list(range(10))
    for shard in together:
        alone = build_shard(
            (shard.shard, [p for n, p in pieces if n == shard.shard]),
            schemas=schemas,
            cap=9,
        )
        assert shard.user_ids.equals(alone.user_ids)
        assert shard.tables["watches"].equals(alone.tables["watches"])
        codes = shard.user_codes["watches"]
        assert codes.tolist() == alone.user_codes["watches"].tolist()
        # Views of one column chunk, as every shard's columns are.
        assert shard.arrow("watches", "video_id").equals(
            alone.arrow("watches", "video_id")
        )
    assert sum(len(shard.user_ids) > 0 for shard in together) > 5


def bucketed(folder: Path, rows: pa.Table, num_shards: int) -> list[str]:
    """Files by user shard, rows in reverse, row groups of 3."""
    shards = shard_numbers(rows.column("user_id"), num_shards)
    paths = []
    for shard in range(num_shards):
        mine = rows.filter(pa.array(shards == shard))
        mine = mine.take(pa.array(np.arange(mine.num_rows)[::-1]))
        paths.append(str(folder / bucket_name("watches", shard, num_shards)))
        pq.write_table(mine, paths[-1], row_group_size=3)
    return paths


def read_by_job(folder: Path, files: list[str], num_shards: int) -> list:
    folder.mkdir()
    with run_pipeline(pipeline_options()) as job:
        _ = (
            job.pipeline
            | GroupByUserShard(
                {"watches": {"train": files}}, SCHEMA, num_shards, 4
            )
            | beam.ParDo(_Save(str(folder)))
        )
    shards = [
        pickle.loads((folder / f"{n}.pickle").read_bytes())
        for n in range(num_shards)
    ]
    return [job.counts, *(s.tables["watches"].to_pylist() for s in shards)]


def test_bucketed_files_need_no_shuffle_and_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = watches(
        [(f"u{i % 11}", f"v{i % 3}", i % 5, None, True) for i in range(90)]
    )
    files = bucketed(tmp_path, rows, 3)
    loose = str(tmp_path / "loose.parquet")
    pq.write_table(rows, loose)
    shuffled = read_by_job(tmp_path / "shuffled", [loose], 3)

    def no_shuffle(*args: object) -> None:
        raise AssertionError("shuffled")

    monkeypatch.setattr(user_shards, "ReadEvents", no_shuffle)
    read = read_by_job(tmp_path / "read", files[::-1], 3)
    assert read == shuffled
    # 11 users of 8 or 9 rows each, cap 4: 90 - 44 are left out.
    assert read[0] == {
        "watches_capped_users": 11,
        "watches_over_user_cap": 46,
    }


def test_a_file_that_is_not_bucketed_as_its_name_says_is_refused(
    tmp_path: Path,
) -> None:
    rows = watches([(f"u{i}", "v", i, None, True) for i in range(20)])
    files = bucketed(tmp_path, rows, 2)
    Path(files[0]).replace(tmp_path / "kept")
    Path(files[1]).replace(files[0])
    (tmp_path / "kept").replace(files[1])
    with pytest.raises(InputError, match="has users of other shards"):
        read_by_job(tmp_path / "read", files, 2)


def test_number_of_shards_is_that_of_bucketed_files(tmp_path: Path) -> None:
    rows = watches([("a", "v", 1, None, True)])
    files = bucketed(tmp_path, rows, 3)
    assert num_shards_of({"watches": {"all": files}}, None) == 3
    assert num_shards_of({"watches": {"all": files}}, 5) == 5
    loose = str(tmp_path / "loose.parquet")
    pq.write_table(rows, loose)
    assert num_shards_of({"watches": {"all": [loose]}}, None) == 8


def test_a_bot_is_capped_while_its_rows_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_rows, "_UNCAPPED_ROWS", 50)
    rows = watches([("bot", f"v{t}", t, None, True) for t in range(1000)])
    found = shard_rows.ShardRows("watches", WATCHES, 7)
    sizes = []
    for start in range(0, 1000, 20):
        found.add(shard_rows.with_part(rows.slice(start, 20), "train"))
        sizes.append(found.num_bytes)
    # Some 45 bytes a row: at most 50 + 20 rows wait, not 1,000.
    assert max(sizes) < 70 * 60
    kept, _ = found.sorted(pa.array(["bot"]))
    times = [(t - DAY) // 1_000_000 for t in kept["event_time_us"].to_pylist()]
    assert times == list(range(993, 1000))


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown part"):
        GroupByUserShard({"watches": {"dev": []}}, SCHEMA, 1, 1)
