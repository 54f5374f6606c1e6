"""Lists for all users by small SavedModels whose answers are known."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_jobs import recommendations
from beam_jobs.event_files import write_simulated
from beam_jobs.recommendation_model import (
    RecommendationModel,
    ShardRequests,
    to_lists,
)
from beam_jobs.runners import pipeline_options
from beam_jobs.sources.simulated import simulate
from beam_jobs.stored_requests import to_table
from schemas.buckets import bucket_name
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.errors import ArtifactError, InputError
from schemas.events import EventSchema
from schemas.requests import raw_inputs
from schemas.simulator_config import SimulatorConfig

START_US = 1_600_000_000_000_000
SHARDS, LENGTH = 5, 4
METADATA = {"model": "recommender", "export": "abc"}


def save(folder: Path, function, specs) -> str:
    """Writes a SavedModel of a function of named tensors, [B, *shape]."""
    specs = {
        name: tf.TensorSpec([None, *shape], dtype, name)
        for name, (dtype, *shape) in specs.items()
    }
    module = tf.Module()
    module.serve = tf.function(function, input_signature=[specs])
    tf.saved_model.save(module, str(folder), {"serving_default": module.serve})
    return str(folder)


@pytest.fixture(scope="module")
def echo(tmp_path_factory) -> str:
    """Recommends what was watched last; a blank where nothing was.

    The score is the user's age, the time an output, the surface a video.
    """

    def serve(raw):
        watched = raw["watch_history_video_id"][:, :1]
        age = tf.where(tf.math.is_nan(raw["user_age"]), -1.0, raw["user_age"])[
            :, None
        ]
        seconds = tf.cast(raw["request_time_us"] - START_US, tf.float32)
        return {
            "video_ids": tf.concat([raw["surface"][:, None], watched], 1),
            "score": tf.repeat(age, 2, axis=1),
            "expected_watch_time_s": tf.repeat(seconds[:, None], 2, axis=1),
            "retrieval_scores": tf.repeat(-age, 2, axis=1),
        }

    return save(
        tmp_path_factory.mktemp("echo") / "1",
        serve,
        {
            "request_time_us": (tf.int64,),
            "watch_history_video_id": (tf.string, None),
            "surface": (tf.string,),
            "user_age": (tf.float32,),
        },
    )


@pytest.fixture(scope="module")
def bilinear(tmp_path_factory) -> str:
    """A matrix product, whose sums a shape could change, then the best 6."""
    noise = np.random.default_rng(1)
    table = tf.constant(noise.normal(size=(97, 64)), tf.float32)
    videos = tf.constant(noise.normal(size=(64, 300)), tf.float32)

    def serve(raw):
        watched = raw["watch_history_video_id"]
        rows = tf.gather(table, tf.strings.to_hash_bucket_fast(watched, 97))
        used = tf.cast(tf.not_equal(watched, ""), tf.float32)
        pooled = tf.reduce_mean(rows * used[:, :, None], axis=1)
        scores, ids = tf.math.top_k(pooled @ videos, 6)
        return {"video_ids": tf.strings.as_string(ids), "scores": scores}

    specs = {"watch_history_video_id": (tf.string, None)}
    return save(tmp_path_factory.mktemp("bilinear") / "1", serve, specs)


class Log:
    """Event files in a folder, and a job over them."""

    def __init__(self, folder: Path, schema: EventSchema) -> None:
        self.schema = schema
        self.files = {
            table: sorted(map(str, folder.glob(f"{table}-*.parquet")))
            for table in schema.columns
        }
        self.inputs = [
            i
            for i in raw_inputs(
                schema,
                RetrievalExamplesConfig(history_length=LENGTH),
                RankingExamplesConfig(max_candidates=2),
            )
            if i.axis != "candidate"
        ]

    def run(self, model: str, output: Path, flags=(), **changes):
        output.mkdir(exist_ok=True)
        arguments = {
            "files": self.files,
            "schema": self.schema,
            "inputs": self.inputs,
            "model": model,
            "time_us": START_US + 100,
            "metadata": METADATA,
            "output": str(output),
            "max_events_per_user": 1000,
            "options": pipeline_options(flags),
        }
        return recommendations.run(**(arguments | changes))


def rows_of(folder: Path) -> list[dict]:
    files = sorted(folder.glob("recommendations-*.parquet"))
    return pa.concat_tables(map(pq.read_table, files)).to_pylist()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Log:
    """Four users in one file a table: each is known by other tables."""
    folder = tmp_path_factory.mktemp("small")

    def table(**columns):
        return pa.table({n: list(values) for n, values in columns.items()})

    tables = {
        "watches": table(
            user_id=["u", "u", "u", "w"],
            video_id=["a", "late", "b", "c"],
            event_time_us=[START_US + t for t in (1, 100, 2, 50)],
            watch_time_s=[1.0] * 4,
            completed=[True] * 4,
            source=["search"] * 4,
        ),
        "impressions": table(
            user_id=["u", "u", "v", "v"],
            video_id=["d", "e", "f", "g"],
            event_time_us=[START_US + t for t in (9, 99, 8, 100)],
            surface=["next", "home", "next", "late"],
            clicked=[False] * 4,
            watch_time_s=[0.0] * 4,
        ),
        "users": table(user_id=["new", "u"], age=[30.0, 41.0]),
    }
    schema = EventSchema.of_tables(tables)
    for name, rows in tables.items():
        path = folder / f"{name}-0.parquet"
        pq.write_table(rows.cast(schema.arrow(name)), path)
    return Log(folder, schema)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> Log:
    """Some hundred users, bucketed into shards as the events' stage writes."""
    folder = tmp_path_factory.mktemp("simulated")
    config = SimulatorConfig(
        num_users=160, num_videos=80, num_channels=9, num_topics=5, num_days=9
    )
    logs = simulate(config, 3)
    write_simulated(logs.tables, logs.truth, str(folder), SHARDS)
    text = (folder / "schema.json").read_text()
    return Log(folder, EventSchema.from_json(text))


