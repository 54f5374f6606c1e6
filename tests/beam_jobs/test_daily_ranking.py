"""A day's ranking requests against loops over the whole log."""

import datetime
import math
from pathlib import Path

import pyarrow as pa

from tests.beam_jobs import awkward_log as daily


def test_requests_are_those_of_the_whole_log(tmp_path: Path) -> None:
    """Also those that go on after midnight: one cut, one context, one key."""
    log = daily.with_impressions(daily.random_log(7), 7)
    chain: list[Path] = []
    for number in range(daily.NUM_DAYS):
        part, parent = daily.of_days(log, number, number + 1), chain[-1:]
        out, _ = daily.run_days(tmp_path, part, number, number + 1, *parent)
        chain.append(out)

    shown = log["impressions"].to_pylist()
    groups: dict[tuple, list[dict]] = {}
    for r in shown:
        name = r["request_id"] or r["event_time_us"]
        groups.setdefault((r["user_id"], name), []).append(r)
    watches = sorted(
        log["watches"].to_pylist(),
        key=lambda r: (r["event_time_us"], r["video_id"]),
    )
    expected: dict[int, list[tuple]] = {n: [] for n in range(daily.NUM_DAYS)}
    spanning = 0
    for (user, _), rows in groups.items():
        cut = min(r["event_time_us"] for r in rows)
        history, seen = (
            [
                (e["video_id"], e["event_time_us"])
                for e in events
                if e["user_id"] == user and e["event_time_us"] < cut
            ][::-1][: daily.H]
            for events in (watches, shown_in_order(shown))
        )
        days = sorted(
            {(r["event_time_us"] - daily.START) // daily.DAY for r in rows}
        )
        spanning += len(days) > 1
        for number in days:
            of_day = sorted(
                (
                    r
                    for r in rows
                    if (r["event_time_us"] - daily.START) // daily.DAY == number
                ),
                key=lambda r: (
                    r["position"] or 0,
                    *(r["video_id"], r["event_time_us"]),
                ),
            )
            today = daily.START + (cut - daily.START) // daily.DAY * daily.DAY
            for i in range(0, len(of_day), 3):
                some = of_day[i : i + 3]
                before = [
                    [
                        e
                        for e in shown
                        if e["video_id"] == r["video_id"]
                        and e["event_time_us"] < today
                    ]
                    for r in some
                ]
                expected[number].append(
                    (
                        *(user, cut, history, seen, some[0]["surface"]),
                        [r["video_id"] for r in some],
                        [r["position"] or 0 for r in some],
                        [float(r["clicked"]) for r in some],
                        [len(b) for b in before],
                        [mean_watch_time_s(b, today) for b in before],
                    )
                )
    assert spanning > 5
    for number, folder in enumerate(chain):
        day = daily.FIRST + datetime.timedelta(number)
        stored = daily.rows_of(folder, f"{day}/ranking-*.parquet")
        assert len({r["request_key"] for r in stored}) == len(
            {(r["user_id"], r["request_time_us"]) for r in stored}
        )
        assert sorted(expected[number]) == sorted(
            (
                *(r["user_id"], r["request_time_us"]),
                history_of(r, "watch"),
                history_of(r, "impression"),
                *(r["surface"], r["candidate_video_id"]),
                *(r["candidate_position"], r["labels.clicked"]),
                r["video_lagged_impressions"],
                [
                    None if math.isnan(s) else round(s, 2)
                    for s in r["video_lagged_watch_time_s"]
                ],
            )
            for r in stored
        )


def mean_watch_time_s(shown: list[dict], today_us: int) -> float | None:
    """Of the impressions; watch time counts once it has been spent."""
    spent = [
        r["watch_time_s"]
        for r in shown
        if r["event_time_us"] + round(r["watch_time_s"] * 1e6) <= today_us
    ]
    return round(sum(spent) / len(shown), 2) if shown else None


def shown_in_order(shown: list[dict]) -> list[dict]:
    return sorted(shown, key=lambda r: (r["event_time_us"], r["video_id"]))


def history_of(row: dict, kind: str) -> list[tuple[str, int]]:
    videos = row[f"{kind}_history_video_id"]
    times = row[f"{kind}_history_event_time_us"]
    return list(zip(videos, times, strict=True))


def test_a_request_goes_on_over_one_midnight_and_while_remembered(
    tmp_path: Path,
) -> None:
    """Times in minutes of three days; H is 4."""
    log = daily.random_log(0)
    day, late = 24 * 60, 24 * 60 - 9
    shown = [
        # a: begun on the first day, seen on all three.
        ("u2", "a", late),
        ("u2", "a", day + 5),
        ("u2", "a", 2 * day + 5),
        # b: four impressions of another request follow before midnight.
        ("u3", "b", late),
        *(("u3", "c", late + 1 + i) for i in range(4)),
        ("u3", "b", day + 5),
        ("u3", "c", day + 6),
        # d: its first impression is not among the last H, others are.
        *(("u4", "d", late - 20 + i) for i in range(6)),
        ("u4", "d", day + 5),
    ]
    log |= {
        "videos": daily.with_impressions(log, 0)["videos"],
        "impressions": pa.table(
            {
                "user_id": [user for user, _, _ in shown],
                "video_id": [f"v{i % 9}" for i in range(len(shown))],
                "event_time_us": [
                    daily.START + minute * 60_000_000 for _, _, minute in shown
                ],
                "surface": ["home"] * len(shown),
                "clicked": [False] * len(shown),
                "watch_time_s": [0.0] * len(shown),
                "request_id": [name for _, name, _ in shown],
            }
        ),
    }
    cuts, parent = [], []
    for number in range(3):
        part = daily.of_days(log, number, number + 1)
        out, _ = daily.run_days(tmp_path, part, number, number + 1, *parent)
        parent = [out]
        date = daily.FIRST + datetime.timedelta(number)
        cuts.append(
            sorted(
                (r["request_time_us"] - daily.START) // 60_000_000
                for r in daily.rows_of(out, f"{date}/ranking-*.parquet")
            )
        )
    assert cuts == [
        # c has four impressions, d six: two examples of up to three each.
        [late - 20, late - 20, late, late, late + 1, late + 1],
        # a, c and d as they were cut before; b anew.
        [late - 20, late, late + 1, day + 5],
        # The second midnight: a anew.
        [2 * day + 5],
    ]
