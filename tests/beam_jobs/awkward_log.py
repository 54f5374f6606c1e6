"""A small log of awkward times, and runs over its days."""

import datetime
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs import daily_examples
from beam_jobs.runners import pipeline_options
from schemas.config import (
    BeamConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.days import DayRange
from schemas.events import TIMED_TABLES, EventSchema

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
        minutes = [*hours * 60, *(np.arange(1, NUM_DAYS) * 24 * 60 - 4)]
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
                        float(rng.integers(1, 4000)) / 7 if clicked else 0.0,
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
        users=files.get("users", []),
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
