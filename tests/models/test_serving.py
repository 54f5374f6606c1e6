"""SavedModels against the same models and transform graph used in process.

The SavedModels are loaded where neither the transform folder nor a package of
this project nor TensorFlow Transform can be imported.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from beam_jobs import transform
from models.index import build_index
from models.keras_setup import tf
from models.lagged_table import COLUMNS
from models.serving import (
    RankingService,
    RetrievalService,
)
from models.top_k import with_bias
from schemas.config import IndexConfig
from schemas.errors import ArtifactError


@pytest.fixture(scope="module")
def expected(world, raw):
    """Answers in process, by the graph and the models, with NumPy around."""
    graph = transform.TransformGraph(world.transform)
    query = {i.name: raw[i.name] for i in world.inputs if not i.ranking_only}
    features = graph(query)
    embedding = world.retrieval.query_embedding(features).numpy()
    table, biases = (t.numpy() for t in world.retrieval.candidates())
    scores = embedding @ table.T + biases
    names, best = [], []
    for row, watched in zip(scores, features["watch_history"], strict=True):
        order = np.argsort(-row, kind="stable")
        order = [i for i in order if i + 1 not in set(watched)][: world.top_k]
        names.append([world.videos[i] for i in order])
        best.append(row[order])
    return {
        "query_embedding": embedding,
        "video_ids": np.array(names),
        "scores": np.array(best),
        "ranking": rank_one_by_one(world, raw, graph),
    }


def rank_one_by_one(world, raw, graph):
    """Ranks every candidate in a request of its own."""
    alone = {}
    for i in world.inputs:
        value = np.repeat(
            raw[i.name], raw["candidate_video_id"].shape[1], axis=0
        )
        if i.axis == "candidate":
            first = raw[i.name].reshape(-1, *raw[i.name].shape[2:])
            value = np.full((len(first), *i.shape), i.absent, i.numpy_dtype)
            value[:, 0] = first
        alone[i.name] = value
    videos = pa.array([v.decode() for v in alone["candidate_video_id"][:, 0]])
    # Any day after the last: all days count.
    lagged = world.statistics(videos, np.full(len(videos), 100))
    for name in COLUMNS:
        alone[name][:, 0] = lagged[name]
    features = graph(alone)
    used = np.array([v != "" for v in videos.to_pylist()])
    features["candidate_count"] = used.astype(np.int64)
    return {
        name: value.numpy()[:, 0].reshape(
            len(raw["request_time_us"]), raw["candidate_video_id"].shape[1]
        )
        for name, value in world.ranking.predict(features).items()
    }


LOADER = """
import json, sys
import numpy as np
import tensorflow as tf
requests, answers = sys.argv[1:]
ours = ("models", "beam_jobs", "schemas", "tensorflow_transform", "tf_keras")
known = {name for name in dir(tf.raw_ops)}
report, out = {}, {}
asked = np.load(requests, allow_pickle=True)["asked"].item()
for model, (folder, raw) in asked.items():
    loaded = tf.saved_model.load(folder)
    signatures = loaded.signatures
    graph_ops = set()
    functions = set()
    for signature in signatures.values():
        definition = signature.graph.as_graph_def()
        graph_ops |= {node.op for node in definition.node}
        for function in definition.library.function:
            graph_ops |= {node.op for node in function.node_def}
            functions.add(function.signature.name)
    report[model] = {
        "unknown_ops": sorted(graph_ops - known - functions),
        "signatures": sorted(signatures),
    }
    out[model] = {}
    for name, inputs in raw.items():
        outputs = signatures[name](
            **{k: tf.constant(v) for k, v in inputs.items()}
        )
        out[model][name] = {k: v.numpy() for k, v in outputs.items()}