def test_lists_by_hand(small, echo, tmp_path):
    """At START + 100: the watch and the impression of that time are unknown."""
    done = small.run(echo, tmp_path / "out", batch_size=3)
    # Fewest shards: 8, most of them without a user.
    assert (done.shards, done.computed_shards, done.computed_users) == (8, 8, 4)
    # v saw something and `new` nothing at all; both have watched nothing.
    assert done.counts == {"users": 4, "users_without_history": 2}
    found = {r.pop("user_id"): r for r in rows_of(tmp_path / "out")}

    def row(videos, age):
        return {
            "video_ids": videos,
            "scores": [age] * len(videos),
            "expected_watch_time_s": [100.0] * len(videos),
            "retrieval_scores": [-age] * len(videos),
        }

    assert found == {
        "u": row(["home", "b"], 41.0),
        "v": row(["next"], -1.0),
        "w": row(["c"], -1.0),
        "new": row([], 30.0),
    }


def test_each_file_says_what_it_is_of(small, echo, tmp_path):
    small.run(echo, tmp_path / "out")
    total = 0
    for shard in range(8):
        path = tmp_path / "out" / bucket_name("recommendations", shard, 8)
        said = {k.decode(): v.decode() for k, v in _metadata(path).items()}
        assert said["watchnext.model"] == "recommender"
        assert said["watchnext.export"] == "abc"
        assert int(said["watchnext.users"]) == pq.read_table(path).num_rows
        total += int(said["watchnext.users_without_history"])
    assert total == 2


def _metadata(path: Path) -> dict[bytes, bytes]:
    return pq.read_schema(path).metadata


