"""Days one by one against all days at once, and against loops over rows."""

import datetime
import hashlib
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from beam_jobs import daily_examples, retrieval_examples, window_examples
from beam_jobs.runners import pipeline_options
from schemas.config import (
    BeamConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.days import DAYS_FILE, DayRange
from schemas.events import TIMED_TABLES, EventSchema
from schemas.hashing import hash_strings, mix
from schemas.split import SplitBounds
from schemas.vocabularies import Vocabulary, vocabulary_files

HOUR = 3_600_000_000
DAY = 24 * HOUR
# Local days begin at 22:00 UTC of the day before.
OFFSET_HOURS = 2.0
FIRST = datetime.date(2026, 1, 5)
START = (FIRST - datetime.date(1970, 1, 1)).days * DAY - 2 * HOUR
NUM_DAYS, SHARDS, SEED = 4, 2, 9
H, S = 4, 2
RETRIEVAL = RetrievalExamplesConfig(history_length=H, searches=S, max_list=2)
RANKING = RankingExamplesConfig(max_candidates=3)


def random_log(seed: int) -> dict[str, pa.Table]:
    """Few users and coarse times: ties, midnights, long watches, pauses."""
    rng = np.random.default_rng(seed)
    users = np.array([f"u{i}" for i in range(7)])

    def times(n: int) -> np.ndarray:
        # Every third hour, midnights among them.
        return START + rng.integers(0, NUM_DAYS * 8, n) * 3 * HOUR

    n, old = 150, 12
    # u0 is away on the second day; u1 is new on the third.
    user = rng.choice(users, n)
    time = times(n)
    day = (time - START) // DAY
    away = ((user == "u0") & (day == 1)) | ((user == "u1") & (day < 2))
    watches = pa.table(
        {
            "user_id": np.append(user, rng.choice(users, old)),
            "video_id": rng.choice([f"v{i}" for i in range(9)], n + old),
            "event_time_us": np.append(
                time, START - 1_000_000 * rng.integers(1, 9, old)
            ),
            "watch_time_s": pa.array(
                rng.choice([30.0, 4000.0, 50_000.0], n + old),
                mask=rng.random(n + old) < 0.1,
            ),
            "completed": rng.random(n + old) < 0.7,
            "source": rng.choice(["home", "search"], n + old),
            "undated": [False] * n + [True] * old,
        }
    )
    searches = pa.table(
        {
            "user_id": rng.choice(users, 60),
            "query": rng.choice(["cat", "", "two words"], 60),
            "event_time_us": times(60),
        }
    )
    profile = pa.table(
        {"user_id": users, "region": ["DE", None, ""] + 4 * ["X"]}
    )
    keep = np.append(~away, np.ones(old, bool))
    return {
        "watches": watches.filter(pa.array(keep)),
        "searches": searches,
        "users": profile,
    }


def with_impressions(log: dict[str, pa.Table], seed: int) -> dict:
    """The log with requests, many of which go on after midnight."""
    rng = np.random.default_rng(seed)
    rows: list[tuple] = []
    for user in log["users"].column("user_id").to_pylist():
        hours = rng.choice(np.arange(NUM_DAYS * 8) * 3 + 1, 9, replace=False)
        minutes = [*hours * 60, *(np.arange(1, NUM_DAYS) * 24 * 60 - 7)]
        for number, minute in enumerate(minutes):
            name = f"{user}-{number}" if rng.random() < 0.9 else None
            for place in range(int(rng.integers(1, 6))):
                seconds = 60 * int(minute) + 150 * place
                clicked = bool(rng.random() < 0.4)
                rows.append(
                    (
                        user,
                        f"v{rng.integers(0, 9)}",
                        START + seconds * 1_000_000,
                        ["home", "next"][number % 2],
                        clicked,
                        float(rng.integers(1, 400)) / 7 if clicked else 0.0,
                        name,
                        None if rng.random() < 0.1 else place + 1,
                    )
                )
    names = EventSchema(
        {
            "impressions": (
                *("user_id", "video_id", "event_time_us", "surface"),
                *("clicked", "watch_time_s", "request_id", "position"),
            )
        }
    ).arrow("impressions")
    columns = [list(c) for c in zip(*rows, strict=True)]
    videos = [f"v{i}" for i in range(9)]
    return log | {
        "impressions": pa.table(columns, schema=names),
        "videos": pa.table(
            {
                "video_id": videos,
                "channel_id": ["c1", "c2", None] * 3,
                "topics": [["t"]] * 9,
                "upload_time_us": [START] * 9,
                "duration_s": [60.0] * 9,
            }
        ),
    }


def write_log(folder: Path, log: dict[str, pa.Table]) -> dict[str, list[str]]:
    """Two files a table, rows in any order."""
    folder.mkdir()
    schema = EventSchema.of_tables(log)
    files = {}
    for table, rows in log.items():
        kinds = schema.arrow(table)
        rows = rows.select(kinds.names).cast(kinds)
        files[table] = []
        for i in range(2):
            path = str(folder / f"{table}-{i}.parquet")
            some = np.arange(i, rows.num_rows, 2)[::-1]
            pq.write_table(rows.take(pa.array(some)), path)
            files[table].append(path)
    return files


def of_days(
    log: dict[str, pa.Table], first: int, end: int
) -> dict[str, pa.Table]:
    """The events of some days; undated ones belong to the first."""
    part = dict(log)
    for table in set(log) & set(TIMED_TABLES):
        times = log[table].column("event_time_us").to_numpy()
        low = START + first * DAY if first else 0
        keep = (times >= low) & (times < START + end * DAY)
        part[table] = log[table].filter(pa.array(keep))
    return part


def run_days(
    folder: Path,
    log: dict[str, pa.Table],
    first: int,
    end: int,
    parent: Path | None = None,
    cap: int = 1000,
) -> tuple[Path, dict[str, int]]:
    """Runs the days first .. end - 1 on events, all of which it is given."""
    out = folder / f"days-{first}-{end}"
    out.mkdir(parents=True)
    files = write_log(folder / f"events-{first}-{end}", log)
    counts = daily_examples.run(
        event_files=files,
        users=files["users"],
        videos=files.get("videos", []),
        schema=EventSchema.of_tables(log),
        days=DayRange(
            FIRST + datetime.timedelta(first),
            FIRST + datetime.timedelta(end),
            OFFSET_HOURS,
        ),
        parent=str(parent) if parent else None,
        retrieval=RETRIEVAL,
        ranking=RANKING,
        shards=BeamConfig(num_shards=SHARDS, max_events_per_user=cap),
        seed=SEED,
        output=str(out),
        options=pipeline_options(),
    )
    return out, counts


def hashes(*folders: Path) -> dict[str, str]:
    """Name -> sha256; of a name in several folders, the last."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob("*.parquet"))
    }


def rows_of(folder: Path, pattern: str) -> list[dict]:
    paths = sorted(folder.glob(pattern))
    assert len(paths) == SHARDS
    return [r for p in paths for r in pq.read_table(p).to_pylist()]


@pytest.mark.parametrize(("seed", "cap"), [(0, 1000), (1, 1000), (2, 3)])
def test_days_one_by_one_are_all_days_at_once(
    seed: int, cap: int, tmp_path: Path
) -> None:
    log = with_impressions(random_log(seed), seed)
    whole, counts = run_days(tmp_path / "whole", log, 0, NUM_DAYS, cap=cap)
    chain: list[Path] = []
    # The second run is given two days, the others one.
    for first, end in ((0, 1), (1, 3), (3, 4)):
        parent = chain[-1] if chain else None
        part = of_days(log, first, end)
        out, _ = run_days(tmp_path / "days", part, first, end, parent, cap)
        chain.append(out)
    # 4 days of two kinds, a state of three, a file for each shard; the videos.
    files = (NUM_DAYS * 2 + 3) * SHARDS + NUM_DAYS + 1
    assert len(hashes(whole)) == files
    assert hashes(*chain) == hashes(whole)
    assert (counts["watches_over_user_cap"] > 0) == (cap == 3)


@pytest.mark.parametrize("seed", [4, 5])
def test_examples_and_state_hold_what_loops_over_the_rows_find(
    seed: int, tmp_path: Path
) -> None:
    log = random_log(seed)
    whole, counts = run_days(tmp_path, log, 0, NUM_DAYS)
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
    for number in range(NUM_DAYS):
        low = START + number * DAY
        day = FIRST + datetime.timedelta(number)
        expected = []
        for r in watches:
            time = r["event_time_us"]
            if (
                not (r["completed"] and not r["undated"])
                or not low <= time < low + DAY
            ):
                continue
            seen = past(watches, r["user_id"], time, H)
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
            asked = past(searches, r["user_id"], time, S)
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
        stored = rows_of(whole, f"{day}/retrieval-*.parquet")
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
                SEED,
                *(hash_strings(k) for k in keys),
                np.array([r["label_time_us"]]),
            )
            assert r["priority"] == int(draw[0])
        total += len(stored)
    assert counts["retrieval_examples"] == total
    assert min(carried, running) > 10  # The cases are there.

    midnight = START + NUM_DAYS * DAY
    for table, rows, length, column in (
        ("watches", watches, H, "video_id"),
        ("searches", searches, S, "query"),
    ):
        stored = rows_of(whole, f"state/{table}-*.parquet")
        for user in regions:
            kept = [r for r in stored if r["user_id"] == user]
            last = past(rows, user, midnight, length)[::-1]
            assert [(r[column], r["event_time_us"]) for r in kept] == [
                (r[column], r["event_time_us"]) for r in last
            ]


def test_requests_are_those_of_the_whole_log(tmp_path: Path) -> None:
    """Also those that go on after midnight: one cut, one context, one key."""
    log = with_impressions(random_log(7), 7)
    chain: list[Path] = []
    for number in range(NUM_DAYS):
        part, parent = of_days(log, number, number + 1), chain[-1:]
        out, _ = run_days(tmp_path, part, number, number + 1, *parent)
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
    expected: dict[int, list[tuple]] = {n: [] for n in range(NUM_DAYS)}
    spanning = 0
    for (user, _), rows in groups.items():
        cut = min(r["event_time_us"] for r in rows)
        history, seen = (
            [
                (e["video_id"], e["event_time_us"])
                for e in events
                if e["user_id"] == user and e["event_time_us"] < cut
            ][::-1][:H]
            for events in (watches, shown_in_order(shown))
        )
        days = sorted({(r["event_time_us"] - START) // DAY for r in rows})
        spanning += len(days) > 1
        for number in days:
            of_day = sorted(
                (
                    r
                    for r in rows
                    if (r["event_time_us"] - START) // DAY == number
                ),
                key=lambda r: (
                    r["position"] or 0,
                    *(r["video_id"], r["event_time_us"]),
                ),
            )
            today = START + (cut - START) // DAY * DAY
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
                    )
                )
    assert spanning > 5
    for number, folder in enumerate(chain):
        day = FIRST + datetime.timedelta(number)
        stored = rows_of(folder, f"{day}/ranking-*.parquet")
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
            )
            for r in stored
        )


def shown_in_order(shown: list[dict]) -> list[dict]:
    return sorted(shown, key=lambda r: (r["event_time_us"], r["video_id"]))


def history_of(row: dict, kind: str) -> list[tuple[str, int]]:
    videos = row[f"{kind}_history_video_id"]
    times = row[f"{kind}_history_event_time_us"]
    return list(zip(videos, times, strict=True))


def test_rows_before_the_days_are_counted_and_not_read(tmp_path: Path) -> None:
    """Given the whole log again, a later day reads only its own rows."""
    log = random_log(1)
    first, _ = run_days(tmp_path / "a", of_days(log, 0, 1), 0, 1)
    only, none_skipped = run_days(
        tmp_path / "b", of_days(log, 1, NUM_DAYS), 1, NUM_DAYS, first
    )
    again, skipped = run_days(tmp_path / "c", log, 1, NUM_DAYS, first)
    assert hashes(again) == hashes(only)
    times = log["watches"].filter(pc.invert(log["watches"]["undated"]))
    early = np.sum(times["event_time_us"].to_numpy() < START + DAY)
    assert skipped["watches_before_since"] == early > 0
    assert skipped["undated_watches_not_first"] == 12
    assert none_skipped["watches_before_since"] == 0


def test_a_user_without_events_keeps_the_state(tmp_path: Path) -> None:
    log = random_log(2)
    first, _ = run_days(tmp_path, of_days(log, 0, 1), 0, 1)
    quiet = {
        table: rows.filter(pc.not_equal(rows["user_id"], "u3"))
        for table, rows in of_days(log, 1, 2).items()
    }
    second, _ = run_days(tmp_path, quiet, 1, 2, first)
    for table in ("watches", "searches"):
        before, after = (
            [
                r
                for r in rows_of(folder, f"state/{table}-*")
                if r["user_id"] == "u3"
            ]
            for folder in (first, second)
        )
        assert before == after != []


def test_the_days_are_told_of_as_they_are_read(tmp_path: Path) -> None:
    log = of_days(random_log(3), 0, 2)
    schema, files = EventSchema.of_tables(log), write_log(tmp_path / "log", log)
    timed = {t: files[t] for t in ("watches", "searches")}
    found = daily_examples.event_days(
        timed, schema, OFFSET_HOURS, str(tmp_path), pipeline_options()
    )
    assert found == (FIRST, FIRST + datetime.timedelta(1))
    assert not (tmp_path / "range.json").exists()
    out, _ = run_days(tmp_path, log, 0, 2)
    days = DayRange.read(str(out / DAYS_FILE))
    assert days.start_us == START and days.end_us == START + 2 * DAY
    assert list(days) == list(found)


class TinyTransform:
    """Numbers that differ as soon as any input of the request does."""

    def __call__(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        watched = raw["watch_history_video_id"] != b""
        hours = (
            raw["request_time_us"][:, None] - raw["watch_history_event_time_us"]
        ) // HOUR
        seconds = np.nan_to_num(raw["watch_history_watch_time_s"], nan=7.0)
        names = np.vectorize(lambda v: int(v[1:] or 0), otypes=[np.int64])(
            raw["watch_history_video_id"]
        )
        history = (names * 1000 + hours) * 100_000 + seconds.astype(np.int64)
        asked = np.vectorize(len, otypes=[np.int64])(raw["search_query"])
        hours = raw["search_event_time_us"] // HOUR
        return {
            "watch_history": np.where(watched, history, -1),
            "search_tokens": np.where(hours > 0, hours * 100 + asked, -1),
            "user_region": np.array([len(r) for r in raw["user_region"]]),
        }


@pytest.mark.parametrize("limit", [3, 20, None])
def test_a_window_of_days_is_a_run_over_its_events(
    limit: int | None, tmp_path: Path
) -> None:
    log = random_log(6)
    schema, files = EventSchema.of_tables(log), write_log(tmp_path / "log", log)
    # v7, v8 have no id.
    terms = [f"v{i}" for i in range(7)]
    Vocabulary.of_terms("video", terms, range(7, 0, -1)).write(
        *vocabulary_files(str(tmp_path), "video")
    )
    retrieval = RETRIEVAL.model_copy(update={"examples_per_user": limit})
    bounds = SplitBounds(
        "time", START, START + NUM_DAYS * DAY, START + 9 * DAY, OFFSET_HOURS
    )
    (tmp_path / "direct").mkdir()
    direct = retrieval_examples.run(
        {"train": {t: files[t] for t in ("watches", "searches")}},
        files["users"],
        bounds,
        str(tmp_path),
        TinyTransform(),
        schema,
        retrieval,
        RANKING,
        BeamConfig(num_shards=SHARDS),
        SEED,
        str(tmp_path / "direct"),
        pipeline_options(),
        ("train",),
    )
    first, _ = run_days(tmp_path / "days", of_days(log, 0, 2), 0, 2)
    last, _ = run_days(
        tmp_path / "days", of_days(log, 2, NUM_DAYS), 2, NUM_DAYS, first
    )
    days = [str(FIRST + datetime.timedelta(i)) for i in range(NUM_DAYS)]
    folders = [str(first)] * 2 + [str(last)] * 2
    (tmp_path / "window").mkdir()
    counts = window_examples.run(
        days=dict(zip(days, folders, strict=True)),
        bounds=bounds,
        vocabularies=str(tmp_path),
        transform=TinyTransform(),
        schema=schema,
        retrieval=retrieval,
        ranking=RANKING,
        num_shards=SHARDS,
        output=str(tmp_path / "window"),
        options=pipeline_options(),
    )
    assert _examples(tmp_path / "window") == _examples(tmp_path / "direct")
    told = {n: c for n, c in direct.items() if n.startswith("train_")}
    assert counts == told
    # The cases are there: unknown videos, watches that had not ended.
    assert counts["train_labels_out_of_vocabulary"] > 10
    stored = [
        r
        for day, folder in zip(days, folders, strict=True)
        for r in rows_of(Path(folder), f"{day}/retrieval-*.parquet")
    ]
    running = [r for r in stored if r["label_end_us"] > bounds.train_end_us]
    assert len(running) > 3
    if limit == 3:
        assert counts["train_examples"] == 3 * counts["train_users"]
    if limit is None:
        out = counts["train_labels_out_of_vocabulary"]
        assert counts["train_examples"] == len(stored) - len(running) - out


def _examples(folder: Path) -> dict[str, str]:
    paths = sorted(folder.glob("train-*.tfrecord"))
    assert len(paths) == SHARDS
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
