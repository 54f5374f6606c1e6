"""The property that no example knows the future, of one log.

`check` runs the code on a log, in memory, and compares every example with the
loops of `log_oracle`; `logs` draws the logs.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from beam_jobs import lagged_statistics
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.example_files import Repeated
from beam_jobs.histories import RawRequests
from beam_jobs.ranking_requests import RankingRequests
from beam_jobs.retrieval_examples import (
    ExampleBuilder,
    Labels,
    Moments,
    choose_cases,
    choose_labels,
)
from beam_jobs.shard_rows import PART
from beam_jobs.split import part_by_time
from beam_jobs.user_shards import UserShard
from beam_jobs.vocabularies import count_shard
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.features import Feature
from schemas.requests import raw_inputs
from schemas.split import SplitBounds
from tests.beam_jobs.log_oracle import (
    CHANNELS,
    IDS,
    LAST_TICK,
    MIDNIGHT_US,
    SCHEMA,
    TICK_S,
    TICK_US,
    USERS,
    Log,
    Search,
    Shown,
    Watch,
    shard_of,
    tables_of,
)

SEED = 3
RETRIEVAL = RetrievalExamplesConfig(
    examples_per_user=4, history_length=3, searches=2
)
RANKING = RankingExamplesConfig(max_candidates=2)
INPUTS = raw_inputs(SCHEMA, RETRIEVAL, RANKING)
CATALOGUE = VideoCatalogue.of_table(
    pa.table(
        {"video_id": list(CHANNELS), "channel_id": list(CHANNELS.values())}
    )
)

VIDEOS = st.sampled_from("abcabcd")
# Half of them in the last training day.
TICKS = st.integers(0, LAST_TICK) | st.integers(12, 18)
TIMES = TICKS.map(lambda k: MIDNIGHT_US + k * TICK_US)
# Watches that end at an event, just after one, and never.
SPENT_S = st.sampled_from([0.0, TICK_S, TICK_S + 1e-6, 9.0 * TICK_S])
WATCHES = st.lists(
    st.tuples(
        VIDEOS,
        TIMES,
        SPENT_S | st.none(),
        st.sampled_from([True, True, False]),
        st.sampled_from([False, False, False, True]),
    ),
    max_size=9,
    unique_by=lambda w: w[:2],
)
SEARCHES = st.lists(
    st.tuples(st.sampled_from(["q", "r"]), TIMES), max_size=4, unique=True
)
SHOWN = st.lists(
    st.tuples(
        VIDEOS,
        TIMES,
        st.sampled_from([None, "r1", "r2"]),
        st.booleans(),
        SPENT_S,
    ),
    max_size=7,
    unique_by=lambda r: r[:2],
)
HISTORIES = st.tuples(WATCHES, SEARCHES, SHOWN)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """A log of five users' histories."""
    found: tuple[list[Watch], list[Search], list[Shown]] = [], [], []
    for user in USERS:
        watches, searches, shown = draw(HISTORIES)
        found[0].extend(Watch(user, *w) for w in watches)
        found[1].extend(Search(user, *s) for s in searches)
        found[2].extend(Shown(user, *r) for r in shown)
    return Log(*found, draw(st.sampled_from([0.0, 8.0])))


def check(log: Log, now_us: int) -> None:
    """Every example of a log is what could be known at its time.

    Raises:
      AssertionError: it is not, or events from `now_us` on change examples
        of up to then.
    """
    whole, known = shard_of(log), shard_of(log, ("train", "valid"))
    check_parts(whole, log)
    check_training(known, log)
    check_vocabulary(shard_of(log, ("train",)), log)
    for part, shard in (("train", known), ("valid", known), ("test", whole)):
        if part != "train":
            check_cases(shard, log, part)
        check_ranking(shard, log, part)
    check_garbled(known, log, now_us)


def check_parts(shard: UserShard, log: Log) -> None:
    """The split puts each event where the loop does."""
    *_, test_end_us = log.ends_us
    timed = dict(shard.tables)
    del timed["users"]
    divided = part_by_time(
        dataclasses.replace(shard, tables=timed),
        (bounds_of(log), test_end_us),
    )
    for table in timed:
        np.testing.assert_array_equal(
            divided.numpy(table, PART), shard.numpy(table, PART), table
        )


def check_training(shard: UserShard, log: Log) -> None:
    """Labels are ended training watches, in their context."""
    ids = ids_of(shard)
    builder = telling_builder(log)
    labels = choose_labels(shard, ids, builder.bounds, RETRIEVAL, SEED)
    eligible = collections.defaultdict(list)
    for w in log.labels():
        if w.video in IDS:
            eligible[w.user].append((w.time_us, IDS[w.video]))
    found = collections.defaultdict(list)
    for columns in training(builder, shard, labels):
        for row, (user, time_us, label) in enumerate(
            zip(
                _plain(columns["user_id"]),
                columns["event_time_us"],
                _plain(columns["label"]),
                strict=True,
            )
        ):
            found[user.decode()].append((time_us, label))
            check_features(columns, row, log, user.decode(), time_us)
        # The age of an example counts back from the end of training.
        assert (columns["example_age"] > 0).all()
    assert set(found) == set(eligible)
    for user, some in found.items():
        assert len(set(some)) == len(some) == min(4, len(eligible[user]))
        assert set(some) <= set(eligible[user])


