"""Next-watch examples against loops over the raw rows; rules by hand."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.example_files import read_examples
from beam_jobs.retrieval_examples import run
from beam_jobs.runners import pipeline_options
from schemas.config import (
    BeamConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.events import EventSchema
from schemas.examples import retrieval_keys
from schemas.features import feature_set
from schemas.hashing import hash_strings, mix
from schemas.split import SplitBounds
from schemas.vocabularies import Vocabulary, vocabulary_files

S = 1_000_000
TRAIN_END, VALID_END, TEST_END = 1000 * S, 2000 * S, 3000 * S
BOUNDS = SplitBounds("time", 0, TRAIN_END, VALID_END, 0.0)
PARTS = {
    "train": (-(10**6) * S, TRAIN_END),
    "valid": (TRAIN_END, VALID_END),
    "test": (VALID_END, TEST_END),
}
# v7, v8, ... have no id.
VIDEO_IDS = {f"v{i}": i for i in range(1, 7)}
HISTORY, SEARCHES = 4, 2
SCHEMA = EventSchema(
    {
        "watches": (
            "user_id",
            "video_id",
            "event_time_us",
            "watch_time_s",
            "completed",
            "source",
            "undated",
        ),
        "searches": ("user_id", "query", "event_time_us"),
        "users": ("user_id", "region"),
    }
)


class TinyTransform:
    """A real lookup of videos; a query's token is its length."""

    def __call__(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        def lookup(name: bytes) -> int:
            return VIDEO_IDS.get(name.decode(), 0) if name else -1

        watched = np.vectorize(lookup, otypes=[np.int64])(
            raw["watch_history_video_id"]
        )
        asked = np.vectorize(lambda q: len(q) or -1, otypes=[np.int64])(
            raw["search_query"]
        )
        region = np.array([len(r) for r in raw["user_region"]], np.int64)
        return {
            "watch_history": watched,
            "search_tokens": asked,
            "user_region": region,
        }


def config(**changes: object) -> RetrievalExamplesConfig:
    return RetrievalExamplesConfig(
        **{
            "examples_per_user": 3,
            "history_length": HISTORY,
            "searches": SEARCHES,
            **changes,
        }
    )


def build(
    folder: Path,
    watches: list[tuple],
    searches: list[tuple] = (),
    users: list[tuple] = (),
    *,
    parts: tuple[str, ...] = ("train", "valid"),
    num_shards: int = 2,
    seed: int = 5,
    retrieval: RetrievalExamplesConfig | None = None,
    pieces: int = 1,
    flags: tuple[str, ...] = (),
) -> tuple[dict[str, list[dict]], dict[str, int]]:
    """Runs the job on (user, video, second, watch time, completed, undated).

    Returns the examples per part, and the counts.
    """
    retrieval = retrieval or config()
    out, vocabularies = folder / "out", folder / "vocabularies"
    for path in (folder, out, vocabularies):
        path.mkdir(exist_ok=True)
    Vocabulary.of_terms(
        "video", list(VIDEO_IDS), [9 - i for i in VIDEO_IDS.values()]
    ).write(*vocabulary_files(str(vocabularies), "video"))

    def files(table: str, name: str, rows: list[tuple]) -> list[str]:
        schema = SCHEMA.arrow(table)
        columns = list(zip(*rows, strict=True)) or [[]] * len(schema)
        whole = pa.table(
            [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)],
            schema=schema,
        )
        paths = []
        for i in range(pieces):
            path = folder / f"{table}-{name}-{i}.parquet"
            pq.write_table(
                whole.take(pa.array(range(i, len(rows), pieces), pa.int64())),
                path,
                row_group_size=10,
            )
            paths.append(str(path))
        return paths

    split: dict[str, dict[str, list[str]]] = {}
    for name, (low, high) in PARTS.items():
        inside = [
            (u, v, int(t * S), w, c, "home", x)
            for u, v, t, w, c, x in watches
            if low <= t * S < high
        ]
        asked = [
            (u, q, int(t * S)) for u, q, t in searches if low <= t * S < high
        ]
        split[name] = {
            "watches": files("watches", name, inside),
            "searches": files("searches", name, asked),
        }
    if "test" not in parts:
        del split["test"]
    counts = run(
        split,
        files("users", "all", list(users)),
        BOUNDS,
        str(vocabularies),
        TinyTransform(),
        SCHEMA,
        retrieval,
        RankingExamplesConfig(),
        BeamConfig(num_shards=num_shards),
        seed,
        str(out),
        pipeline_options(flags),
        parts,
    )
    features = feature_set(SCHEMA, retrieval, RankingExamplesConfig())
    examples = {}
    for part in parts:
        keys = retrieval_keys(
            features,
            "train" if part == "train" else "evaluation",
            example_age=retrieval.example_age,
        )
        paths = sorted(out.glob(f"{part}-*.tfrecord"))
        assert len(paths) == num_shards
        examples[part] = list(read_examples(map(str, paths), keys))
    return examples, counts