def test_the_lists_are_those_of_a_loop_over_users(
    simulated, bilinear, tmp_path
):
    """Plain Python over the events, one call of the model a user."""
    watches = pa.concat_tables(map(pq.read_table, simulated.files["watches"]))
    middle_us = int(np.median(watches["event_time_us"].to_numpy()))
    done = simulated.run(
        bilinear, tmp_path / "out", time_us=middle_us, batch_size=7
    )
    history: dict[str, list[tuple]] = {}
    for table, files in simulated.files.items():
        for path in files if table != "videos" else ():
            for event in pq.read_table(path).to_pylist():
                own = history.setdefault(event["user_id"], [])
                if table == "watches":
                    own.append((event["event_time_us"], event["video_id"]))
    assert done.counts["users"] == len(history) == 160
    signature = tf.saved_model.load(bilinear).signatures["serving_default"]
    for row in rows_of(tmp_path / "out"):
        own = [e for e in history[row["user_id"]] if e[0] < middle_us]
        newest = [video for _, video in sorted(own, reverse=True)][:LENGTH]
        padded = newest + [""] * (LENGTH - len(newest))
        answer = signature(watch_history_video_id=tf.constant([padded]))
        best = answer["scores"].numpy()[0]
        np.testing.assert_allclose(row["scores"], best, rtol=1e-4, atol=1e-5)
        ids = [v.decode() for v in answer["video_ids"].numpy()[0]]
        if np.min(-np.diff(best)) > 1e-4:
            assert row["video_ids"] == ids


@pytest.fixture(scope="module")
def in_process(simulated, bilinear, tmp_path_factory) -> dict[str, bytes]:
    """What one worker in this process writes, at the end of the log."""
    output = tmp_path_factory.mktemp("in_process")
    simulated.run(bilinear, output, time_us=END_US)
    files = contents(output)
    assert len(files) == SHARDS
    # The model is asked with other histories: most lists differ.
    lists = {tuple(r["video_ids"]) for r in rows_of(output)}
    assert len(lists) > 80
    return files


END_US = 2_000_000_000_000_000


@pytest.mark.slow
def test_more_workers_write_the_same_bytes(
    simulated, bilinear, in_process, tmp_path
):
    flags = [
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
    ]
    done = simulated.run(bilinear, tmp_path, flags, time_us=END_US)
    assert contents(tmp_path) == in_process
    assert done.counters["users"] == 160


@pytest.mark.prism
def test_prism_writes_the_same_bytes(
    simulated, bilinear, in_process, tmp_path, prism
):
    flags = ["--runner=PrismRunner", f"--prism_location={prism}"]
    done = simulated.run(bilinear, tmp_path, flags, time_us=END_US)
    assert contents(tmp_path) == in_process
    # Of the files: Prism may lose a bundle's counters.
    assert done.counts["users"] == done.computed_users == 160


