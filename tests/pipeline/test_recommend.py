"""Lists by small SavedModels whose answers are known, and users' requests."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.keras_setup import tf
from pipeline.recommend import (
    print_table,
    recommend,
    request_of_user,
)
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.errors import ArtifactError, InputError
from schemas.events import EventSchema
from schemas.requests import raw_inputs

START_US = 1_600_000_000_000_000


def save(folder, functions, specs):
    module = tf.Module()
    signatures = {
        name: tf.function(function, input_signature=[specs])
        for name, function in functions.items()
    }
    tf.saved_model.save(module, str(folder), signatures)
    return str(folder)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    """Always finds d, a, c and a blank."""

    def serve(raw):
        rows = tf.size(raw["request_time_us"])
        return {
            "video_ids": tf.repeat([["d", "a", "c", ""]], rows, axis=0),
            "scores": tf.repeat([[3.0, 2.0, 1.0, -np.inf]], rows, axis=0),
        }

    return save(
        tmp_path_factory.mktemp("retrieval") / "1",
        {"serving_default": serve},
        {"request_time_us": tf.TensorSpec([None], tf.int64, "request_time_us")},
    )


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    """Seven minutes of c, five of d and a; all but d are of the tower."""

    def every_candidate(raw):
        rows = tf.size(raw["request_time_us"])
        of_a_row = {
            "video_ids": ["c", "d", "a", ""],
            "candidate_sources": ["query_tower", "co_watch", "query_tower", ""],
            "retrieval_scores": [1.0, 0.5, 2.0, -np.inf],
            "expected_watch_time_s": [420.0, 300.0, 300.0, 0.0],
            "clicked": [0.25, 0.25, 0.25, 0.0],
            "score": [7.0, 5.0, 5.0, 0.0],
        }
        return {n: tf.repeat([v], rows, axis=0) for n, v in of_a_row.items()}

    def best(raw):
        every = every_candidate(raw)
        return {name: values[:, :1] for name, values in every.items()}

    return save(
        tmp_path_factory.mktemp("recommender") / "1",
        {"serving_default": best, "every_candidate": every_candidate},
        {"request_time_us": tf.TensorSpec([None], tf.int64, "request_time_us")},
    )


def videos():
    return pa.table(
        {
            "video_id": ["a", "b", "c", "d", "e"],
            "channel_id": ["one", "one", None, "two", "two"],
            "topics": [["x"], ["y", "z"], ["x", "z"], [], None],
            "title": ["Alpha", None, "Gamma", "Delta", None],
        }
    )


def request(*watched):
    history = np.full((1, 4), b"", object)
    history[0, : len(watched)] = [v.encode() for v in watched]
    return {
        "request_time_us": np.array([START_US]),
        "watch_history_video_id": history,
    }


def test_candidates_are_described(recommender):
    rows = recommend(recommender, request("b", "e"), videos(), 10)
    assert [r.video_id for r in rows] == ["c", "d", "a"]
    assert [r.score for r in rows] == [7, 5, 5]
    assert [r.expected_watch_time_s for r in rows] == [420, 300, 300]
    assert [r.source for r in rows] == [
        "query_tower",
        "co_watch",
        "query_tower",
    ]
    assert [r.retrieval_rank for r in rows] == [2, 1, 1]
    assert [r.retrieval_score for r in rows] == [1, 0.5, 2]
    assert [r.title for r in rows] == ["Gamma", "Delta", "Alpha"]
    assert [r.channel_id for r in rows] == [None, "two", "one"]
    assert rows[0].predictions["clicked"] == 0.25
    # b is of channel one and topics y, z; e of channel two.
    assert [r.why for r in rows] == [
        "1 watch of topic z",
        "1 watch of its channel",
        "1 watch of its channel",
    ]


def test_the_list_is_cut(recommender):
    rows = recommend(recommender, request(), videos(), 1)
    assert [r.video_id for r in rows] == ["c"]
    assert rows[0].why == "no watches yet"


def test_without_a_ranking_model_the_retrieval_orders(retrieval):
    rows = recommend(retrieval, request("nowhere"), videos(), 10)
    assert [r.video_id for r in rows] == ["d", "a", "c"]
    assert [r.score for r in rows] == [3, 2, 1]
    assert rows[0].expected_watch_time_s is None
    assert rows[0].why == "similar users"


def test_a_model_of_another_log_is_refused(retrieval):
    incomplete = request()
    del incomplete["request_time_us"]
    with pytest.raises(ArtifactError, match="wants request_time_us"):
        recommend(retrieval, incomplete, videos(), 1)


def test_rows_are_printed(recommender, capsys):
    rows = recommend(recommender, request("b"), videos(), 2)
    print_table("For a user", rows)
    out = capsys.readouterr().out
    for shown in ("For a user", "Gamma", "420.0 s", "0.250", "topic z"):
        assert shown in out
    assert "query_tower #2   1.00" in out and "co_watch #1   0.50" in out
    assert "Alpha" not in out
    print_table("For a user", [])
    assert "For a user: nothing" in capsys.readouterr().out


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Two parts of watches, impressions and users; `new` has no event."""
    folder = tmp_path_factory.mktemp("log")

    def watches(*rows):
        return pa.table(
            {
                "user_id": [r[0] for r in rows],
                "video_id": [r[1] for r in rows],
                "event_time_us": [START_US + r[2] for r in rows],
                "watch_time_s": [r[3] for r in rows],
                "completed": [True for _ in rows],
                "source": ["search" for _ in rows],
            }
        )

    parts = {
        "watches": [
            watches(("u", "a", 10, 1e-6), ("v", "b", 20, 1e-6)),
            # The log's last event; its watch time is not spent yet.
            watches(("u", "c", 5_000_000, 7.0), ("u", "d", 30, 2.0)),
        ],
        "impressions": [
            pa.table(
                {
                    "user_id": ["u", "u", "v"],
                    "video_id": ["e", "f", "g"],
                    "event_time_us": [START_US + t for t in (8, 6, 90)],
                    "surface": ["next", "home", "home"],
                    "clicked": [False, True, False],
                    "watch_time_s": [0.0, 1.0, 0.0],
                }
            )
        ],
        "users": [pa.table({"user_id": ["new", "u"], "age": [30.0, 41.0]})],
    }
    schema = EventSchema.of_tables({n: t[0] for n, t in parts.items()})
    files = {}
    for name, tables in parts.items():
        files[name] = []
        for i, table in enumerate(tables):
            path = str(folder / f"{name}-{i}.parquet")
            pq.write_table(table.cast(schema.arrow(name)), path)
            files[name].append(path)
    inputs = raw_inputs(
        schema,
        RetrievalExamplesConfig(history_length=4),
        RankingExamplesConfig(max_candidates=2),
    )
    return files, schema, inputs


