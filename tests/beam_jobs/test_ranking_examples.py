"""From a small log to transform graph and ranking examples, end to end."""

import hashlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import ranking_examples, transform
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.example_files import read_examples
from beam_jobs.lagged_statistics import LaggedStatistics
from beam_jobs.ranking_requests import RankingRequests
from beam_jobs.runners import pipeline_options
from beam_jobs.user_shards import GroupByUserShard
from schemas.config import (
    BeamConfig,
    NormalizationConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.events import TIMED_TABLES, EventSchema
from schemas.examples import ranking_keys
from schemas.features import feature_set
from schemas.requests import raw_inputs
from schemas.vocabularies import Vocabulary, vocabulary_files

DAY_US = 86_400_000_000
START_US = 19_723 * DAY_US
RETRIEVAL = RetrievalExamplesConfig(history_length=5, searches=3, max_list=3)
RANKING = RankingExamplesConfig(max_candidates=3, max_list=2)
NORMALIZATION = NormalizationConfig(num_quantiles=50)
USERS, VIDEOS, DAYS = 30, 25, 4
TERMS = {
    "video": [f"v{i}" for i in range(0, VIDEOS, 2)],
    "channel": ["c1", "c2"],
    "topic": ["t1", "t3", "t0"],
    "region": ["r1", "r2"],
    "surface": ["next", "home"],
    "token": ["cat", "funny", "funny cat"],
}


def event_tables() -> dict[str, pa.Table]:
    rng = np.random.default_rng(2)
    requests = 240
    user = rng.integers(0, USERS, requests)
    time = START_US + rng.integers(0, DAYS * DAY_US // 10**6, requests) * 10**6
    shown = rng.integers(1, 6, requests)
    row = np.repeat(np.arange(requests), shown)
    rows = len(row)
    position = np.concatenate([np.arange(n) + 1 for n in shown])
    clicked = rng.random(rows) < 0.4
    liked = rng.random(rows) < 0.5
    seconds = np.where(clicked, rng.integers(1, 90, rows) / 4, 0.0)
    video = rng.integers(0, VIDEOS, rows)
    impressions = pa.table(
        {
            "user_id": [f"u{u}" for u in user[row]],
            "video_id": [f"v{v}" for v in video],
            "event_time_us": time[row] + position * 10**6,
            "surface": np.array(["home", "next"])[row % 2],
            "clicked": clicked,
            "watch_time_s": seconds,
            "request_id": [f"q{r}" for r in row],
            "position": position,
            "liked": pa.array(liked, mask=~clicked),
        }
    )
    watches = pa.table(
        {
            "user_id": impressions.column("user_id").filter(clicked),
            "video_id": impressions.column("video_id").filter(clicked),
            "event_time_us": impressions.column("event_time_us").filter(
                clicked
            ),
            "watch_time_s": seconds[clicked],
            "completed": seconds[clicked] > 5,
            "source": ["recommendation"] * int(clicked.sum()),
        }
    )
    queries = ["funny cat", "Dog", "cat", ""]
    searches = pa.table(
        {
            "user_id": [f"u{u}" for u in rng.integers(0, USERS, 80)],
            "query": rng.choice(queries, 80),
            "event_time_us": START_US + rng.integers(0, DAYS * DAY_US, 80),
        }
    )
    videos = pa.table(
        {
            "video_id": [f"v{i}" for i in range(VIDEOS)],
            "channel_id": [
                None if i % 6 == 5 else f"c{i % 5}" for i in range(VIDEOS)
            ],
            "topics": pa.array(
                [[f"t{i % 4}", f"t{i % 3}"][: i % 3] for i in range(VIDEOS)],
                pa.list_(pa.string()),
            ),
            "upload_time_us": [
                None if i % 9 == 8 else START_US - i * DAY_US
                for i in range(VIDEOS)
            ],
            "duration_s": [None if i == 3 else i / 3 for i in range(VIDEOS)],
        }
    )
    users = pa.table(
        {
            "user_id": [f"u{i}" for i in range(USERS)],
            "region": [
                None if i % 4 == 3 else f"r{i % 4}" for i in range(USERS)
            ],
            "age": [None if i % 5 == 4 else 20.0 + i for i in range(USERS)],
        }
    )
    return {
        "watches": watches,
        "searches": searches,
        "impressions": impressions,
        "videos": videos,
        "users": users,
    }


class Job:
    """The files of the log, divided by day, and the jobs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tables = event_tables()
        self.schema = EventSchema.of_tables(self.tables)
        self.features = feature_set(self.schema, RETRIEVAL, RANKING)
        self.inputs = raw_inputs(self.schema, RETRIEVAL, RANKING)
        self.keys = ranking_keys(
            self.features, self.schema, RANKING.max_candidates
        )
        self.vocabularies = folder / "vocabularies"
        self.vocabularies.mkdir()
        for space, terms in TERMS.items():
            counts = range(len(terms), 0, -1)
            Vocabulary.of_terms(space, terms, counts).write(
                *vocabulary_files(str(self.vocabularies), space)
            )
        self.files: dict[str, dict[str, list[str]]] = {}
        bounds = {"train": (0, 2), "valid": (2, 3), "test": (3, DAYS)}
        for name, table in self.tables.items():
            table = table.select(self.schema.arrow(name).names).cast(
                self.schema.arrow(name)
            )
            if name not in TIMED_TABLES:
                self.files[name] = {"all": self._write(name, table)}
                continue
            day = (table.column("event_time_us").to_numpy() - START_US) / DAY_US
            self.files[name] = {
                part: self._write(
                    f"{part}-{name}", table.filter((day >= a) & (day < b))
                )
                for part, (a, b) in bounds.items()
            }

    def _write(self, name: str, table: pa.Table) -> list[str]:
        """Two files with several row groups."""
        paths = []
        for i in range(2):
            paths.append(str(self.folder / f"{name}-{i}.parquet"))
            some = table.take(np.arange(i, len(table), 2))
            pq.write_table(some, paths[-1], row_group_size=50)
        return paths

    def transform(self, output: Path, num_shards: int = 3) -> str:
        files = {
            name: parts.get("train") or parts["all"]
            for name, parts in self.files.items()
        }
        transform.run(
            files=files,
            vocabulary_folder=str(self.vocabularies),
            output=str(output),
            schema=self.schema,
            retrieval=RETRIEVAL,
            ranking=RANKING,
            normalization=NORMALIZATION,
            shards=BeamConfig(num_shards=num_shards),
            seed=1,
            train_end_us=START_US + 2 * DAY_US,
            utc_offset_hours=0.0,
            options=pipeline_options(),
        )
        assert [p.name for p in output.iterdir()] == ["transform_fn"]
        return str(output / "transform_fn")

    def examples(
        self, path: str, output: Path, parts: list[str], context: list[str]
    ) -> dict[str, int]:
        output.mkdir(parents=True)
        return ranking_examples.run(
            files={
                name: {p: self.files[name][p] for p in context}
                for name in TIMED_TABLES
            },
            users=self.files["users"]["all"],
            videos=self.files["videos"]["all"],
            transform_path=path,
            output=str(output),
            parts=parts,
            schema=self.schema,
            retrieval=RETRIEVAL,
            ranking=RANKING,
            shards=BeamConfig(num_shards=3),
            utc_offset_hours=0.0,
            options=pipeline_options(),
        )

    def read(self, output: Path, part: str) -> list[dict[str, Any]]:
        files = sorted(str(p) for p in output.glob(f"{part}-*.tfrecord"))
        assert len(files) == 3
        return list(read_examples(files, self.keys))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def graph(job: Job) -> str:
    return job.transform(job.folder / "transform")


@pytest.fixture(scope="module")
def examples(job: Job, graph: str) -> Path:
    output = job.folder / "examples"
    parts = ["train", "valid"]
    counts = job.examples(graph, output, parts, parts)
    days = job.tables["impressions"].column("event_time_us").to_numpy()
    days = (days - START_US) // DAY_US
    assert counts["train_candidates"] == (days < 2).sum()
    assert counts["valid_candidates"] == (days == 2).sum()
    return output


def impressions_by_request(job: Job) -> dict[tuple[str, int], list[Any]]:
    """(user, cut) -> impressions in the order of their positions."""
    by_id: dict[str, list[Any]] = {}
    for row in job.tables["impressions"].to_pylist():
        by_id.setdefault(row["request_id"], []).append(row)
    found = {}
    for rows in by_id.values():
        rows.sort(key=lambda r: r["position"])
        found[rows[0]["user_id"], rows[0]["event_time_us"]] = rows
    assert len(found) == len(by_id)
    return found


def by_request(examples: list[dict[str, Any]]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for example in examples:
        key = (example["user_id"].decode(), int(example["request_time_us"]))
        found.setdefault(key, []).append(example)
    return found


def test_labels_and_candidates_are_the_logs(job: Job, examples: Path) -> None:
    requests = impressions_by_request(job)
    found = by_request(job.read(examples, "train"))
    assert set(found) == {k for k in requests if k[1] < START_US + 2 * DAY_US}
    for key, chunks in found.items():
        rows = requests[key]
        assert [int(c["candidate_count"]) for c in chunks] == (
            [len(rows)] if len(rows) <= 3 else [3, len(rows) - 3]
        )
        assert len({int(c["request_key"]) for c in chunks}) == 1
        for i, row in enumerate(rows):
            chunk, slot = chunks[i // 3], i % 3
            assert chunk["position"][slot] == row["position"]
            assert chunk["clicked"][slot] == float(row["clicked"])
            assert chunk["watch_time_s"][slot] == np.float32(
                row["watch_time_s"]
            )
            liked = np.nan if row["liked"] is None else float(row["liked"])
            np.testing.assert_equal(chunk["liked"][slot], np.float32(liked))
            video = row["video_id"]
            term = TERMS["video"]
            assert chunk["video"][slot] == (
                term.index(video) + 1 if video in term else 0
            )
        last = chunks[-1]
        padding = slice(int(last["candidate_count"]), None)
        assert np.isnan(last["clicked"][padding]).all()
        assert (last["duration_s"][padding] == [0, 0, 0, 1]).all()
    keys = {int(c[0]["request_key"]) for c in found.values()}
    assert len(keys) == len(found)


def test_normalised_values_are_the_training_distribution(
    job: Job, examples: Path
) -> None:
    """All rows are in the sample, all values are knots: x~ is exact."""
    shown = [
        row
        for row in job.tables["impressions"].to_pylist()
        if row["event_time_us"] < START_US + 2 * DAY_US
    ]
    durations = [
        None if v == "v3" else np.float32(int(v[1:]) / 3)
        for v in (row["video_id"] for row in shown)
    ]
    known = np.array([d for d in durations if d is not None])
    requests = impressions_by_request(job)
    seen = 0
    for part in ("train", "valid"):
        for key, chunks in by_request(job.read(examples, part)).items():
            for i, row in enumerate(requests[key]):
                found = chunks[i // 3]["duration_s"][i % 3]
                if row["video_id"] == "v3":
                    np.testing.assert_array_equal(found, [0, 0, 0, 1])
                    continue
                value = np.float32(int(row["video_id"][1:]) / 3)
                x = (known < value).mean()
                np.testing.assert_allclose(
                    found, [x, x**2, x**0.5, 0], atol=1e-6
                )
                seen += 1
    assert seen > 200


def test_a_users_age_is_seen_once_a_request(job: Job, examples: Path) -> None:
    """Rows of request scope are examples; a continued request counts twice."""
    train = job.read(examples, "train")
    ages = [
        20 + u for u in (int(e["user_id"][1:]) for e in train) if u % 5 != 4
    ]
    for example in train:
        user = int(example["user_id"][1:])
        if user % 5 != 4:
            x = (np.array(ages) < 20 + user).mean()
            np.testing.assert_allclose(
                example["user_age"], [x, x**2, x**0.5, 0], atol=1e-6
            )
        else:
            np.testing.assert_array_equal(example["user_age"], [0, 0, 0, 1])


def test_test_requests_see_earlier_test_days(
    job: Job, graph: str, tmp_path: Path
) -> None:
    output = tmp_path / "holdout"
    parts = ["train", "valid", "test"]
    job.examples(graph, output, ["test"], parts)
    assert not list(output.glob("train-*"))
    requests = impressions_by_request(job)
    histories = 0
    for (user, cut), chunks in by_request(job.read(output, "test")).items():
        watched = sorted(
            (
                (w["event_time_us"], w["video_id"])
                for w in job.tables["watches"].to_pylist()
                if w["user_id"] == user and w["event_time_us"] < cut
            ),
            reverse=True,
        )[:5]
        terms = TERMS["video"]
        expected = [terms.index(v) + 1 if v in terms else 0 for _, v in watched]
        assert chunks[0]["watch_history"].tolist() == expected
        assert cut >= START_US + 3 * DAY_US
        assert len(requests[user, cut]) == sum(
            int(c["candidate_count"]) for c in chunks
        )
        histories += any(t >= START_US + 3 * DAY_US for t, _ in watched)
    assert histories > 3


def test_serving_equals_training(
    job: Job, graph: str, examples: Path, tmp_path: Path
) -> None:
    """The rows of the job, transformed one by one in another process."""
    raw = _raw_requests(job, examples)
    # The graph is moved away first: its assets are inside.
    moved = tmp_path / "moved"
    shutil.copytree(graph, moved)
    (tmp_path / "raw.pickle").write_bytes(pickle.dumps(raw))
    program = """
import os, pickle, sys
os.environ["TF_USE_LEGACY_KERAS"] = "1"
import tensorflow as tf, tensorflow_transform as tft
raw, path = pickle.load(open(sys.argv[1], "rb")), sys.argv[2]
layer = tft.TFTransformOutput(path).transform_features_layer()
count = len(raw["request_time_us"])
rows = [
    layer({n: tf.constant(v[i : i + 1].tolist(), v.dtype if v.dtype != object
           else tf.string) for n, v in raw.items()})
    for i in range(count)
]
pickle.dump([{n: v.numpy()[0] for n, v in r.items()} for r in rows],
            open(sys.argv[3], "wb"))
"""
    out = tmp_path / "served.pickle"
    paths = [str(tmp_path / "raw.pickle"), str(moved), str(out)]
    subprocess.run([sys.executable, "-c", program, *paths], check=True)
    served = pickle.loads(out.read_bytes())
    trained = job.read(examples, "train")[: len(served)]
    assert len(served) == 40
    different = dict.fromkeys((f.name for f in job.features), 0)
    for row, example in zip(served, trained, strict=True):
        for feature in job.features:
            got, want = row[feature.name], example[feature.name]
            if feature.kind == "continuous":
                np.testing.assert_allclose(got, want, atol=1e-6)
                different[feature.name] += bool((got[..., :3] != 0).any())
                continue
            if feature.kind == "bag" and feature.scope != "candidate":
                got = got[got != -1]
            np.testing.assert_array_equal(got, want, err_msg=feature.name)
            different[feature.name] += bool((got > 0).any())
    # No feature is always at its default: the comparison is about something.
    assert min(different.values()) > 0, different


def _raw_requests(job: Job, examples: Path) -> dict[str, np.ndarray]:
    """The raw requests of the first training file's first 40 examples."""
    parts = ["train", "valid"]
    sources: dict[str, Any] = {
        name: {p: job.files[name][p] for p in parts} for name in TIMED_TABLES
    }
    sources["users"] = job.files["users"]
    path = job.folder / "shard-0.pickle"
    with beam.Pipeline(options=pipeline_options()) as pipeline:
        _ = (
            pipeline
            | GroupByUserShard(sources, job.schema, 3, 10**5)
            | beam.Filter(lambda shard: shard.shard == 0)
            | beam.Map(lambda s: path.write_bytes(pickle.dumps(s)))
        )
    catalogue = VideoCatalogue.read(job.files["videos"]["all"], job.schema)
    statistics = LaggedStatistics.read(
        str(examples / "statistics.parquet"), catalogue
    )
    shard = pickle.loads(path.read_bytes())
    requests = RankingRequests(shard, job.inputs, ["train"], 3, statistics, 0.0)
    return requests.batch(0, 40).raw


def test_retrieval_request_gives_the_query_features(
    job: Job, graph: str
) -> None:
    raw = {
        i.name: np.full((2, *i.shape), i.absent, i.numpy_dtype)
        for i in job.inputs
        if not i.ranking_only
    }
    raw["watch_history_video_id"][0, :2] = [b"v2", b"v1"]
    raw["search_query"][1, 0] = b"Funny, CAT!"
    found = transform.TransformGraph(graph)(raw)
    # All query features, and no feature of a candidate.
    assert set(found) >= {f.name for f in job.features.select("query")}
    assert not {f.name for f in job.features.select("candidate")} & set(found)
    # v0, v2, v4, ...: v2 is id 2; funny = 2, cat = 1, "funny cat" = 3.
    assert found["watch_history"].tolist() == [[2, 0, -1, -1, -1], [-1] * 5]
    assert found["search_tokens"][1, :4].tolist() == [2, 1, 3, -1]
    np.testing.assert_array_equal(found["user_age"], [[0, 0, 0, 1]] * 2)
    with pytest.raises(ValueError, match="channel_watches"):
        transform.TransformGraph(graph, ["channel_watches"])(raw)


@pytest.mark.slow
def test_equal_inputs_give_equal_bytes(
    job: Job, graph: str, examples: Path, tmp_path: Path
) -> None:
    """Another folder, shard count and process history; garbage as test."""

    def hashes(folder: Path) -> dict[str, str]:
        return {
            str(p.relative_to(folder)): hashlib.sha256(
                p.read_bytes()
            ).hexdigest()
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        }

    for parts in job.files.values():
        for path in parts.get("test", []):
            Path(path).write_bytes(b"garbage")
    again = job.transform(tmp_path / "transform", num_shards=2)
    assert hashes(Path(again)) == hashes(Path(graph))
    both = ["train", "valid"]
    job.examples(again, tmp_path / "examples", both, both)
    assert hashes(tmp_path / "examples") == hashes(examples)
