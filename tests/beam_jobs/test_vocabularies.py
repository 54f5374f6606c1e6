"""Counts and order of the vocabularies, by hand."""

from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.runners import pipeline_options
from beam_jobs.vocabularies import (
    FANOUT,
    MergeCounts,
    most_frequent,
    run,
    term_columns,
)
from schemas.config import (
    BeamConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
    VocabulariesConfig,
)
from schemas.errors import InputError
from schemas.events import EventSchema, ExtraColumn
from schemas.features import feature_set
from schemas.split import SplitBounds
from schemas.vocabularies import read_vocabulary

S = 1_000_000
TRAIN_END = 10_000 * S
BOUNDS = SplitBounds("time", 0, TRAIN_END, 2 * TRAIN_END, 0.0)


def table(rows: list[tuple], **columns: pa.DataType) -> pa.Table:
    values = list(zip(*rows, strict=True)) or [[]] * len(columns)
    return pa.table(
        {
            name: pa.array(list(v), kind)
            for (name, kind), v in zip(columns.items(), values, strict=True)
        }
    )


TEXT, TIME, FLAG, REAL = pa.string(), pa.int64(), pa.bool_(), pa.float64()
LIST = pa.list_(pa.string())


def watch_table(rows: list[tuple]) -> pa.Table:
    """(user, video, second, watch time, completed, undated)."""
    full = [(u, v, t * S, w, c, "home", x) for u, v, t, w, c, x in rows]
    return table(
        full,
        user_id=TEXT,
        video_id=TEXT,
        event_time_us=TIME,
        watch_time_s=REAL,
        completed=FLAG,
        source=TEXT,
        undated=FLAG,
    )


def shown_table(rows: list[tuple]) -> pa.Table:
    """(user, video, second, clicked, surface, mood)."""
    full = [(u, v, t * S, f, c, 0.0, m) for u, v, t, c, f, m in rows]
    return table(
        full,
        user_id=TEXT,
        video_id=TEXT,
        event_time_us=TIME,
        surface=TEXT,
        clicked=FLAG,
        watch_time_s=REAL,
        mood=TEXT,
    )


VIDEOS = table(
    [
        ("v1", "c1", ["x", "y"], 1, 1.0, "en"),
        ("v2", "c1", ["y"], 1, 1.0, "de"),
        ("v3", None, None, 1, 1.0, None),
        ("v4", "c2", ["z", "x"], 1, 1.0, "en"),
    ],
    video_id=TEXT,
    channel_id=TEXT,
    topics=LIST,
    upload_time_us=TIME,
    duration_s=REAL,
    language=TEXT,
)
USERS = table(
    [("a", "DE", "de", True), ("b", "US", "en", None)],
    user_id=TEXT,
    region=TEXT,
    language=TEXT,
    logged_in=FLAG,
)
WATCHES = [
    ("a", "v1", 100, 5.0, True, None),
    ("a", "v1", 900, 5.0, True, False),
    ("b", "v1", 100, None, True, None),
    ("b", "v2", 200, 5.0, True, None),
    ("a", "v2", 300, 5.0, False, None),  # Not completed.
    ("a", "v4", 400, 5.0, True, True),  # Undated.
    ("b", "v4", 9_999, 2.0, True, None),  # Ends a second after training.
    ("b", "v3", 9_998, 2.0, True, None),  # Ends exactly with it.
]


def build(
    folder: Path,
    tables: dict[str, pa.Table],
    config: VocabulariesConfig | None = None,
    num_shards: int = 2,
) -> tuple[Path, dict[str, int]]:
    """Runs the job over `tables`; returns its folder and counts."""
    extras = {"impressions": (ExtraColumn("mood", "categorical"),)}
    if "impressions" not in tables:
        extras = {}
    schema = EventSchema.of_tables(tables, extras)
    folder.mkdir(exist_ok=True)
    files = {}
    for name, rows in tables.items():
        path = folder / f"{name}.parquet"
        rows = rows.select(schema.arrow(name).names)
        pq.write_table(rows, path, row_group_size=2)
        files[name] = [str(path)]
    out = folder / "out"
    out.mkdir()
    counts = run(
        {t: files[t] for t in files if t not in ("users", "videos")},
        files["users"],
        files["videos"],
        BOUNDS,
        schema,
        feature_set(schema, RetrievalExamplesConfig(), RankingExamplesConfig()),
        config or VocabulariesConfig(),
        BeamConfig(num_shards=num_shards),
        str(out),
        pipeline_options(),
    )
    return out, counts


