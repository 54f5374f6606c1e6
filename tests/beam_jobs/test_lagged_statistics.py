"""Lagged statistics against loops over the impressions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import lagged_statistics
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.lagged_statistics import LaggedStatistics, local_days
from beam_jobs.runners import pipeline_options

HOUR_US = 3_600_000_000
# 2024-01-01 00:00 UTC is day 19,723 after 1970-01-01.
MIDNIGHT_US = 19_723 * 24 * HOUR_US
CHANNELS = {"a": "x", "b": "x", "c": "y", "d": None, "e": "z"}


def catalogue() -> VideoCatalogue:
    nothing = [None] * len(CHANNELS)
    return VideoCatalogue.of_table(
        pa.table(
            {
                "video_id": list(CHANNELS),
                "channel_id": pa.array(CHANNELS.values(), pa.string()),
                "topics": pa.array(nothing, pa.list_(pa.string())),
            }
        )
    )


def impressions(seed: int, rows: int = 300) -> pa.Table:
    rng = np.random.default_rng(seed)
    clicked = rng.random(rows) < 0.4
    return pa.table(
        {
            # "unlisted" is in no catalogue, "e" is never shown.
            "video_id": rng.choice(["a", "b", "c", "d", "unlisted"], rows),
            "event_time_us": MIDNIGHT_US + rng.integers(0, 96, rows) * HOUR_US,
            "clicked": clicked,
            # Thirds of a second: sums of floats would depend on the order.
            # Some go on over midnight.
            "watch_time_s": rng.integers(0, 50, rows) / 3
            + 3600 * rng.integers(0, 3, rows),
        }
    )


def write(table: pa.Table, folder: Path, pieces: int) -> list[str]:
    paths = []
    for i in range(pieces):
        paths.append(str(folder / f"impressions-{i}.parquet"))
        rows = table.take(np.arange(i, len(table), pieces))
        pq.write_table(rows, paths[-1], row_group_size=40)
    return paths


def test_days_begin_at_local_midnight() -> None:
    times = np.array([MIDNIGHT_US - 1, MIDNIGHT_US])
    assert local_days(times, 0).tolist() == [19_722, 19_723]
    # At UTC+8 the day 19,723 begins eight hours earlier.
    times -= 8 * HOUR_US
    assert local_days(times, 8).tolist() == [19_722, 19_723]
    assert local_days(times, 7.5).tolist() == [19_722, 19_722]


@pytest.mark.parametrize("offset", [0.0, 8.0])
def test_daily_rows_match_a_loop(tmp_path: Path, offset: float) -> None:
    table = impressions(1)
    path = tmp_path / "statistics.parquet"
    files = write(table, tmp_path, 3)
    lagged_statistics.run(files, str(path), offset, pipeline_options())

    expected: dict[tuple[str, int], list[float]] = {}
    for row in table.to_pylist():
        local_us = row["event_time_us"] + offset * HOUR_US
        key = (row["video_id"], int(local_us // (24 * HOUR_US)))
        sums = expected.setdefault(key, [0, 0, 0.0])
        sums[0] += 1
        sums[1] += row["clicked"]
        # Watch time is known from the midnight after the watch.
        spent_us = round(row["watch_time_s"] * 1e6)
        ended = int((local_us + max(spent_us, 1) - 1) // (24 * HOUR_US))
        key = (row["video_id"], ended)
        expected.setdefault(key, [0, 0, 0.0])[2] += row["watch_time_s"]
    found = pq.read_table(path)
    assert found.column_names == [
        "video_id",
        "day",
        "impressions",
        "clicks",
        "watch_time_s",
    ]
    keys = [(r["video_id"], r["day"]) for r in found.to_pylist()]
    assert keys == sorted(expected)
    for row in found.to_pylist():
        shown, clicks, seconds = expected[row["video_id"], row["day"]]
        assert (row["impressions"], row["clicks"]) == (shown, clicks)
        assert row["watch_time_s"] == pytest.approx(seconds, abs=1e-4)

    # Other files, other row groups, other order: the same bytes.
    other = tmp_path / "other"
    other.mkdir()
    shuffled = table.take(np.random.default_rng(2).permutation(len(table)))
    again = other / "statistics.parquet"
    files = write(shuffled, other, 5)[::-1]
    lagged_statistics.run(files, str(again), offset, pipeline_options())
    assert again.read_bytes() == path.read_bytes()


def test_lookup_counts_only_days_before(tmp_path: Path) -> None:
    table = impressions(3)
    daily = lagged_statistics.MergeSums().extract_output(
        [lagged_statistics.daily_sums(table, 0)]
    )
    statistics = tmp_path / "statistics.parquet"
    lagged_statistics._write(daily, str(statistics))
    lookup = LaggedStatistics.read(str(statistics), catalogue())
    videos = ["a", "b", "c", "d", "e", "unlisted", "new"]
    days = np.arange(19_722, 19_729)
    asked = [(v, d) for v in videos for d in days]
    found = lookup(
        pa.array([v for v, _ in asked]), np.array([d for _, d in asked])
    )
    rows = table.to_pylist()

    def ended(row: dict, day: int) -> bool:
        end_us = row["event_time_us"] + round(row["watch_time_s"] * 1e6)
        return end_us <= day * 24 * HOUR_US

    for i, (video, day) in enumerate(asked):
        before = [r for r in rows if r["event_time_us"] // HOUR_US // 24 < day]
        channel = CHANNELS.get(video)
        same = {
            "video": [r for r in before if r["video_id"] == video],
            "channel": [
                r
                for r in before
                if channel and CHANNELS.get(r["video_id"]) == channel
            ],
        }
        for group, some in same.items():
            n = len(some)
            unknown = group == "channel" and channel is None
            expected = {
                "impressions": np.nan if unknown else n,
                "click_rate": sum(r["clicked"] for r in some) / n
                if n
                else np.nan,
                "watch_time_s": sum(
                    r["watch_time_s"] for r in some if ended(r, day)
                )
                / n
                if n
                else np.nan,
            }
            for name, value in expected.items():
                column = found[f"{group}_lagged_{name}"]
                assert column.dtype == np.float32
                np.testing.assert_allclose(
                    column[i], value, rtol=1e-5, err_msg=f"{video} {day} {name}"
                )
