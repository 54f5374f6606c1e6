"""Fixed count: at most N labels a user, drawn by the watches alone."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.histories import RawRequests
from beam_jobs.retrieval_examples import Labels, choose_labels
from beam_jobs.user_shards import UserShard, build_shard, split_batch
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import EventSchema
from schemas.requests import raw_inputs
from schemas.split import SplitBounds

COLUMNS = (
    "user_id",
    "video_id",
    "event_time_us",
    "watch_time_s",
    "completed",
    "source",
)
SCHEMA = EventSchema({"watches": COLUMNS})
WATCHES = SCHEMA.arrow("watches")
INPUTS = raw_inputs(SCHEMA, RetrievalExamplesConfig(), RankingExamplesConfig())
END_US = 10**12
BOUNDS = SplitBounds("time", 0, END_US, 2 * END_US, 0.0)
NO_CAP = 10**9

Event = tuple[str, str, int]  # User, video, time.


def table(
    users: Sequence[str], videos: Sequence[str], times_us: Sequence[int]
) -> pa.Table:
    """Completed watches of no length."""
    rows = len(times_us)
    values = {
        "user_id": users,
        "video_id": videos,
        "event_time_us": times_us,
        "watch_time_s": np.zeros(rows),
        "completed": np.full(rows, True),
        "source": pa.array(["home"]).take(np.zeros(rows, np.int64)),
    }
    return pa.table({name: values[name] for name in WATCHES.names}, WATCHES)


def shards_of(
    batches: Sequence[pa.Table],
    num_shards: int = 1,
    cap: int = NO_CAP,
    later: Sequence[pa.Table] = (),
) -> list[UserShard]:
    """Shards of training batches, and of batches of the validation part."""
    pieces: dict[int, list[tuple[str, bytes]]] = {
        n: [] for n in range(num_shards)
    }
    parts = [("train", b) for b in batches] + [("valid", b) for b in later]
    for part, rows in parts:
        for shard, piece in split_batch(
            rows, table="watches", part=part, num_shards=num_shards, cap=cap
        ):
            pieces[shard].append(piece)
    schemas = {"watches": WATCHES}
    return [
        build_shard(item, schemas=schemas, cap=cap) for item in pieces.items()
    ]


def labels_of(shard: UserShard, count: int, seed: int = 0) -> Labels:
    ids = np.ones(shard.tables["watches"].num_rows, np.int64)
    config = RetrievalExamplesConfig(examples_per_user=count)
    return choose_labels(shard, ids, BOUNDS, config, seed)


def events_of(shard: UserShard, labels: Labels) -> list[Event]:
    """The chosen watches, in the order they are written."""
    chosen = shard.tables["watches"].take(pa.array(labels.rows))
    columns = (chosen.column(n).to_pylist() for n in COLUMNS[:3])
    return list(zip(*columns, strict=True))


def choice(
    shards: Sequence[UserShard], count: int, seed: int = 0
) -> dict[str, list[Event]]:
    """User -> chosen watches, in the order they are written."""
    found: dict[str, list[Event]] = {}
    for shard in shards:
        for event in events_of(shard, labels_of(shard, count, seed)):
            found.setdefault(event[0], []).append(event)
    return found


@pytest.mark.parametrize("count", [None, 2])
def test_a_stride_takes_every_third_back_from_the_latest(
    count: int | None,
) -> None:
    times = {"ann": [9, 1, 4, 7, 2, 8, 3], "bo": [5, 6]}
    rows = [(u, f"v{t}", t) for u, some in times.items() for t in some]
    [shard] = shards_of([table(*zip(*rows, strict=True))])
    config = RetrievalExamplesConfig(examples_per_user=count, label_stride=3)
    ids = np.ones(len(rows), np.int64)
    labels = choose_labels(shard, ids, BOUNDS, config, seed=0)
    found: dict[str, list[int]] = {"ann": [], "bo": []}
    for user, _, time in events_of(shard, labels):
        found[user].append(time)
    # Ann's are 9 8 7 4 3 2 1, latest first.
    assert found["bo"] == [6]
    assert set(found["ann"]) <= {9, 4, 1}
    assert len(found["ann"]) == (count or 3)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bo", "cy"]),
        st.sampled_from(["v1", "v2", "v3"]),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=40,
    unique=True,
)


@settings(max_examples=150, deadline=None)
@given(
    EVENTS,
    EVENTS,
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 2**62),
    st.randoms(use_true_random=False),
)
def test_only_seed_user_and_event_decide(
    events, later, cap, num_shards, seed, shuffler
) -> None:
    def build(some: Sequence[Event], **arguments: object) -> list[UserShard]:
        batches = [
            table(*zip(*some[i::2], strict=True))
            for i in range(2)
            if some[i::2]
        ]
        return shards_of(batches, **arguments)

    plain = choice(build(events), 3, seed)
    counts = {u: sum(e[0] == u for e in events) for u, *_ in events}
    assert {u: len(c) for u, c in plain.items()} == {
        u: min(3, n) for u, n in counts.items()
    }
    # Other files, order and shards.
    turned = list(events)
    shuffler.shuffle(turned)
    assert choice(build(turned, num_shards=num_shards), 3, seed) == plain
    # Other parts.
    held_out = [table(*zip(*later, strict=True))]
    assert choice(build(events, later=held_out), 3, seed) == plain
    # Other users.
    alone = [e for e in events if e[0] == events[0][0]]
    assert choice(build(alone), 3, seed)[alone[0][0]] == plain[alone[0][0]]
    # A larger N adds to the choice, in the same order.
    larger = choice(build(events), 7, seed)
    assert {u: c[:3] for u, c in larger.items()} == plain
    # The cap: the most recent watches of each user, and among them the order
    # of the whole log.
    everything = choice(build(events), len(events), seed)
    expected = {}
    for user, ordered in everything.items():
        recent = sorted(ordered, key=lambda e: (e[2], e[1]))[-cap:]
        expected[user] = [e for e in ordered if e in recent][:3]
    assert choice(build(events, cap=cap), 3, seed) == expected


@pytest.mark.parametrize("cap", [NO_CAP, 100_000])
def test_a_user_of_a_million_watches(cap: int) -> None:
    """N examples with their context, and the weight of any other user."""
    rows = 1_000_000
    rng = np.random.default_rng(1)
    videos = pa.array([f"v{i}" for i in range(5000)])
    heavy = table(
        pa.array(["heavy"]).take(np.zeros(rows, np.int64)),
        videos.take(pa.array(rng.integers(0, 5000, rows))),
        rng.permutation(rows) * 1000,
    )
    light = table(["light"] * 3, ["v1", "v2", "v3"], [5, 6, 7])
    (shard,) = shards_of(
        [heavy.slice(0, rows // 2), light, heavy.slice(rows // 2)], cap=cap
    )
    assert shard.tables["watches"].num_rows == min(cap, rows) + 3
    labels = labels_of(shard, 20)
    users = [e[0] for e in events_of(shard, labels)]
    assert users.count("heavy") == 20 and users.count("light") == 3
    is_heavy = np.array(users) == "heavy"
    for some in (is_heavy, ~is_heavy):
        assert labels.weights[some].sum() == pytest.approx(20)
    # One watch a millisecond: the context is the 50 before.
    codes = shard.user_codes["watches"][labels.rows]
    times_us = shard.times_us("watches")[labels.rows]
    request = RawRequests(shard, INPUTS)(codes, times_us)
    expected = times_us[:, None] - 1000 * np.arange(1, 51)
    expected[expected < 1000 * (rows - min(cap, rows))] = 0  # Capped.
    np.testing.assert_array_equal(
        request["watch_history_event_time_us"][is_heavy], expected[is_heavy]
    )


def test_weights_make_users_equal() -> None:
    """Users of 0 to 59 labels: N in all for each who has one."""
    users = np.repeat(np.arange(60), np.arange(60))
    times = np.arange(users.size)
    rows = table([f"u{u}" for u in users], ["v"] * users.size, times)
    (shard,) = shards_of([rows])
    for count in (1, 7, 20):
        labels = labels_of(shard, count)
        totals: dict[str, float] = {}
        for event, weight in zip(
            events_of(shard, labels), labels.weights, strict=True
        ):
            totals[event[0]] = totals.get(event[0], 0.0) + float(weight)
        assert len(totals) == 59
        # Each weight errs by half a unit of float32 at most: 6e-8 of it.
        np.testing.assert_allclose(list(totals.values()), count, rtol=6e-8)


def test_the_draw_is_uniform() -> None:
    """5 of 40 watches, over 1,000 seeds, and over 1,000 users of one seed.

    Chi-square with 39 degrees of freedom: 39 with a standard deviation of
    8.8. A draw without replacement varies by (1 - 5/40) 40/39 as much.
    """
    events = 40

    def chi_square(times_us: list[int]) -> float:
        found = np.bincount(np.array(times_us) // 1000, minlength=events)
        expected = len(times_us) / events
        scale = expected * (1 - 5 / events) * events / (events - 1)
        return float(((found - expected) ** 2).sum() / scale)

    def histories(users: int) -> UserShard:
        """The same watches of each user."""
        names = [f"u{u}" for u in range(users) for _ in range(events)]
        videos = [f"v{i % 7}" for i in range(events)] * users
        times_us = [1000 * i for i in range(events)] * users
        return shards_of([table(names, videos, times_us)])[0]

    shard = histories(1)
    over_seeds = [
        e[2]
        for seed in range(1000)
        for e in events_of(shard, labels_of(shard, 5, seed))
    ]
    assert len(over_seeds) == 5000
    assert chi_square(over_seeds) < 39 + 4 * 8.8

    shard = histories(1000)
    over_users = [e[2] for e in events_of(shard, labels_of(shard, 5))]
    assert len(over_users) == 5000
    assert chi_square(over_users) < 39 + 4 * 8.8
    # What is written is shuffled: users do not stand together.
    users = [e[0] for e in events_of(shard, labels_of(shard, 5))]
    together = sum(a == b for a, b in zip(users[1:], users[:-1], strict=True))
    # 4,999 neighbours, each pair equal with 4/4,999: 4 expected.
    assert together < 4 + 4 * 2


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(0, 10))
def test_labels_since_a_time_are_drawn_as_if_there_were_no_others(
    events, since_us
) -> None:
    (whole,) = shards_of([table(*zip(*events, strict=True))])
    late = [event for event in events if event[2] >= since_us]
    ids = np.ones(whole.tables["watches"].num_rows, np.int64)
    config = RetrievalExamplesConfig(examples_per_user=2)
    chosen = choose_labels(whole, ids, BOUNDS, config, 7, since_us)
    found = events_of(whole, chosen)
    if not late:
        assert found == []
        return
    (alone,) = shards_of([table(*zip(*late, strict=True))])
    expected = labels_of(alone, 2, 7)
    assert found == events_of(alone, expected)
    np.testing.assert_array_equal(chosen.weights, expected.weights)
