"""What was learnt from is what is served: features and answers, row by row.

The TFRecords are those that the Beam jobs wrote; the requests are a front
end's, from the events alone. Python answers them, and a C program in a process
of its own, which has nothing but the SavedModel and TensorFlow's library.
"""

import functools

import numpy as np
import pytest
import tensorflow_transform as tft

from beam_jobs.transform_graph import TransformGraph
from models.keras_setup import tf
from models.lagged_table import COLUMNS
from models.saved_models import traced
from tests.serving import c_client
from tests.serving.front_end import ROWS, full_lists, inputs_of

AWAY = 100
# The same whatever the user did before.
IMPERSONAL = {"user_age", "duration_s", "video_age_days", "candidate_score"}


@pytest.fixture(scope="module")
def graph(platform):
    """The transform graph alone, as the served models carry it."""
    module = tf.Module()
    output = tft.TFTransformOutput(platform.data.transform_graph)
    module.layer = output.transform_features_layer()
    signatures = {}
    for name, inputs in (
        ("ranking", platform.inputs),
        ("retrieval", platform.retrieval_inputs),
    ):
        specs = {
            i.name: tf.TensorSpec([None, *i.shape], i.dtype, i.name)
            for i in inputs
        }
        signatures[name] = traced(lambda raw: module.layer(raw), specs)
    folder = str(platform.folder / "graph")
    tf.saved_model.save(module, folder, signatures)
    return folder


@pytest.fixture(scope="module")
def asked(platform, cases, graph, published):
    """Name -> SavedModel, and its requests."""
    log, named = c_client.log, c_client.named
    ranked = inputs_of(platform, "ranking")
    queried = platform.retrieval_inputs
    features = {
        part: (
            graph,
            [log("", name, full_lists(r, inputs)) for r in cases[part][1]],
        )
        for part, name, inputs in (
            ("train", "ranking", platform.inputs),
            ("valid", "ranking", platform.inputs),
            ("watches", "retrieval", queried),
        )
    }
    return features | {
        "ranking": (
            published["ranking"],
            [
                log("ranking", "serving_default", named(r, ranked))
                for r in cases["valid"][1]
            ],
        ),
        "query_embedding": (
            published["retrieval"],
            [
                log("retrieval", "query_embedding", named(r, queried))
                for r in cases["watches"][1]
            ],
        ),
    }


@pytest.fixture(scope="module", params=["python", "c"])
def answers(request, asked):
    """Name -> answer per request, each asked alone."""
    ask = c_client.in_python
    if request.param == "c":  # Skips where there is no compiler.
        program = request.getfixturevalue("program")
        ask = functools.partial(c_client.in_c, program)
    answers = {}
    for folder in {folder for folder, _ in asked.values()}:
        # One call a model: loading takes longer than answering.
        parts = {n: logs for n, (f, logs) in asked.items() if f == folder}
        rest = ask(folder, [log for logs in parts.values() for log in logs])
        for name, logs in parts.items():
            answers[name], rest = rest[: len(logs)], rest[len(logs) :]
    return answers


def is_candidate(stored):
    slots = np.arange(stored["position"].shape[1])
    return slots < stored["candidate_count"][:, None]


def test_each_history_feature_is_away_from_its_default(platform, cases):
    """Or equality would say little: the default is an empty past's."""
    stored, requests = cases["valid"]
    used = is_candidate(stored)
    assert used.sum() >= ROWS
    # Only the first thousand candidates count.
    used &= (np.cumsum(used) <= ROWS).reshape(used.shape)
    raw = [full_lists(r, platform.inputs) for r in requests]
    blank = {}
    for i in platform.inputs:
        blank[i.name] = np.concatenate([row[i.name] for row in raw])
        if i.axis in ("watch", "impression", "search"):
            blank[i.name][:] = i.absent
        elif i.name in COLUMNS:
            blank[i.name][:] = 0.0 if "impressions" in i.name else np.nan
    default = TransformGraph(platform.data.transform_graph)(blank)
    away = {}
    for f in platform.data.features.select("request", "candidate"):
        if f.kind == "continuous" and f.name not in IMPERSONAL:
            differs = (stored[f.name] != default[f.name]).any(axis=-1)
            known = stored[f.name][..., 3] == 0
            counts = differs & known
            counts = counts if counts.ndim == 2 else counts[:, None]
            away[f.name] = int((counts & used).sum())
    # 7 of the request, 4 each of channel and topic, 3 of the video, 6 lagged.
    assert len(away) == 7 + 2 * 4 + 3 + 6
    assert min(away.values()) >= AWAY, away


@pytest.mark.parametrize("part", ["train", "valid", "watches"])
def test_features_are_those_of_the_request(platform, cases, answers, part):
    stored, requests = cases[part]
    scopes = ("query", "request", "candidate")
    if part == "watches":
        scopes = ("query",)
    features = platform.data.features.select(*scopes)
    for f in features:
        got = np.concatenate([answer[f.name] for answer in answers[part]])
        assert len(got) == len(requests)
        if f.kind == "continuous":
            np.testing.assert_allclose(
                got, stored[f.name], rtol=0, atol=1e-6, err_msg=f.name
            )
        else:
            np.testing.assert_array_equal(got, stored[f.name], f.name)


def test_ranking_answers_as_for_the_stored_features(platform, cases, answers):
    stored, _ = cases["valid"]
    used = is_candidate(stored)
    assert used.sum() >= ROWS
    predictions = platform.ranking.predict(stored)
    for name, expected in predictions.items():
        got = np.concatenate([a[name][0] for a in answers["ranking"]])
        np.testing.assert_allclose(
            got, expected.numpy()[used], rtol=1e-5, err_msg=name
        )
    assert len(np.unique(predictions["score"].numpy()[used])) > ROWS // 2


def test_query_embeddings_are_those_of_stored_features(
    platform, cases, answers
):
    stored, _ = cases["watches"]
    assert len(stored["label"]) == ROWS
    # A request is served at the end of the training window: age 0.
    features = {n: v for n, v in stored.items() if n != "example_age"}
    expected = platform.retrieval.query_embedding(features).numpy()
    got = np.concatenate(
        [a["query_embedding"] for a in answers["query_embedding"]]
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(expected, axis=0)) > ROWS // 2