def check_cases(shard: UserShard, log: Log, part: str) -> None:
    """A case is before the part's first completed watch of the user."""
    cases = choose_cases(shard, ids_of(shard), part)
    builder = telling_builder(log)
    moments = Moments.of_shard(
        shard, cases.users, cases.times_us, builder.query_features(shard)
    )
    # A small log is one chunk, and no case none.
    columns = next(builder.evaluation(moments, cases), {})
    found = {}
    for row, (code, time_us) in enumerate(
        zip(cases.users, cases.times_us, strict=True)
    ):
        user = USERS[code]
        check_features(columns, row, log, user, time_us)
        found[user] = (
            time_us,
            sorted(_list(cases.labels, row)),
            _list(cases.seen, row),
        )
    expected = {}
    for user in USERS:
        labels = [
            w
            for w in log.watches
            if w.user == user
            and w.completed
            and not w.undated
            and log.part(w) == part
        ]
        if labels:
            first_us = min(w.time_us for w in labels)
            seen = {
                IDS[w.video]
                for w in log.watches
                if w.user == user and w.time_us < first_us and w.video in IDS
            }
            ids = sorted(IDS.get(w.video, 0) for w in labels)
            expected[user] = (first_us, ids, sorted(seen))
    assert found == expected


def check_ranking(shard: UserShard, log: Log, part: str) -> None:
    """Requests are cut at their first time, statistics the day before."""
    visible = Log([], [], log.shown, log.utc_offset_hours)
    if part != "test":
        visible = visible.only(("train", "valid"))
    requests = ranking_requests(shard, visible, part)
    batch = requests.batch(0, len(requests))
    videos = shard.arrow("impressions", "video_id").to_pylist()
    times = shard.times_us("impressions").tolist()
    rows = {(r.user, r.video, r.time_us): r for r in log.shown}
    candidates = []
    for i, user in enumerate(batch.user_id):
        cut_us = int(batch.raw["request_time_us"][i])
        check_context(batch.raw, i, log, user.decode(), cut_us)
        for slot, row in enumerate(batch.rows[i]):
            if row < 0:
                continue
            shown = rows[user.decode(), videos[row], times[row]]
            candidates.append(shown)
            assert log.request_time(shown) == cut_us
            for name, value in log.lagged(shown.video, cut_us).items():
                found = batch.raw[name][i, slot]
                assert math.isclose(found, value, rel_tol=1e-6) or (
                    math.isnan(found) and math.isnan(value)
                ), name
    expected = [r for r in log.shown if log.part(r) == part]
    assert sorted(candidates, key=str) == sorted(expected, key=str)


def check_vocabulary(shard: UserShard, log: Log) -> None:
    """Videos are counted once they have been watched to the end."""
    (counts,) = (
        table
        for space, table in count_shard(
            shard, CATALOGUE, bounds_of(log), SCHEMA, ["video"]
        )
        if space == "video"
    )
    found = dict(zip(*counts.to_pydict().values(), strict=True))
    assert found == log.video_counts()


def check_garbled(known: UserShard, log: Log, now_us: int) -> None:
    """Other events from a time on: the same bytes up to it."""
    garbled = log.garbled_from(now_us)
    other = shard_of(garbled, ("train", "valid"))
    anchors = [
        (code, time_us)
        for code, user in enumerate(USERS)
        for time_us in range(MIDNIGHT_US, now_us + 1, TICK_US)
    ]
    users, times = (np.array(a, np.int64) for a in zip(*anchors, strict=True))
    assert _bytes(RawRequests(known, INPUTS)(users, times)) == _bytes(
        RawRequests(other, INPUTS)(users, times)
    )
    # Requests that were over by then, with their candidates.
    found = []
    for shard, rows in ((known, log.shown), (other, garbled.shown)):
        before = {r for r in rows if r.time_us >= now_us}
        open_still = {(r.user, r.request) for r in before if r.request}
        visible = Log([], [], rows, log.utc_offset_hours)
        requests = ranking_requests(
            shard, visible.only(("train", "valid")), "train"
        )
        batch = requests.batch(0, len(requests))
        names = shard.arrow("impressions", "request_id").to_pylist()
        found.append(
            {
                int(batch.row_key[i]): _bytes(
                    {n: v[i] for n, v in batch.raw.items()}
                )
                for i, user in enumerate(batch.user_id)
                if batch.raw["request_time_us"][i] < now_us
                and (user.decode(), names[batch.rows[i, 0]]) not in open_still
            }
        )
    closed = found[0].keys() & found[1].keys()
    assert {k: found[0][k] for k in closed} == {k: found[1][k] for k in closed}
    assert found[0].keys() <= found[1].keys()
    if now_us >= log.ends_us[0]:
        assert _training_bytes(known, log) == _training_bytes(other, garbled)