def plain(example: dict) -> dict:
    """NumPy values as Python's."""
    return {
        name: value if isinstance(value, bytes) else value.tolist()
        for name, value in example.items()
    }


def history(watches: list[tuple], user: str, now: float) -> list[int]:
    past = sorted(
        ((t, v) for u, v, t, *_ in watches if u == user and t < now),
        reverse=True,
    )
    return [VIDEO_IDS.get(v, 0) for _, v in past][:HISTORY]


def asked_before(searches: list[tuple], user: str, now: float) -> list[int]:
    past = sorted(
        ((t, q) for u, q, t in searches if u == user and t < now),
        reverse=True,
    )
    return [len(q) for _, q in past][:SEARCHES]


def random_log(seed: int) -> tuple[list[tuple], list[tuple], list[tuple]]:
    rng = np.random.default_rng(seed)
    users = ["ann", "bo", "cy", "dé", "eve"]
    watches = [
        (
            users[rng.integers(5)],
            f"v{rng.integers(1, 9)}",
            float(rng.integers(-100, 3000)),
            [None, 1.0, 40.0][rng.integers(3)],
            bool(rng.random() < 0.7),
            None,
        )
        for _ in range(160)
    ]
    # Whatever lies before the log's start has no date.
    watches = [
        (*row[:5], True) if row[2] < 0 else row
        for row in {(r[0], r[1], r[2]): r for r in watches}.values()
    ]
    searches = [
        (
            users[rng.integers(5)],
            "q" * int(rng.integers(1, 9)),
            float(rng.integers(0, 3000)),
        )
        for _ in range(60)
    ]
    return watches, searches, [("ann", "DE"), ("cy", "USA"), ("eve", None)]


@pytest.mark.parametrize("seed", [1, 2])
def test_training_examples_equal_a_loop(tmp_path: Path, seed: int) -> None:
    watches, searches, users = random_log(seed)
    examples, counts = build(
        tmp_path / "a", watches, searches, users, seed=seed
    )
    regions = {"ann": 2, "cy": 3}
    eligible: dict[str, list[tuple]] = {}
    unknown = 0
    for user, video, time, spent, completed, undated in watches:
        if not completed or undated or time >= 1000:
            continue
        if time + (spent or 0) > 1000:  # Ends after training.
            continue
        if video not in VIDEO_IDS:
            unknown += 1
            continue
        key = mix(
            seed,
            hash_strings(pa.array([user])),
            hash_strings(pa.array([video])),
            np.array([int(time * S)]),
        )
        eligible.setdefault(user, []).append((int(key[0]), time, video))
    expected = []
    for user, labels in eligible.items():
        chosen = sorted(labels)[:3]
        for _, time, video in chosen:
            expected.append(
                {
                    "user_id": user.encode(),
                    "event_time_us": int(time * S),
                    "label": VIDEO_IDS[video],
                    "example_weight": float(np.float32(3 / len(chosen))),
                    "example_age": float(np.float32((1000 - time) / 1000)),
                    "watch_history": history(watches, user, time),
                    "search_tokens": asked_before(searches, user, time),
                    "user_region": regions.get(user, 0),
                }
            )

    def order(example: dict) -> tuple:
        return example["user_id"], example["event_time_us"], example["label"]

    found = [plain(e) for e in examples["train"]]
    assert sorted(found, key=order) == sorted(expected, key=order)
    assert len(found) >= 10
    assert counts["train_examples"] == len(expected)
    assert counts["train_users"] == len(eligible)
    assert counts["train_labels_out_of_vocabulary"] == unknown


