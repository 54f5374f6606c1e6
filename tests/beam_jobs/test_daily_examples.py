"""Days one by one against all days at once, and against loops over rows."""

import datetime
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from beam_jobs import daily_examples
from beam_jobs.runners import pipeline_options
from schemas.days import DAYS_FILE, DayRange
from schemas.events import EventSchema
from schemas.hashing import hash_strings, mix
from tests.beam_jobs import awkward_log as daily


@pytest.mark.parametrize(("seed", "cap"), [(0, 1000), (2, 3)])
def test_days_one_by_one_are_all_days_at_once(
    seed: int, cap: int, tmp_path: Path
) -> None:
    log = daily.with_impressions(daily.random_log(seed), seed)
    whole, counts = daily.run_days(
        tmp_path / "whole", log, 0, daily.NUM_DAYS, cap=cap
    )
    chain: list[Path] = []
    # The second run is given two days, the others one.
    for first, end in ((0, 1), (1, 3), (3, 4)):
        parent = chain[-1] if chain else None
        part = daily.of_days(log, first, end)
        out, _ = daily.run_days(
            tmp_path / "days", part, first, end, parent, cap
        )
        chain.append(out)
    # 4 days of two kinds, a state of three, a file for each shard; the videos.
    files = (daily.NUM_DAYS * 2 + 3) * daily.SHARDS + daily.NUM_DAYS + 1
    assert len(daily.hashes(whole)) == files
    assert daily.hashes(*chain) == daily.hashes(whole)
    # By user and day; undated watches precede the first day and are of it.
    watches = Counter(
        (r["user_id"], max(0, (r["event_time_us"] - daily.START) // daily.DAY))
        for r in log["watches"].to_pylist()
    )
    over = sum(max(0, n - cap) for n in watches.values())
    assert counts["watches_over_user_cap"] == over
    assert (over > 0) == (cap == 3)


@pytest.mark.parametrize("full", [False, True])
def test_a_log_may_lack_tables_and_columns(full: bool, tmp_path: Path) -> None:
    """Watches alone; or impressions that no request id holds together."""
    log = daily.random_log(5)
    if full:
        log = daily.with_impressions(log, 5)
        log["impressions"] = log["impressions"].drop_columns(
            ["request_id", "position"]
        )
    else:
        log = {"watches": log["watches"]}
    log = daily.of_days(log, 0, 2)
    whole, counts = daily.run_days(tmp_path / "whole", log, 0, 2)
    first, _ = daily.run_days(tmp_path, daily.of_days(log, 0, 1), 0, 1)
    last, _ = daily.run_days(tmp_path, daily.of_days(log, 1, 2), 1, 2, first)
    assert daily.hashes(first, last) == daily.hashes(whole)
    assert counts["retrieval_examples"] > 20
    assert (counts.get("ranking_examples", 0) > 20) == full


@pytest.mark.parametrize("seed", [4, 5])
def test_examples_and_state_hold_what_loops_over_the_rows_find(
    seed: int, tmp_path: Path
) -> None:
    log = daily.random_log(seed)
    whole, counts = daily.run_days(tmp_path, log, 0, daily.NUM_DAYS)
    watches = sorted(
        log["watches"].to_pylist(),
        key=lambda r: (
            *(r["user_id"], r["event_time_us"], r["video_id"]),
            # A tie in all of these differs in what no test looks at.
            *(r["watch_time_s"] is None, r["watch_time_s"]),
        ),
    )
    searches = sorted(
        log["searches"].to_pylist(),
        key=lambda r: (r["user_id"], r["event_time_us"], r["query"]),
    )
    regions = {
        r["user_id"]: r["region"] or "" for r in log["users"].to_pylist()
    }

    def past(rows: list[dict], user: str, time: int, n: int) -> list[dict]:
        found = [
            r
            for r in rows
            if r["user_id"] == user and r["event_time_us"] < time
        ]
        return found[::-1][:n]

    total = carried = running = 0
    for number in range(daily.NUM_DAYS):
        low = daily.START + number * daily.DAY
        day = daily.FIRST + datetime.timedelta(number)
        expected = []
        for r in watches:
            time = r["event_time_us"]
            if (
                not (r["completed"] and not r["undated"])
                or not low <= time < low + daily.DAY
            ):
                continue
            seen = past(watches, r["user_id"], time, daily.H)
            spent = [
                math.nan
                if s["watch_time_s"] is None
                or s["event_time_us"] + s["watch_time_s"] * 1e6 > time
                else s["watch_time_s"]
                for s in seen
            ]
            carried += any(s["event_time_us"] < low for s in seen)
            running += any(
                s["event_time_us"] < low and math.isnan(t) and s["watch_time_s"]
                for s, t in zip(seen, spent, strict=True)
            )
            asked = past(searches, r["user_id"], time, daily.S)
            expected.append(
                (
                    r["user_id"],
                    time,
                    r["video_id"],
                    time + int((r["watch_time_s"] or 0) * 1e6),
                    [s["video_id"] for s in seen],
                    [s["event_time_us"] for s in seen],
                    str(spent),
                    [s["query"] for s in asked],
                    [s["event_time_us"] for s in asked],
                    regions[r["user_id"]],
                )
            )
        stored = daily.rows_of(whole, f"{day}/retrieval-*.parquet")
        assert sorted(expected) == sorted(
            (
                r["user_id"],
                r["label_time_us"],
                r["label_video_id"],
                r["label_end_us"],
                r["watch_history_video_id"],
                r["watch_history_event_time_us"],
                str(r["watch_history_watch_time_s"]),
                r["search_query"],
                r["search_event_time_us"],
                r["user_region"],
            )
            for r in stored
        )
        for r in stored[:5]:
            keys = [pa.array([r["user_id"]]), pa.array([r["label_video_id"]])]
            draw = mix(
                daily.SEED,
                *(hash_strings(k) for k in keys),
                np.array([r["label_time_us"]]),
            )
            assert r["priority"] == int(draw[0])
        total += len(stored)
    assert counts["retrieval_examples"] == total
    assert min(carried, running) > 10  # The cases are there.

    midnight = daily.START + daily.NUM_DAYS * daily.DAY
    for table, rows, length, column in (
        ("watches", watches, daily.H, "video_id"),
        ("searches", searches, daily.S, "query"),
    ):
        stored = daily.rows_of(whole, f"state/{table}-*.parquet")
        for user in regions:
            kept = [r for r in stored if r["user_id"] == user]
            last = past(rows, user, midnight, length)[::-1]
            assert [(r[column], r["event_time_us"]) for r in kept] == [
                (r[column], r["event_time_us"]) for r in last
            ]


def test_rows_before_the_days_are_counted_and_not_read(tmp_path: Path) -> None:
    """Given the whole log again, a later day reads only its own rows."""
    log = daily.random_log(1)
    first, _ = daily.run_days(tmp_path / "a", daily.of_days(log, 0, 1), 0, 1)
    only, none_skipped = daily.run_days(
        tmp_path / "b",
        daily.of_days(log, 1, daily.NUM_DAYS),
        1,
        daily.NUM_DAYS,
        first,
    )
    again, skipped = daily.run_days(
        tmp_path / "c", log, 1, daily.NUM_DAYS, first
    )
    assert daily.hashes(again) == daily.hashes(only)
    times = log["watches"].filter(pc.invert(log["watches"]["undated"]))
    early = np.sum(times["event_time_us"].to_numpy() < daily.START + daily.DAY)
    assert skipped["watches_before_since"] == early > 0
    assert skipped["undated_watches_not_first"] == 12
    assert none_skipped["watches_before_since"] == 0


def test_a_user_without_events_keeps_the_state(tmp_path: Path) -> None:
    log = daily.random_log(2)
    first, _ = daily.run_days(tmp_path, daily.of_days(log, 0, 1), 0, 1)
    quiet = {
        table: rows.filter(pc.not_equal(rows["user_id"], "u3"))
        for table, rows in daily.of_days(log, 1, 2).items()
    }
    second, _ = daily.run_days(tmp_path, quiet, 1, 2, first)
    for table in ("watches", "searches"):
        before, after = (
            [
                r
                for r in daily.rows_of(folder, f"state/{table}-*")
                if r["user_id"] == "u3"
            ]
            for folder in (first, second)
        )
        assert before == after != []


def test_the_days_are_told_of_as_they_are_read(tmp_path: Path) -> None:
    log = daily.of_days(daily.random_log(3), 0, 2)
    schema, files = (
        EventSchema.of_tables(log),
        daily.write_log(tmp_path / "log", log),
    )
    timed = {t: files[t] for t in ("watches", "searches")}
    found = daily_examples.event_days(
        timed, schema, daily.OFFSET_HOURS, str(tmp_path), pipeline_options()
    )
    assert found == (daily.FIRST, daily.FIRST + datetime.timedelta(1))
    assert not (tmp_path / "range.json").exists()
    out, _ = daily.run_days(tmp_path, log, 0, 2)
    days = DayRange.read(str(out / DAYS_FILE))
    assert (
        days.start_us == daily.START
        and days.end_us == daily.START + 2 * daily.DAY
    )
    assert list(days) == list(found)