def terms(folder: Path, space: str) -> list[tuple[str, int]]:
    vocabulary = read_vocabulary(str(folder), space)
    return list(
        zip(
            vocabulary.terms.to_pylist(),
            vocabulary.counts.tolist(),
            strict=True,
        )
    )


def test_watches_alone(tmp_path: Path) -> None:
    folder, counts = build(
        tmp_path / "v",
        {
            "watches": watch_table(WATCHES),
            "users": USERS,
            "videos": VIDEOS,
        },
    )
    # v1: a twice, b once; v2: b once; v3 ends with training; v4: never.
    assert terms(folder, "video") == [("v1", 3), ("v2", 1), ("v3", 1)]
    # No impressions: of a's two and b's three completed watches.
    assert terms(folder, "region") == [("US", 3), ("DE", 2)]
    assert terms(folder, "logged_in") == [("true", 2)]
    # The candidate's spaces exist only where there is a ranking model.
    assert not (folder / "channel.txt").exists()
    assert counts["video_terms"] == 3


def test_impressions_by_hand(tmp_path: Path) -> None:
    shown = [
        # a's watches of v1 begin at 100 and 900.
        ("a", "v1", 100, True, "home", "m1"),  # At once: already there.
        ("a", "v1", 299, True, "home", None),  # 601 s before 900: counts.
        ("a", "v1", 300, True, "next", "m2"),  # 600 s before: already.
        ("a", "v1", 901, True, "home", "m2"),  # After it: counts.
        ("b", "v4", 50, True, "home", "m2"),  # Watched at 9,999: counts.
        ("a", "v2", 299, True, "home", "m2"),  # Watch (not completed) at 300.
        ("b", "v2", 150, False, "home", "m3"),  # Not clicked.
    ]
    folder, _ = build(
        tmp_path / "v",
        {
            "watches": watch_table(WATCHES),
            "impressions": shown_table(shown),
            "users": USERS,
            "videos": VIDEOS,
        },
    )
    # Watches v1 3, v2 1, v3 1; plus clicks v1 2, v4 1. Ties by term.
    assert terms(folder, "video") == [
        ("v1", 5),
        ("v2", 1),
        ("v3", 1),
        ("v4", 1),
    ]
    # Clicked impressions, also those already among the watches: v1 four
    # times, v2 and v4 once. c1 = 4 + 1, c2 = 1.
    assert terms(folder, "channel") == [("c1", 5), ("c2", 1)]
    # x: v1 4 + v4 1; y: v1 4 + v2 1; z: v4.
    assert terms(folder, "topic") == [("x", 5), ("y", 5), ("z", 1)]
    # Videos: en 4 + 1, de 1. Users: a (de) clicked 5 times, b (en) once.
    assert terms(folder, "language") == [("de", 6), ("en", 6)]
    assert terms(folder, "region") == [("DE", 5), ("US", 1)]
    assert terms(folder, "surface") == [("home", 5), ("next", 1)]
    assert terms(folder, "mood") == [("m2", 4), ("m1", 1)]


def test_tokens_are_counted_over_searches(tmp_path: Path) -> None:
    asked = table(
        [
            ("a", 1, "New York"),
            ("b", 2, "new york"),
            ("b", 3, "york"),
            ("a", 4, "New York"),
        ],
        user_id=TEXT,
        event_time_us=TIME,
        query=TEXT,
    )
    folder, _ = build(
        tmp_path / "v",
        {
            "watches": watch_table(WATCHES),
            "searches": asked,
            "users": USERS,
            "videos": VIDEOS,
        },
    )
    # Unigrams and bigrams of three "new york" and one "york".
    assert terms(folder, "token") == [
        ("york", 4),
        ("new", 3),
        ("new york", 3),
    ]


def test_sizes_and_line_breaks(tmp_path: Path) -> None:
    rows = [
        ("a", video, i, None, True, None)
        for i, video in enumerate(["v1", "v1", "v2", "v3", "bad\nterm", "b\rd"])
    ]
    config = VocabulariesConfig(max_size={"video": 2}, default_max_size=1)
    folder, counts = build(
        tmp_path / "v",
        {"watches": watch_table(rows), "users": USERS, "videos": VIDEOS},
        config,
    )
    assert terms(folder, "video") == [("v1", 2), ("v2", 1)]
    assert counts["video_terms_refused"] == 2
    assert len(terms(folder, "region")) == 1


