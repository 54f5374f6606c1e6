"""What a user had done before a moment: rules by hand, indices by loops.

Whole requests against loops over the rows: `test_no_future.py`.
"""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.histories import (
    RawRequests,
    raw_request,
    recent_indices,
    request_times,
    watch_end_us,
)
from beam_jobs.user_shards import UserShard, build_shard, split_batch
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import EventSchema, ExtraColumn
from schemas.requests import raw_inputs

# Small times, in microseconds: the rules do not know a calendar.
USERS = pa.table(
    {
        "user_id": ["a", "b", "c"],
        "region": ["DE", None, "US"],
        "age": pa.array([30.0, None, 41.5]),
        "logged_in": [True, False, None],
        "plan": ["free", None, "paid"],
        "tags": pa.array([["x", "y", "z"], None, []], pa.list_(pa.string())),
        "karma": pa.array([1.0, None, -2.0]),
    }
)


def log(
    watches: list[tuple], searches: list[tuple], impressions: list[tuple]
) -> tuple[UserShard, EventSchema]:
    """A shard of (user, video, time, watch time) and so on."""

    def table(rows: list[tuple], **columns: pa.DataType) -> pa.Table:
        values = list(zip(*rows, strict=True)) or [[]] * len(columns)
        return pa.table(
            {
                name: pa.array(list(v), kind)
                for (name, kind), v in zip(columns.items(), values, strict=True)
            }
        )

    text, number = pa.string(), pa.int64()
    tables = {
        "watches": table(
            watches,
            user_id=text,
            video_id=text,
            event_time_us=number,
            watch_time_s=pa.float64(),
        )
        .append_column("completed", pa.array([True] * len(watches), pa.bool_()))
        .append_column("source", pa.array(["home"] * len(watches), text)),
        "searches": table(
            searches, user_id=text, event_time_us=number, query=text
        ),
        "impressions": table(
            impressions,
            user_id=text,
            video_id=text,
            event_time_us=number,
            request_id=text,
        )
        .append_column("surface", pa.array(["home"] * len(impressions), text))
        .append_column(
            "clicked", pa.array([False] * len(impressions), pa.bool_())
        )
        .append_column(
            "watch_time_s", pa.array([0.0] * len(impressions), pa.float64())
        ),
        "users": USERS,
    }
    extras = {
        "users": (
            ExtraColumn("plan", "categorical"),
            ExtraColumn("tags", "categorical_list"),
            ExtraColumn("karma", "continuous"),
        )
    }
    schema = EventSchema.of_tables(tables, extras)
    schemas = {name: schema.arrow(name) for name in tables}
    pieces = [
        piece
        for name, rows in tables.items()
        for _, piece in split_batch(
            rows.select(schemas[name].names),
            table=name,
            part="train",
            num_shards=1,
            cap=10**9,
        )
    ]
    return build_shard((0, pieces), schemas=schemas, cap=10**9), schema


def inputs(schema: EventSchema, history: int = 3, searches: int = 2):
    config = RetrievalExamplesConfig(
        history_length=history, searches=searches, max_list=2
    )
    return raw_inputs(schema, config, RankingExamplesConfig())


def padded(values: list, length: int, absent: object) -> list:
    return (values + [absent] * length)[:length]


NAMES = st.sampled_from(["a", "b", "c"])
VIDEOS = st.sampled_from(["v1", "v2", "v3"])
TIMES = st.integers(1, 12)
SHOWN = st.lists(
    st.tuples(NAMES, VIDEOS, TIMES, st.sampled_from([None, "r1", "r2"])),
    max_size=12,
)


def test_dtypes_and_names_are_those_of_the_request() -> None:
    shard, schema = log([("a", "v", 1, 1.0)], [], [])
    wanted = inputs(schema)
    request = raw_request(shard, np.array([0, 1]), np.array([5, 5]), wanted)
    filled = {
        i.name: i
        for i in wanted
        if not i.name.startswith(("candidate", "video_lagged", "channel_"))
        and i.name != "surface"
    }
    assert set(request) == set(filled)
    for name, raw in filled.items():
        assert request[name].dtype == raw.numpy_dtype, name
        assert request[name].shape == (2, *raw.shape), name


def test_user_columns() -> None:
    shard, schema = log([("nobody", "v", 1, 1.0)], [], [])
    request = raw_request(shard, np.arange(4), np.full(4, 9), inputs(schema))
    # Users in order: a, b, c, nobody (watches, but no row of its own).
    assert request["user_region"].tolist() == [b"DE", b"", b"US", b""]
    assert request["user_logged_in"].tolist() == [b"true", b"false", b"", b""]
    assert request["user_plan"].tolist() == [b"free", b"", b"paid", b""]
    np.testing.assert_array_equal(
        request["user_age"], np.float32([30, np.nan, 41.5, np.nan])
    )
    np.testing.assert_array_equal(
        request["user_karma"], np.float32([1, np.nan, -2, np.nan])
    )
    # Lists are cut at max_list = 2.
    assert request["user_tags"].tolist() == [
        [b"x", b"y"],
        [b"", b""],
        [b"", b""],
        [b"", b""],
    ]
    assert request["request_time_us"].tolist() == [9, 9, 9, 9]


