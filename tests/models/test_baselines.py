"""Training watches and popularity against hand counts."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.baselines import (
    Popularity,
    Watches,
    history_rows,
    popularity_counts,
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


def test_counts_of_videos_that_nobody_watched_are_0():
    watches = Watches(np.zeros(3, np.uint64), np.array([1, 3, 3]), np.arange(3))
    assert popularity_counts(watches, 4).tolist() == [1, 0, 2, 0]


def test_recent_popularity_counts_the_last_days_only():
    end = START_US + 10 * DAY_US
    times = np.array([end - 2 * DAY_US - 1, end - 2 * DAY_US, end - 1])
    watches = Watches(np.zeros(3, np.uint64), np.array([1, 2, 2]), times)
    scorer = recent_popularity(watches, 3, end, recent_days=2)
    assert scorer.scores(history([1])).tolist() == [[0, 2, 0]]


def test_history_rows_of_ragged_and_padded_ids_agree():
    from models.keras_setup import tf

    rows = [[3, 0, 1], [], [2]]
    padded = history(*rows)["watch_history"]
    for ids in (padded, tf.constant(padded), tf.ragged.constant(rows)):
        assert [r.tolist() for r in history_rows(ids)] == rows
