"""Baselines against hand counts and a brute-force co-watch count."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.baselines import (
    CoWatch,
    Popularity,
    Watches,
    baselines,
    history_rows,
    read_watches,
    recent_popularity,
)

DAY_US = 86_400_000_000
START_US = 1_600_000_000_000_000


class Letters:
    """Video ids a, b, c ... are 1, 2, 3 ...; others are unknown."""

    def __init__(self, size):
        self.size = size

    def ids(self, terms):
        found = [ord(t) - ord("a") + 1 for t in terms.to_pylist()]
        return np.array([i if i <= self.size else 0 for i in found], np.int64)


def write(path, rows, undated=None):
    columns = {
        "user_id": [r[0] for r in rows],
        "video_id": [r[1] for r in rows],
        "event_time_us": [START_US + r[2] for r in rows],
        "completed": [r[3] for r in rows],
    }
    if undated is not None:
        columns["undated"] = pa.array(undated, pa.bool_())
    pq.write_table(pa.table(columns), path)
    return str(path)


def history(*rows, length=5):
    out = np.full((len(rows), length), -1, np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return {"watch_history": out}


def test_reads_completed_dated_watches_of_known_videos(tmp_path):
    one = write(
        tmp_path / "train-0.parquet",
        [("u", "a", 1, True), ("u", "b", 2, False), ("v", "c", 3, True)],
        undated=[False, None, True],
    )
    two = write(
        tmp_path / "train-1.parquet", [("u", "b", 4, True), ("u", "z", 5, True)]
    )
    watches = read_watches([one, two], Letters(3))
    # b at 2 was not completed, c at 3 has no date, z is unknown.
    assert watches.video.tolist() == [1, 2]
    assert watches.time_us.tolist() == [START_US + 1, START_US + 4]
    assert watches.user[0] == watches.user[1]


def test_popularity_is_the_same_for_everyone():
    scores = Popularity(np.array([5, 3, 1])).scores(history([1], [], [2, 3]))
    assert scores.tolist() == [[5, 3, 1]] * 3


def test_recent_popularity_counts_the_last_days_only():
    end = START_US + 10 * DAY_US
    times = np.array([end - 2 * DAY_US - 1, end - 2 * DAY_US, end - 1])
    watches = Watches(np.zeros(3, np.uint64), np.array([1, 2, 2]), times)
    scorer = recent_popularity(watches, 3, end, recent_days=2)
    assert scorer.scores(history([1])).tolist() == [[0, 2, 0]]


def test_co_watch_hand_numbers():
    # One user: 1, 2, 3; another: 1, 3. n = (2, 1, 2). Window 1 links
    # 1 -> 2, 2 -> 3 and 1 -> 3, each once.
    watches = Watches(
        np.array([7, 7, 7, 9, 9], np.uint64),
        np.array([1, 2, 3, 1, 3]),
        np.array([10, 20, 30, 10, 20]),
    )
    scorer = CoWatch(watches, 3, window=1)
    scores = scorer.scores(history([2, 1], [1], []))
    # Row 0: 2 -> 3 is 1 / sqrt(1 * 2); then, at half weight, 1 -> 2 is
    # 1 / sqrt(2 * 1) and 1 -> 3 is 1 / sqrt(2 * 2).
    root = math.sqrt(0.5)
    assert scores[0] == pytest.approx([0, root / 2, root + 0.25], abs=1e-5)
    assert scores[1] == pytest.approx([0, root, 0.5], abs=1e-5)
    # Without history, popularity decides: 1 and 3 before 2, all below links.
    assert scores[2][0] == scores[2][2] > scores[2][1] > 0
    assert scores[2].max() < 1e-5


def test_co_watch_reads_its_context_only():
    watches = Watches(
        np.zeros(4, np.uint64), np.array([1, 2, 3, 4]), np.arange(4)
    )
    scorer = CoWatch(watches, 4, window=1, context=2)
    # Only 4 (no successor) and the unknown 0 are read; 1 -> 2 is too old.
    scores = scorer.scores(history([4, 0, 1]))
    assert scores.max() < 1e-5


@st.composite
def logs(draw):
    size = draw(st.integers(1, 5))
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 3), st.integers(1, size), st.integers(0, 6)
            ),
            min_size=1,
            max_size=25,
        )
    )
    return size, rows, draw(st.integers(1, 4))


@given(logs())
@settings(max_examples=200, deadline=None)
def test_co_watch_equals_counting_by_loops(log):
    size, rows, window = log
    watches = Watches(
        np.array([r[0] for r in rows], np.uint64),
        np.array([r[1] for r in rows], np.int64),
        np.array([r[2] for r in rows], np.int64),
    )
    got = CoWatch(watches, size, window=window).scores(
        history(*[[v] for v in range(1, size + 1)])
    )
    pairs = Counter()
    for user in {r[0] for r in rows}:
        own = sorted((t, v) for u, v, t in rows if u == user)
        for i, (_, first) in enumerate(own):
            for _, later in own[i + 1 : i + 1 + window]:
                if later != first:
                    pairs[first, later] += 1
    total = Counter(r[1] for r in rows)
    for i in range(1, size + 1):
        for j in range(1, size + 1):
            expected = 0.0
            if pairs[i, j]:
                expected = pairs[i, j] / math.sqrt(total[i] * total[j])
            assert got[i - 1, j - 1] == pytest.approx(expected, abs=1e-5)


def test_baselines_of_a_split(tmp_path):
    path = write(
        tmp_path / "train-0.parquet",
        [("u", "a", 0, True), ("u", "b", 5 * DAY_US, True)],
    )
    scorers = baselines(
        [path],
        Letters(2),
        np.array([9, 4]),
        train_end_us=START_US + 6 * DAY_US,
        recent_days=2,
    )
    case = history([1])
    assert scorers["popularity"].scores(case).tolist() == [[9, 4]]
    assert scorers["recent_popularity"].scores(case).tolist() == [[0, 1]]
    # a -> b once, each watched once.
    assert scorers["co_watch"].scores(case)[0] == pytest.approx(
        [0, 1], abs=1e-5
    )


def test_history_rows_of_ragged_and_padded_ids_agree():
    from models.keras_setup import tf

    rows = [[3, 0, 1], [], [2]]
    padded = history(*rows)["watch_history"]
    for ids in (padded, tf.constant(padded), tf.ragged.constant(rows)):
        assert [r.tolist() for r in history_rows(ids)] == rows