def test_strictly_before_and_watch_time_once_spent() -> None:
    # A watch at second 100 of 30 seconds.
    shard, schema = log([("a", "v", 100_000_000, 30.0)], [], [])
    times = np.array([100_000_000, 100_000_001, 129_999_999, 130_000_000])
    request = raw_request(shard, np.zeros(4, int), times, inputs(schema))
    assert request["watch_history_video_id"][:, 0].tolist() == [
        b"",  # At its own start it is not in the past.
        b"v",
        b"v",
        b"v",
    ]
    np.testing.assert_array_equal(
        request["watch_history_watch_time_s"][:, 0],
        np.float32([np.nan, np.nan, np.nan, 30.0]),
    )
    np.testing.assert_array_equal(
        request["watch_history_completed"][:, 0],
        np.float32([np.nan, np.nan, np.nan, 1.0]),
    )
    assert watch_end_us(shard).tolist() == [130_000_000, 0]


def test_requests_can_be_asked_in_chunks() -> None:
    shard, schema = log(
        [("a", f"v{t}", t, 1e-6) for t in range(1, 40)], [("b", 3, "q")], []
    )
    wanted = inputs(schema, history=5)
    users, times = np.tile([0, 1, 2], 10), np.arange(30)
    whole = raw_request(shard, users, times, wanted)
    builder = RawRequests(shard, wanted)
    parts = [
        builder(users[i : i + 7], times[i : i + 7]) for i in range(0, 30, 7)
    ]
    for name, values in whole.items():
        np.testing.assert_array_equal(
            np.concatenate([p[name] for p in parts]), values
        )


def test_empty_shard_gives_absent_values() -> None:
    shard, schema = log([], [], [])
    request = raw_request(shard, np.array([2]), np.array([7]), inputs(schema))
    assert request["watch_history_video_id"].tolist() == [[b"", b"", b""]]
    assert np.isnan(request["watch_history_watch_time_s"]).all()


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), max_size=20),
    st.lists(st.tuples(st.integers(0, 3), st.integers(-6, 6)), max_size=8),
    st.integers(1, 4),
)
def test_recent_indices_equal_a_loop(
    events: list[tuple], anchors: list[tuple], length: int
) -> None:
    events = sorted(events)
    found = recent_indices(
        np.array([u for u, _ in events], np.int64),
        np.array([t for _, t in events], np.int64),
        np.array([u for u, _ in anchors], np.int64),
        np.array([t for _, t in anchors], np.int64),
        length,
    )
    expected = []
    for user, now in anchors:
        past = [i for i, (u, t) in enumerate(events) if u == user and t < now]
        expected.append(padded(past[::-1], length, -1))
    assert found.tolist() == expected
    assert found.shape == (len(anchors), length)


@settings(deadline=None)
@given(SHOWN)
def test_request_times_equal_a_loop(shown: list[tuple]) -> None:
    shard, _ = log([], [], shown)
    keys, cuts = request_times(shard)
    rows = shard.tables["impressions"].to_pylist()

    def request(row: dict) -> tuple:
        name = row["request_id"]
        time = row["event_time_us"] if name is None else None
        return (row["user_id"], name, time)

    first: dict[tuple, int] = {}
    for row in rows:
        time = row["event_time_us"]
        first[request(row)] = min(first.get(request(row), time), time)
    assert cuts.tolist() == [first[request(row)] for row in rows]
    # Equal keys exactly for equal requests, 0 .. R - 1, by user and cut.
    numbers = {}
    for row, key in zip(rows, keys.tolist(), strict=True):
        assert numbers.setdefault(request(row), key) == key
    assert sorted(numbers.values()) == list(range(len(first)))
    ordered = sorted(numbers, key=numbers.__getitem__)
    assert [(r[0], first[r]) for r in ordered] == sorted(
        (r[0], first[r]) for r in ordered
    )


def test_same_request_id_of_two_users_is_two_requests() -> None:
    shard, _ = log(
        [],
        [],
        [("a", "v1", 5, "r"), ("b", "v1", 3, "r"), ("a", "v2", 4, "r")],
    )
    keys, cuts = request_times(shard)
    # Rows in order: (a, 4), (a, 5), (b, 3).
    assert keys.tolist() == [0, 0, 1]
    assert cuts.tolist() == [4, 4, 3]


@pytest.mark.parametrize("scale", [1, 10**15])
def test_large_times_do_not_overflow(scale: int) -> None:
    # 2,000 users at microseconds of 2033: code x time would need 62 bits.
    users = np.repeat(np.arange(2000), 2)
    times = np.tile([1, 2], 2000) * 2 * scale
    found = recent_indices(
        users, times, np.array([1999]), np.array([3 * scale]), 2
    )
    assert found.tolist() == [[3998, -1]]