def test_no_completed_watch_is_an_input_error(tmp_path: Path) -> None:
    rows = [("a", "v1", 1, None, False, None)]
    with pytest.raises(InputError, match="No video to learn from"):
        build(
            tmp_path / "v",
            {"watches": watch_table(rows), "users": USERS, "videos": VIDEOS},
        )


def test_shards_leave_no_trace(tmp_path: Path) -> None:
    tables = {
        "watches": watch_table(WATCHES),
        "users": USERS,
        "videos": VIDEOS,
    }
    one, _ = build(tmp_path / "one", tables, num_shards=1)
    turned = {
        name: rows.take(pa.array(range(rows.num_rows)[::-1]))
        for name, rows in tables.items()
    }
    other, _ = build(tmp_path / "other", turned, num_shards=7)
    files = sorted(p.name for p in one.iterdir())
    assert files == sorted(p.name for p in other.iterdir())
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_order_is_by_count_then_bytes() -> None:
    counts = pa.table(
        {
            "term": ["b", "a", "é", "z", "B", "rare"],
            "count": pa.array([2, 2, 2, 9, 2, 1], pa.int64()),
        }
    )
    kept, refused = most_frequent(counts, max_size=10, min_count=2)
    assert kept.column("term").to_pylist() == ["z", "B", "a", "b", "é"]
    assert refused == 0
    kept, _ = most_frequent(counts, max_size=2, min_count=1)
    assert kept.column("term").to_pylist() == ["z", "B"]


def test_merging_equals_adding() -> None:
    def one(pairs: dict[str, int]) -> pa.Table:
        return pa.table(
            {
                "term": pa.array(list(pairs), pa.string()),
                "count": pa.array(list(pairs.values()), pa.int64()),
            }
        )

    merge = MergeCounts()
    accumulators = [merge.create_accumulator() for _ in range(3)]
    for i in range(100):
        accumulators[i % 3] = merge.add_input(
            accumulators[i % 3], one({"a": 1, f"t{i % 4}": i})
        )
    found = merge.extract_output(merge.merge_accumulators(accumulators))
    # t0: 0 + 4 + ... + 96 = 1,200; each further remainder adds 25.
    assert dict(zip(*found.to_pydict().values(), strict=True)) == {
        "a": 100,
        "t0": 1200,
        "t1": 1225,
        "t2": 1250,
        "t3": 1275,
    }


def test_term_columns_follow_the_schema() -> None:
    schema = EventSchema.of_tables(
        {"users": USERS, "videos": VIDEOS},
        {},
    )
    found = {(c.space, c.table, c.column) for c in term_columns(schema)}
    assert found == {
        ("channel", "videos", "channel_id"),
        ("topic", "videos", "topics"),
        ("language", "videos", "language"),
        ("region", "users", "region"),
        ("language", "users", "language"),
        ("logged_in", "users", "logged_in"),
    }


def test_fanout_and_bundles_leave_no_trace(tmp_path: Path) -> None:
    """Equal counts whichever way tables travel; what travels is added up."""
    tables = [
        pa.table({"term": ["a", f"t{i % 7}", "a"], "count": [1, i, i]})
        for i in range(60)
    ]
    expected = {"a": 60 + sum(range(60))} | {
        f"t{r}": sum(range(r, 60, 7)) for r in range(7)
    }
    merge = beam.CombinePerKey(MergeCounts())
    for name, combine in (
        ("plain", merge),
        ("fanout", merge.with_hot_key_fanout(FANOUT)),
    ):
        path = tmp_path / name
        options = pipeline_options(
            ("--direct_num_workers=3", "--direct_running_mode=multi_threading")
        )
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | beam.Create([("video", t) for t in tables])
                | combine
                | beam.Map(lambda kv, p=path: p.write_text(str(_pairs(kv[1]))))
            )
        assert path.read_text() == str(sorted(expected.items()))
    waiting = MergeCounts().add_input([tables[0]] * 9, tables[1])
    assert len(waiting) == 10
    (travels,) = MergeCounts().compact(waiting)
    assert _pairs(travels) == [("a", 11), ("t0", 0), ("t1", 1)]


def _pairs(counts: pa.Table) -> list[tuple[str, int]]:
    return sorted(zip(*counts.to_pydict().values(), strict=True))