np.savez(answers, out=out)
report["imported"] = sorted(m for m in ours if m in sys.modules)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def elsewhere(
    world, raw, exported, retrieval_raw, ranking_raw, tmp_path_factory
):
    """Answers of a process that has TensorFlow and nothing of ours."""
    tmp_path = tmp_path_factory.mktemp("elsewhere")

    def examples(names):
        inputs = [i for i in world.inputs if i.name in names]
        return {"examples": as_examples(inputs, raw)}

    asked = {
        "retrieval": (
            exported.retrieval,
            {
                "serving_default": retrieval_raw,
                "serialized_examples": examples(retrieval_raw),
                "query_embedding": retrieval_raw,
            },
        ),
        "ranking": (
            exported.ranking,
            {
                "serving_default": ranking_raw,
                "serialized_examples": examples(ranking_raw),
            },
        ),
    }
    np.savez(tmp_path / "requests.npz", asked=asked)
    script = tmp_path / "load.py"
    script.write_text(LOADER)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment.pop("TF_USE_LEGACY_KERAS", None)
    done = subprocess.run(
        [
            *(sys.executable, "-I", str(script)),
            *(str(tmp_path / "requests.npz"), str(tmp_path / "answers.npz")),
        ],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = np.load(tmp_path / "answers.npz", allow_pickle=True)["out"].item()
    return json.loads(done.stdout.splitlines()[-1]), answers


def as_examples(inputs, raw):
    """Serialized tf.Examples; absent values at a list's end are left out."""
    examples = []
    for b in range(len(raw["request_time_us"])):
        example = tf.train.Example()
        for i in inputs:
            value = np.asarray(raw[i.name][b])
            flat = value.reshape(-1).tolist()
            if value.ndim == 1:
                while flat and (flat[-1] == i.absent or flat[-1] != flat[-1]):
                    flat.pop()
            if not flat or flat == [i.absent]:
                continue
            feature = example.features.feature[i.name]
            kind = {
                "string": feature.bytes_list,
                "int64": feature.int64_list,
                "float32": feature.float_list,
            }[i.dtype]
            kind.value.extend(flat)
        examples.append(example.SerializeToString())
    return np.array(examples, object)


def test_retrieval_answers_as_in_process(expected, elsewhere):
    report, answers = elsewhere[0]["retrieval"], elsewhere[1]["retrieval"]
    assert elsewhere[0]["imported"] == [] and report["unknown_ops"] == []
    assert report["signatures"] == sorted(answers)
    for signature in ("serving_default", "serialized_examples"):
        answer = answers[signature]
        assert answer["video_ids"].tolist() == expected["video_ids"].tolist()
        np.testing.assert_allclose(
            answer["scores"], expected["scores"], atol=1e-5
        )
    # Layer normalisation of small attended values amplifies their rounding.
    np.testing.assert_allclose(
        answers["query_embedding"]["query_embedding"],
        expected["query_embedding"],
        atol=1e-5,
    )


def test_ranking_answers_as_in_process(expected, elsewhere):
    report, answers = elsewhere[0]["ranking"], elsewhere[1]["ranking"]
    assert elsewhere[0]["imported"] == [] and report["unknown_ops"] == []
    assert report["signatures"] == sorted(answers)
    for signature, answer in answers.items():
        assert set(answer) == {"expected_watch_time_s", "clicked", "score"}
        for name, value in answer.items():
            np.testing.assert_allclose(
                value,
                expected["ranking"][name],
                rtol=1e-5,
                err_msg=f"{signature} {name}",
            )
        assert (answer["score"][3, 5:] == 0).all()
        assert answer["score"][4, 2] == 0 < answer["score"][4, 3]


@pytest.fixture(scope="module")
def retrieve(exported):
    """The retrieval SavedModel, loaded."""
    return tf.saved_model.load(exported.retrieval)


@pytest.fixture(scope="module")
def every_video(world):
    """A service that returns all videos that were not watched."""
    return RetrievalService(
        world.retrieval,
        world.transform,
        world.inputs,
        world.video_ids,
        top_k=100,
    )


def test_shorter_lists_mean_the_same_as_padded_ones(
    world, retrieve, retrieval_raw
):
    padded = {n: v[1:2] for n, v in retrieval_raw.items()}
    # Request 1 has two watches and no search.
    short = {
        n: v[:, : 2 if n.startswith("watch") else 0]
        if n.startswith(("watch", "search"))
        else v
        for n, v in padded.items()
    }
    one = retrieve.signatures["query_embedding"]
    np.testing.assert_array_equal(
        one(**{n: tf.constant(v) for n, v in padded.items()})[
            "query_embedding"
        ],
        one(
            **{
                n: tf.constant(
                    v, next(i for i in world.inputs if i.name == n).dtype
                )
                for n, v in short.items()
            }
        )["query_embedding"],
    )


def test_only_a_user_who_watched_all_gets_blanks(
    world, raw, every_video, retrieval_raw
):
    request = {n: tf.constant(v) for n, v in retrieval_raw.items()}
    answer = every_video.recommend(request)
    # K is cut to the 17 videos there are; watched ones leave blanks.
    assert answer["video_ids"].shape == (len(raw["request_time_us"]), 17)
    for row, scores, watched in zip(
        answer["video_ids"].numpy(),
        answer["scores"].numpy(),
        raw["watch_history_video_id"],
        strict=True,
    ):
        known = set(world.videos)
        left = known - set(watched)
        assert set(row[: len(left)]) == left
        assert set(row[len(left) :]) <= {b""}
        assert np.isneginf(scores[len(left) :]).all()


def test_watched_videos_are_kept_on_request(world, raw, retrieval_raw):
    service = RetrievalService(
        world.retrieval,
        world.transform,
        world.inputs,
        world.video_ids,
        top_k=17,
        keep_watched=True,
    )
    request = {n: tf.constant(v) for n, v in retrieval_raw.items()}
    for row in service.recommend(request)["video_ids"].numpy():
        assert sorted(row) == sorted(world.videos)


def index_of(model, folder, videos=None):
    """A partition of few rows a piece, all of which are searched."""
    embeddings, biases = (part.numpy()[:videos] for part in model.candidates())
    rng = np.random.default_rng(0)
    config = IndexConfig(
        neighbors=len(biases), exact_below=1, partition_from=1, rows_per_piece=4
    )
    folder.mkdir()
    build_index(
        with_bias(embeddings, biases),
        rng.normal(size=(20, embeddings.shape[1])),
        config,
        str(folder),
    )
    return str(folder)


def test_the_index_s_own_search_is_served(world, raw, retrieval_raw, tmp_path):
    parts = world.retrieval, world.transform, world.inputs, world.video_ids
    exact = RetrievalService(*parts, world.top_k)
    index = index_of(world.retrieval, tmp_path / "index")
    served = RetrievalService(*parts, world.top_k, index=index)
    request = {n: tf.constant(v) for n, v in retrieval_raw.items()}
    expected, found = (s.recommend(request) for s in (exact, served))
    np.testing.assert_array_equal(found["video_ids"], expected["video_ids"])
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5)
    # A table of pieces, [P, W, D + 1], is what it searches.
    assert any(v.shape.rank == 3 for v in served._variables)
    assert all(v.shape.rank < 3 for v in exact._variables)
    smaller = index_of(world.retrieval, tmp_path / "smaller", videos=-1)
    with pytest.raises(ArtifactError, match="an index of 16 videos"):
        RetrievalService(*parts, world.top_k, index=smaller)


def test_refuses_parts_of_different_runs(world, tmp_path):
    other = tmp_path / "video.txt"
    other.write_text("v1\nv2\n")
    with pytest.raises(ArtifactError, match="has 2 videos"):
        RetrievalService(
            world.retrieval,
            world.transform,
            world.inputs,
            str(other),
            world.top_k,
        )
    with pytest.raises(ValueError, match="table of them is missing"):
        RankingService(
            world.ranking, world.transform, world.inputs, None, str(tmp_path)
        )
