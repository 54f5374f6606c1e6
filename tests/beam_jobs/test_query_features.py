"""Features from events that are transformed once, against the plain way."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.example_files import Distinct, Repeated, encode_examples
from beam_jobs.histories import RawRequests
from beam_jobs.query_features import QueryFeatures, direct_features
from beam_jobs.user_shards import UserShard, build_shard, split_batch
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import EventSchema, ExtraColumn
from schemas.examples import retrieval_keys
from schemas.features import Feature, feature_set
from schemas.requests import retrieval_inputs

START_US = 1_600_000_000_000_000
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
        "users": ("user_id", "region", "age"),
    },
    {"users": (ExtraColumn("hobby", "categorical_list"),)},
)
CONFIG = RetrievalExamplesConfig(
    history_length=4, searches=3, search_tokens=5, max_list=2
)
INPUTS = retrieval_inputs(SCHEMA, CONFIG, RankingExamplesConfig())
FEATURES = feature_set(SCHEMA, CONFIG, RankingExamplesConfig()).select("query")
KEYS = retrieval_keys(
    feature_set(SCHEMA, CONFIG, RankingExamplesConfig()),
    "train",
    example_age=True,
)
USERS = ("a", "b", "c", "d")


def padded(lists: list[list[int]], length: int) -> np.ndarray:
    rows = np.full((len(lists), length), -1, np.int64)
    for row, values in zip(rows, lists, strict=True):
        row[: len(values[:length])] = values[:length]
    return rows


def transform(raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A transform without TensorFlow: ids are the terms' first numbers.

    A query "3 12 0" has the tokens 3, 12 and 0; the video "7" is 7, and
    videos from 50 on are out of vocabulary.
    """

    def video(term: bytes) -> int:
        return (int(term) if int(term) < 50 else 0) if term else -1

    history = raw["watch_history_video_id"]
    ages = raw["user_age"]
    missing = np.isnan(ages)
    x = np.where(missing, 0, ages / 100)
    age = np.stack([x, x**2, np.sqrt(x), missing], axis=1)
    return {
        "watch_history": padded(
            [[video(t) for t in row] for row in history], history.shape[1]
        ),
        "search_tokens": padded(
            [
                [int(word) for query in row for word in query.split()]
                for row in raw["search_query"]
            ],
            CONFIG.search_tokens,
        ),
        "user_region": np.array([len(r) for r in raw["user_region"]], int),
        "user_age": age.astype(np.float32),
        "user_hobby": padded(
            [[len(t) for t in row if t] for row in raw["user_hobby"]],
            CONFIG.max_list,
        ),
    }


def shard_of(
    watches: list[tuple], searches: list[tuple], users: list[tuple]
) -> UserShard:
    def table(name: str, rows: list[tuple]) -> pa.Table:
        schema = SCHEMA.arrow(name)
        columns = [list(c) for c in zip(*rows, strict=True)]
        return pa.table(columns or [[] for _ in schema], schema=schema)

    tables = {
        "watches": [
            (u, v, START_US + t, 1.0, True, "home") for u, v, t in watches
        ],
        "searches": [(u, q, START_US + t) for u, q, t in searches],
        "users": users,
    }
    slices = [
        piece
        for name, rows in tables.items()
        for _, piece in split_batch(
            table(name, rows), table=name, part="all", num_shards=1, cap=99
        )
    ]
    schemas = {name: SCHEMA.arrow(name) for name in tables}
    return build_shard((0, slices), schemas=schemas, cap=99)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(USERS),
            st.integers(0, 60).map(str),
            st.integers(0, 9),
        ),
        max_size=40,
    ),
    st.lists(
        st.tuples(
            st.sampled_from(USERS),
            # None, one, or more tokens than a bag holds.
            st.lists(st.integers(0, 9), max_size=7).map(
                lambda words: " ".join(map(str, words)) or "1"
            ),
            st.integers(0, 9),
        ),
        max_size=20,
    ),
    st.lists(
        st.tuples(
            st.sampled_from(USERS),
            st.sampled_from([None, "x", "xx"]),
            st.none() | st.floats(0, 99, width=32),
            st.none() | st.lists(st.sampled_from(["r", "ss"]), max_size=3),
        ),
        unique_by=lambda user: user[0],
        max_size=4,
    ),
)
def test_features_are_those_of_whole_requests(
    watches: list[tuple], searches: list[tuple], users: list[tuple]
) -> None:
    shard = shard_of(watches, searches, users)
    codes = np.repeat(np.arange(len(shard.user_ids)), 11)
    times_us = START_US + np.tile(np.arange(11), len(shard.user_ids))
    gathered = QueryFeatures(shard, INPUTS, FEATURES, transform)
    found = gathered(codes, times_us)
    if not codes.size:
        return
    whole = transform(RawRequests(shard, INPUTS)(codes, times_us))
    expected = direct_features(whole, FEATURES)
    keys = {k.name: k for k in KEYS}
    assert list(found) == list(expected) == [f.name for f in FEATURES]
    for name, column in expected.items():
        if isinstance(found[name], Repeated):
            column = Repeated(Distinct(column), np.arange(codes.size))
            key = keys[name]
            assert encode_examples(
                {name: found[name]}, [key]
            ) == encode_examples({name: column}, [key])
        elif isinstance(column, tuple):
            for mine, theirs in zip(found[name], column, strict=True):
                np.testing.assert_array_equal(mine, theirs, name)
                assert mine.dtype == np.int64
        else:
            raise AssertionError(name)


def test_each_video_query_and_user_is_transformed_once() -> None:
    # 400 watches of 6 videos, 100 searches of 2 queries, 4 users.
    watches = [(USERS[i % 4], str(i % 6), i) for i in range(400)]
    searches = [(USERS[i % 4], str(i % 2), i) for i in range(100)]
    shard = shard_of(watches, searches, [(u, "x", 1.0, None) for u in USERS])
    rows = []

    def counting(raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows.append(len(raw["request_time_us"]))
        return transform(raw)

    features = QueryFeatures(shard, INPUTS, FEATURES, counting)
    features(np.zeros(1000, np.int64), START_US + np.arange(1000))
    # Six videos are two histories of four; two queries; four users.
    assert rows == [2, 2, 4]


def test_a_feature_of_something_else_is_refused() -> None:
    clock = Feature("hour_of_day", "categorical", "query", "hour_of_day")
    with pytest.raises(ValueError, match="got hour_of_day"):
        QueryFeatures(shard_of([], [], []), INPUTS, (clock,), transform)