def check_context(
    raw: Mapping[str, Any], row: int, log: Log, user: str, now_us: int
) -> None:
    """The lists of an example against the loop, and its own time."""
    assert raw["request_time_us"][row] == now_us
    expected = log.context(
        user, now_us, RETRIEVAL.history_length, RETRIEVAL.searches
    )
    for name, values in expected.items():
        if name in raw:
            found = raw[name][row]
            # In the type of the input: NaN is equal to no number.
            wanted = np.array(values, found.dtype)
            assert np.array_equal(
                found, wanted, equal_nan=found.dtype.kind == "f"
            ), (name, found, wanted)


# Cuts the four tokens of two searches.
QUERY = (
    Feature("watch_history", "bag", "query", "video", RETRIEVAL.history_length),
    Feature("search_tokens", "bag", "query", "token", 3),
)


def telling(raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A transform whose ids tell what they were: letters by their number."""
    history = raw["watch_history_video_id"]
    search = raw["search_query"]
    number = np.vectorize(lambda term: ord(term) if term else -1)
    tokens = np.full((len(search), 2 * search.shape[1] + 3), -1)
    for row, queries in enumerate(search):
        said = [t for q in queries if q for t in (ord(q), ord(q) + 1000)]
        tokens[row, : len(said)] = said
    ids = number(history) if history.size else np.zeros(history.shape)
    return {
        "watch_history": ids.astype(np.int64),
        "search_tokens": tokens[:, : QUERY[1].max_length],
    }


def check_features(
    columns: Mapping[str, Any], row: int, log: Log, user: str, now_us: int
) -> None:
    """The bags of an example against the loop."""
    context = log.context(
        user, now_us, RETRIEVAL.history_length, RETRIEVAL.searches
    )
    watched = [ord(v) for v in context["watch_history_video_id"] if v]
    assert _list(columns["watch_history"], row) == watched
    said = [
        t for q in context["search_query"] if q for t in (ord(q), ord(q) + 1000)
    ]
    assert _list(columns["search_tokens"], row) == said[:3]


def telling_builder(log: Log) -> ExampleBuilder:
    inputs = tuple(i for i in INPUTS if not i.ranking_only)
    return ExampleBuilder(
        telling, inputs, QUERY, bounds_of(log), RETRIEVAL, SEED
    )


def training(
    builder: ExampleBuilder, shard: UserShard, labels: Labels
) -> Iterator[dict[str, Any]]:
    moments = Moments.of_shard(
        shard,
        shard.user_codes["watches"][labels.rows],
        shard.times_us("watches")[labels.rows],
        builder.query_features(shard),
    )
    return builder.training(moments, labels.ids, labels.weights)


def ranking_requests(
    shard: UserShard, visible: Log, part: str
) -> RankingRequests:
    """The requests of a part, with the statistics of a log."""
    shown = tables_of(visible)["impressions"]
    daily = lagged_statistics.daily_sums(shown, visible.utc_offset_hours)
    seconds = daily.column("watch_time_us").to_numpy() / 1e6
    daily = daily.append_column("watch_time_s", pa.array(seconds))
    statistics = lagged_statistics.LaggedStatistics(
        daily.select(lagged_statistics.SCHEMA.names), CATALOGUE
    )
    return RankingRequests(
        shard,
        INPUTS,
        (part,),
        RANKING.max_candidates,
        statistics,
        visible.utc_offset_hours,
    )


def bounds_of(log: Log) -> SplitBounds:
    train_end_us, valid_end_us, _ = log.ends_us
    return SplitBounds(
        "time",
        MIDNIGHT_US - TICK_US * 6,
        train_end_us,
        valid_end_us,
        log.utc_offset_hours,
    )


def ids_of(shard: UserShard) -> np.ndarray:
    videos = shard.arrow("watches", "video_id").to_pylist()
    return np.array([IDS.get(v, 0) for v in videos], np.int64)


def _plain(column: Repeated) -> np.ndarray:
    return column.distinct.values[column.rows]


def _list(lists: Any, row: int) -> list[int]:
    start, end = lists.row_splits[row : row + 2]
    return lists.values[start:end].tolist()


def _bytes(columns: Mapping[str, np.ndarray]) -> dict[str, object]:
    return {
        name: values.tolist() if values.dtype == object else values.tobytes()
        for name, values in ((n, np.asarray(v)) for n, v in columns.items())
    }


def _training_bytes(shard: UserShard, log: Log) -> list[dict[str, object]]:
    builder, ids = telling_builder(log), ids_of(shard)
    labels = choose_labels(shard, ids, builder.bounds, RETRIEVAL, SEED)
    return [
        _bytes(
            {
                f"{name}/{i}": values
                for name, column in columns.items()
                # A ragged column is a pair of arrays.
                for i, values in enumerate(
                    (column.distinct.values, column.rows)
                    if isinstance(column, Repeated)
                    else column
                    if isinstance(column, tuple)
                    else (column,)
                )
            }
        )
        for columns in training(builder, shard, labels)
    ]