def test_request_of_a_user_by_hand(log):
    files, schema, inputs = log
    got = request_of_user("u", files, schema, inputs)
    assert set(got) == {i.name for i in inputs}
    for i in inputs:
        assert got[i.name].shape == (1, *i.shape), i.name
    assert got["request_time_us"].tolist() == [START_US + 5_000_001]
    # Most recent first: c at 5 s, d at 30 us (2 s, spent), a at 10 us.
    assert got["watch_history_video_id"].tolist() == [[b"c", b"d", b"a", b""]]
    assert got["watch_history_event_time_us"].tolist() == [
        [START_US + 5_000_000, START_US + 30, START_US + 10, 0]
    ]
    np.testing.assert_allclose(
        got["watch_history_watch_time_s"],
        [[np.nan, 2.0, 1e-6, np.nan]],
        rtol=1e-6,
    )
    assert got["impression_history_video_id"][0].tolist() == [
        *(b"e", b"f", b"", b"")
    ]
    assert got["surface"].tolist() == [b"next"]
    assert got["user_age"].tolist() == [41.0]
    assert got["candidate_video_id"].tolist() == [[b"", b""]]


def test_request_of_a_user_without_events(log):
    files, schema, inputs = log
    got = request_of_user("new", files, schema, inputs)
    assert got["user_age"].tolist() == [30.0]
    assert set(got["watch_history_video_id"][0]) == {b""}
    assert got["surface"].tolist() == [b""]


def test_request_of_a_user_without_a_row(log):
    files, schema, inputs = log
    got = request_of_user("v", files, schema, inputs)
    assert got["watch_history_video_id"][0, 0] == b"b"
    assert np.isnan(got["user_age"]).all()


def test_an_unknown_user_is_told_who_is_known(log):
    files, schema, inputs = log
    with pytest.raises(InputError, match=r"no user 'w'; it has new, u, v "):
        request_of_user("w", files, schema, inputs)