def test_the_order_of_rows_leaves_no_trace(
    simulated, bilinear, in_process, tmp_path
):
    """The same events in one file a table, shuffled: another way to shards."""
    noise = np.random.default_rng(2)
    files = {}
    for table, paths in simulated.files.items():
        rows = pa.concat_tables(map(pq.read_table, paths))
        files[table] = [str(tmp_path / f"{table}.parquet")]
        order = noise.permutation(rows.num_rows)
        pq.write_table(rows.take(order), files[table][0], row_group_size=97)
    simulated.run(bilinear, tmp_path / "out", files=files, time_us=END_US)
    (tmp_path / "again").mkdir()
    # 8 shards in place of 5: the same users with the same lists.
    expected = {}
    for name, data in in_process.items():
        (tmp_path / "again" / name).write_bytes(data)
    for row in rows_of(tmp_path / "again"):
        expected[row["user_id"]] = row["video_ids"]
    found = {r["user_id"]: r["video_ids"] for r in rows_of(tmp_path / "out")}
    assert found == expected
    # Some shards only, by the shuffle as well.
    kept = tmp_path / "out" / bucket_name("recommendations", 3, 8)
    before = contents(tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        if path != kept:
            path.unlink()
    done = simulated.run(
        bilinear, tmp_path / "out", files=files, time_us=END_US
    )
    assert done.computed_shards == 7
    assert contents(tmp_path / "out") == before


def test_what_is_there_is_kept_and_the_rest_is_done(
    simulated, bilinear, in_process, tmp_path
):
    for name, data in in_process.items():
        (tmp_path / name).write_bytes(data)
    first, second, third, *others = sorted(tmp_path.iterdir())
    users = [pq.read_table(p).num_rows for p in (first, second, third)]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])
    # Whole, but of another model.
    rows = pq.read_table(third)
    said = dict(rows.schema.metadata) | {b"watchnext.export": b"other"}
    pq.write_table(rows.replace_schema_metadata(said), third)
    (tmp_path / f"tmp-0123-{first.name}").write_bytes(b"half")
    for path in others:
        os.utime(path, (1, 1))
    done = simulated.run(bilinear, tmp_path, time_us=END_US)
    assert (done.computed_shards, done.shards) == (3, SHARDS)
    assert done.computed_users == sum(users) < 160
    assert done.counts["users"] == 160
    assert contents(tmp_path) == in_process
    assert [p.stat().st_mtime for p in others] == [1, 1]
    # Nothing left: no job.
    done = simulated.run("no such model", tmp_path, time_us=END_US)
    assert (done.computed_shards, done.computed_users) == (0, 0)
    assert done.counts["users"] == 160


def test_a_model_of_another_log_is_refused(small, tmp_path):
    model = save(
        tmp_path / "1",
        lambda raw: {"video_ids": raw["user_mood"][:, None]},
        {"user_mood": (tf.string,)},
    )
    with pytest.raises(ArtifactError, match="wants user_mood, which"):
        small.run(model, tmp_path / "out")


def test_an_unreadable_file_is_named(small, echo, tmp_path):
    path = tmp_path / "users-0.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"users-0\.parquet is no readable"):
        small.run(
            echo,
            tmp_path / "out",
            files=small.files | {"users": [str(path)]},
        )
    assert contents(tmp_path / "out") == {}


def test_every_call_has_the_same_number_of_rows(small, tmp_path):
    """Five requests in calls of two: the last one is filled up."""
    calls = {"surface": (tf.string,)}

    def serve(raw):
        rows = tf.shape(raw["surface"])
        sizes = tf.fill([rows[0], 1], tf.strings.as_string(rows[0]))
        return {"video_ids": sizes, "scores": tf.zeros_like(sizes, tf.float32)}

    handler = RecommendationModel(
        save(tmp_path / "1", serve, calls), small.inputs, batch_size=2
    )
    request = {
        i.name: np.full((5, *i.shape), i.absent, i.numpy_dtype)
        for i in small.inputs
    }
    users = pa.array(["a", "b", "c", "d", "e"])
    rows = to_table(request, small.inputs)
    shard = ShardRequests(7, users, rows, 0)
    (answer,) = handler.run_inference(shard, handler.load_model())
    assert answer.shard == 7
    assert answer.rows["user_id"].to_pylist() == users.to_pylist()
    assert answer.rows["video_ids"].to_pylist() == [["2"]] * 5


def test_blanks_are_dropped_from_every_list():
    answer = {
        "video_ids": np.array([[b"a", b""], [b"", b""], [b"b", b"c"]], object),
        "scores": np.array([[3, -np.inf], [-np.inf] * 2, [2, 1]], np.float32),
        "extra": np.array([[5, 0], [0, 0], [6, 7]], np.float32),
    }
    assert to_lists(pa.array(["x", "y", "z"]), answer).to_pydict() == {
        "user_id": ["x", "y", "z"],
        "video_ids": [["a"], [], ["b", "c"]],
        "scores": [[3.0], [], [2.0, 1.0]],
        "extra": [[5.0], [], [6.0, 7.0]],
    }