@pytest.mark.parametrize("part", ["valid", "test"])
def test_evaluation_cases_equal_a_loop(tmp_path: Path, part: str) -> None:
    watches, searches, users = random_log(3)
    examples, counts = build(
        tmp_path / "a", watches, searches, users, parts=(part,)
    )
    low, high = (edge // S for edge in PARTS[part])
    expected = {}
    for user in {w[0] for w in watches}:
        inside = sorted(
            (t, v)
            for u, v, t, _, completed, _ in watches
            if u == user and completed and low <= t < high
        )
        if not inside:
            continue
        now = inside[0][0]
        # All that came before: also undated, not completed, this part's.
        seen = {v for u, v, t, *_ in watches if u == user and t < now}
        expected[user.encode()] = {
            "event_time_us": int(now * S),
            "labels": [VIDEO_IDS.get(v, 0) for _, v in inside],
            "seen": sorted(VIDEO_IDS[v] for v in seen if v in VIDEO_IDS),
            "watch_history": history(watches, user, now),
            "search_tokens": asked_before(searches, user, now),
            "user_region": {"ann": 2, "cy": 3}.get(user, 0),
        }
    found = {e["user_id"]: plain(e) for e in examples[part]}
    for user, example in found.items():
        assert example.pop("user_id") == user
    assert found == expected
    assert len(found) == len(examples[part]) == counts[f"{part}_users"]
    unknown = sum(e["labels"].count(0) for e in expected.values())
    assert unknown > 0
    assert counts[f"{part}_labels_out_of_vocabulary"] == unknown


def test_time_rules_of_labels_by_hand(tmp_path: Path) -> None:
    watches = [
        ("a", "v1", -5.0, 1.0, True, True),  # Undated: context, no label.
        ("a", "v2", 10.0, 1.0, True, None),
        ("a", "v3", 10.0, 1.0, True, None),  # Not before v2: the same time.
        ("a", "v4", 20.0, 1.0, False, None),  # Not completed: no label.
        ("a", "v5", 990.0, 10.0, True, None),  # Ends with training.
        ("a", "v6", 990.5, 10.0, True, None),  # Ends after it.
        ("a", "v9", 30.0, 1.0, True, None),  # Out of vocabulary.
    ]
    examples, _ = build(
        tmp_path / "a", watches, retrieval=config(examples_per_user=20)
    )
    found = sorted(
        (e["event_time_us"] // S, int(e["label"]), e["watch_history"].tolist())
        for e in examples["train"]
    )
    assert found == [
        (10, 2, [1]),
        (10, 3, [1]),
        (990, 5, [0, 4, 3, 2]),  # v9 is known to have been watched: id 0.
    ]
    weights = {float(e["example_weight"]) for e in examples["train"]}
    # 20 / 3 in float32.
    assert weights == {float(np.float32(20 / 3))}
    ages = sorted(float(e["example_age"]) for e in examples["train"])
    # (1000 - 990) / 1000 and twice (1000 - 10) / 1000.
    np.testing.assert_allclose(ages, [0.01, 0.99, 0.99], rtol=1e-6)


def test_fixed_number_per_user_and_weights(tmp_path: Path) -> None:
    watches = [("much", "v1", float(t), 1.0, True, None) for t in range(50)]
    watches += [("few", "v2", float(t), 1.0, True, None) for t in range(2)]
    examples, _ = build(tmp_path / "a", watches)
    weight: dict[bytes, list[float]] = {}
    for example in examples["train"]:
        weight.setdefault(example["user_id"], []).append(
            float(example["example_weight"])
        )
    # N = 3: each user weighs 3 in all.
    assert weight == {b"much": [1.0] * 3, b"few": [1.5] * 2}
    other, _ = build(tmp_path / "b", watches, seed=6)
    times = [
        {int(e["event_time_us"]) for e in run_["train"]}
        for run_ in (examples, other)
    ]
    assert times[0] != times[1]
    plain_weights, _ = build(
        tmp_path / "c", watches, retrieval=config(equal_user_weights=False)
    )
    assert {float(e["example_weight"]) for e in plain_weights["train"]} == {1.0}
    everything, counts = build(
        tmp_path / "d", watches, retrieval=config(examples_per_user=None)
    )
    assert counts["train_examples"] == 52
    assert {float(e["example_weight"]) for e in everything["train"]} == {1.0}


def test_example_age_can_be_off(tmp_path: Path) -> None:
    examples, _ = build(
        tmp_path / "a",
        [("a", "v1", 1.0, 1.0, True, None)],
        retrieval=config(example_age=False),
    )
    assert "example_age" not in examples["train"][0]


def hashes(folder: Path) -> dict[str, str]:
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted((folder / "out").iterdir())
    }


def test_order_files_and_threads_leave_no_trace(tmp_path: Path) -> None:
    log = random_log(4)
    build(tmp_path / "one", *log)
    turned = [rows[::-1] for rows in log]
    threads = (
        "--direct_num_workers=2",
        "--direct_running_mode=multi_threading",
    )
    build(tmp_path / "two", *turned, pieces=3, flags=threads)
    one = hashes(tmp_path / "one")
    assert len(one) == 4
    assert one == hashes(tmp_path / "two")


def test_choice_does_not_depend_on_shards(tmp_path: Path) -> None:
    log = random_log(4)

    def chosen(name: str, num_shards: int) -> list[str]:
        examples, _ = build(tmp_path / name, *log, num_shards=num_shards)
        return sorted(str(plain(e)) for part in examples.values() for e in part)

    one = chosen("one", 1)
    assert one == chosen("seven", 7)
    assert len(one) >= 10


def test_later_events_do_not_touch_training_files(tmp_path: Path) -> None:
    watches, searches, users = random_log(4)
    build(tmp_path / "one", watches, searches, users)
    garbage = [
        w if w[2] < 1000 else ("bo", "v3", w[2], 9.0, True, None)
        for w in watches
    ]
    asked = [s if s[2] < 1000 else (s[0], "?", s[2]) for s in searches]
    build(tmp_path / "two", garbage, asked, users)
    one, two = hashes(tmp_path / "one"), hashes(tmp_path / "two")
    for name in one:
        assert (one[name] == two[name]) == name.startswith("train"), name


def test_held_out_labels_see_all_other_watches(tmp_path: Path) -> None:
    # v2 twice: the label's own watch goes, the other one of it stays. At 999
    # a fifth watch: the history of four is the last four of the other five.
    seconds = [(100, "v1"), (200, "v2"), (300, "v3"), (400, "v2"), (500, "v4")]
    late = (999, "v5")
    watches = [
        ("ann", video, float(time), 1.0, time != 999, False)
        for time, video in [*seconds, late]
    ]
    # What was asked after the label is seen, but nothing of validation.
    searches = [("ann", "q", 50.0), ("ann", "qqq", 900.0), ("ann", "qq", 1500)]
    examples, _ = build(
        tmp_path / "a",
        watches,
        searches,
        retrieval=config(label="held_out_watch", examples_per_user=None),
    )
    found = {
        e["event_time_us"] // S: (
            int(e["label"]),
            e["watch_history"].tolist(),
            e["search_tokens"].tolist(),
        )
        for e in examples["train"]
    }
    assert found == {
        100: (1, [5, 4, 2, 3], [3, 1]),
        200: (2, [5, 4, 2, 3], [3, 1]),
        300: (3, [5, 4, 2, 2], [3, 1]),
        400: (2, [5, 4, 3, 2], [3, 1]),
        500: (4, [5, 2, 3, 2], [3, 1]),
    }
    # The age stays the label's: (1000 - 100) / 1000.
    (oldest,) = (e for e in examples["train"] if e["label"] == 1)
    assert oldest["example_age"] == pytest.approx(0.9)
