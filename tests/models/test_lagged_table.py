"""The served statistics against those that training examples are given."""

import numpy as np
import pyarrow as pa
import pytest

from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.lagged_statistics import LaggedStatistics
from models.keras_setup import tf
from models.lagged_table import COLUMNS, LaggedLookup, LaggedTable

NAN = float("nan")


def tables():
    statistics = pa.table(
        {
            "video_id": ["a", "a", "b", "x"],
            "day": [1, 2, 2, 2],
            "impressions": [3, 1, 4, 2],
            "clicks": [1, 1, 0, 1],
            "watch_time_s": [6.0, 2.0, 4.0, 3.0],
        }
    )
    videos = pa.table(
        {
            "video_id": ["a", "b", "c", "d", "e"],
            "channel_id": ["one", "one", "one", None, "two"],
        }
    )
    return statistics, videos


def test_hand_numbers(tmp_path):
    lookup = LaggedLookup(LaggedTable.build(*tables()), str(tmp_path))
    ids = tf.constant([["a", "c", "d", "e", "x", "?"]])
    got = {n: v.numpy()[0] for n, v in lookup(ids).items()}
    expected = {
        # a: 3 + 1 impressions, 2 clicks, 8 s. x is in no videos table.
        "video_lagged_impressions": [4, 0, 0, 0, 2, 0],
        "video_lagged_click_rate": [0.5, NAN, NAN, NAN, 0.5, NAN],
        "video_lagged_watch_time_s": [2, NAN, NAN, NAN, 1.5, NAN],
        # one: a and b, 8 impressions, 2 clicks, 12 s; two: never shown.
        "channel_lagged_impressions": [8, 8, NAN, 0, NAN, NAN],
        "channel_lagged_click_rate": [0.25, 0.25, NAN, NAN, NAN, NAN],
        "channel_lagged_watch_time_s": [1.5, 1.5, NAN, NAN, NAN, NAN],
    }
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], np.float32(values), name)


@pytest.mark.parametrize("seed", range(5))
def test_equals_what_training_is_given_the_day_after(seed):
    rng = np.random.default_rng(seed)
    videos = pa.table(
        {
            "video_id": [f"v{i}" for i in range(30)],
            "channel_id": [
                None if c == 5 else f"c{c}" for c in rng.integers(6, size=30)
            ],
        }
    )
    shown = rng.permutation(40)[:25]
    statistics = pa.table(
        {
            "video_id": [f"v{i}" for i in np.repeat(shown, 2)],
            "day": [1, 2] * 25,
            "impressions": rng.integers(1, 9, 50),
            "clicks": rng.integers(0, 2, 50),
            "watch_time_s": rng.integers(0, 99, 50) / 4,
        }
    )
    ids = pa.array([f"v{i}" for i in range(45)])
    trained = LaggedStatistics(statistics, VideoCatalogue.of_table(videos))(
        ids, np.full(45, 3)
    )
    table = LaggedTable.build(statistics, videos)
    place = {v: i for i, v in enumerate(table.video_ids.to_pylist())}
    rows = [place.get(v, len(place)) for v in ids.to_pylist()]
    for column, name in enumerate(COLUMNS):
        np.testing.assert_array_equal(
            table.values[rows, column], trained[name], name
        )
