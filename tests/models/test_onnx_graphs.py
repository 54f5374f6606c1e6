"""The ONNX graphs in onnxruntime, beside the models they were made of."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import onnx_graphs
from models.keras_setup import tf
from models.onnx_graphs import write_query_tower, write_ranking
from models.pictures import draw_ranking, draw_retrieval
from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from schemas.errors import ArtifactError
from schemas.features import Feature, FeatureSet
from schemas.model_config import (
    ExpertsConfig,
    RankingConfig,
    RetrievalConfig,
    SequenceConfig,
    TowerConfig,
)

SIZES = {"video": 40, "token": 9, "user_device": 3, "topic": 5}
QUERY = (
    Feature("watch_history", "bag", "query", "video", 8),
    Feature("search_tokens", "bag", "query", "token", 3),
    Feature("user_device", "categorical", "query", "user_device"),
    Feature("user_age", "continuous", "query"),
)
FEATURES = FeatureSet(
    (
        *QUERY,
        Feature("query_topics", "bag", "request", "topic", 2),
        Feature("recent_watches", "continuous", "request"),
        Feature("video", "categorical", "candidate", "video"),
        Feature("topics", "bag", "candidate", "topic", 4),
        Feature("duration_s", "continuous", "candidate"),
    )
)
LABELS = ("clicked", "watch_time_s", "liked", "rating")
SEQUENCE = SequenceConfig(length=6, layers=1, heads=2, dropout=0.0)
RETRIEVAL: dict[str, dict[str, Any]] = {
    "depth 0": {"hidden_units": ()},
    "depth 1": {"hidden_units": (16,)},
    "depth 2": {"hidden_units": (16, 8), "output_activation": "relu"},
    "bag of fifty": {"recency_bags": (50,)},
    "sum": {"pooling": "sum"},
    "max": {"pooling": "max"},
    "unit length": {"temperature": 0.05},
    "two towers": {
        "more_towers": (TowerConfig(embedding_dim=4, recency_bags=(2,)),)
    },
    "sequence": {"sequence": SEQUENCE},
    "sequence beside": {
        "sequence": SEQUENCE.model_copy(update={"place": "beside"})
    },
}
RANKING: dict[str, dict[str, Any]] = {
    "expected": {},
    "paper": {
        "objective": "paper",
        "score_weights": {"watch_time_odds": 1.0, "clicked": 0.5},
    },
    "three tasks, deep": {
        "tasks": ("clicked", "liked"),
        "hidden_units": (16, 8),
        "score_weights": {"expected_watch_time_s": 1.0, "liked": 2.0},
    },
    "experts": {
        "tasks": ("clicked", "rating"),
        "score_weights": {"expected_watch_time_s": 1.0, "rating": 0.5},
        "experts": ExpertsConfig(number=3, units=(8, 4)),
    },
    "experts, normalised": {
        "hidden_units": (16, 8),
        "experts": ExpertsConfig(number=2, units=(8,), normalize=True),
    },
    "wide, exact": {"wide": (("user_device", "video"),)},
    "wide, hashed, experts": {
        "wide": (("video", "user_device"),),
        "wide_buckets": 50,
        "experts": ExpertsConfig(number=2, units=(8,)),
    },
    "clicks alone": {
        "task_weights": {"watch_time": 0.0},
        "score_weights": {"clicked": 1.0},
    },
}

Arrays = dict[str, np.ndarray]


def _shaken(variables: Sequence[tf.Variable]) -> None:
    """Gives every weight a value that shows; row 0 of a table stays zero."""
    rng = np.random.default_rng(7)
    for variable in variables:
        values = rng.normal(0, 0.4, variable.shape).astype(np.float32)
        if "table" in variable.name:
            values[0] = 0
        variable.assign(values)


def retrieval_model(**changes: Any) -> RetrievalModel:
    config = RetrievalConfig(
        **{
            "embedding_dim": 8,
            "token_dim": 4,
            "categorical_dim": 2,
            "recency_bags": (8, 3, 1),
            "hidden_units": (16,),
            **changes,
        }
    )
    model = RetrievalModel(FEATURES, SIZES, config, seed=1, example_age=True)
    tables = model.embeddings.table_variables
    _shaken([*tables, *model.dense_variables])
    return model


def ranking_model(**changes: Any) -> RankingModel:
    config = RankingConfig(**{"hidden_units": (16,), **changes})
    model = RankingModel(
        FEATURES, SIZES, config, seed=1, labels=LABELS, positions=True
    )
    _shaken([*model.table_variables, *model.dense_variables])
    return model


def some_inputs(
    features: Sequence[Feature],
    requests: int,
    candidates: int,
    rng: np.random.Generator,
    known: float = 0.8,
) -> Arrays:
    """Ragged lists from empty to full; unknown ids and missing values."""
    inputs = {}
    for feature in features:
        shape: tuple[int, ...] = (requests,)
        if feature.scope == "candidate":
            shape = (requests, candidates)
        if feature.space is None:
            values = rng.random((*shape, 4)).astype(np.float32)
            missing = rng.random(shape) > known
            values[missing] = [0.0, 0.0, 0.0, 1.0]
            inputs[feature.name] = values
            continue
        size, length = SIZES[feature.space], feature.max_length or 1
        ids = rng.integers(1, size + 1, (*shape, length))
        ids *= rng.random(ids.shape) < known
        if feature.kind == "bag":
            entries = rng.integers(0, length + 1, shape)
            ids[np.arange(length) >= entries[..., None]] = -1
        else:
            ids = ids[..., 0]
        inputs[feature.name] = ids
    return inputs


@functools.lru_cache
def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )


def answers(path: Path, inputs: Arrays) -> Arrays:
    session = _session(path)
    assert {i.name for i in session.get_inputs()} == set(inputs)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def check(
    path: Path, inputs: Arrays, expected: Mapping[str, tf.Tensor]
) -> None:
    """1e-5, of a value above 1 relative to it."""
    found = answers(path, inputs)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5)


def tensors(inputs: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(values) for name, values in inputs.items()}


@pytest.mark.parametrize("name", RETRIEVAL)
def test_query_tower(tmp_path: Path, name: str) -> None:
    model, path = retrieval_model(**RETRIEVAL[name]), tmp_path / "q.onnx"
    write_query_tower(model, str(path))
    rng = np.random.default_rng(1)
    for requests, known in ((300, 0.8), (1, 0.8), (5, 0.0)):
        inputs = some_inputs(QUERY, requests, 0, rng, known)
        expected = model.query_embedding(tensors(inputs))
        assert expected.shape == (requests, model._dim)
        check(path, inputs, {"query_embedding": expected})


@pytest.mark.parametrize("name", RANKING)
def test_ranking(tmp_path: Path, name: str) -> None:
    model, path = ranking_model(**RANKING[name]), tmp_path / "r.onnx"
    write_ranking(model, str(path))
    rng, features = np.random.default_rng(2), tuple(FEATURES)
    for requests, candidates, known in ((60, 7, 0.8), (1, 100, 0.8), (2, 1, 0)):
        inputs = some_inputs(features, requests, candidates, rng, known)
        check(path, inputs, model.predict(tensors(inputs)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = retrieval_model(hidden_units=(16, 8))
    path = tmp_path_factory.mktemp("onnx") / "q.onnx"
    write_query_tower(model, str(path))
    return model, path


_ID = st.integers(-1, SIZES["video"])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.lists(_ID, min_size=8, max_size=8), min_size=1, max_size=4))
def test_any_history(written: tuple[Any, Path], histories: list) -> None:
    """Padding may be anywhere, and may be all there is."""
    model, path = written
    inputs = some_inputs(QUERY, len(histories), 0, np.random.default_rng(3))
    inputs["watch_history"] = np.array(histories)
    expected = model.query_embedding(tensors(inputs))
    check(path, inputs, {"query_embedding": expected})


def test_an_empty_request_is_the_biases_alone(tmp_path: Path) -> None:
    """By hand: u = b of the one linear layer where every input is zero."""
    model, path = retrieval_model(hidden_units=()), tmp_path / "q.onnx"
    write_query_tower(model, str(path))
    inputs = {
        "watch_history": np.full((1, 8), -1),
        "search_tokens": np.full((1, 3), -1),
        "user_device": np.zeros(1, np.int64),
        "user_age": np.zeros((1, 4), np.float32),
    }
    bias = model.query_tower.towers[0].layers[0].bias.numpy()
    found = answers(path, inputs)["query_embedding"]
    np.testing.assert_array_equal(found, bias[None])


def test_the_file_says_what_it_takes(written: tuple[Any, Path]) -> None:
    proto = onnx.load(str(written[1]))
    about = {p.key: p.value for p in proto.metadata_props}
    assert "0 out of vocabulary, -1 padding" in about["about"]
    assert json.loads(about["inputs"])["watch_history"] == {
        "kind": "bag",
        "scope": "query",
        "vocabulary": "video",
    }
    (history,) = (i for i in proto.graph.input if i.name == "watch_history")
    shape = history.type.tensor_type.shape.dim
    assert (shape[1].dim_value, bool(shape[0].dim_value)) == (8, False)


def test_too_large_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_graphs, "_MOST_BYTES", 100)
    with pytest.raises(ArtifactError, match="bytes of weights"):
        write_query_tower(retrieval_model(), str(tmp_path / "q.onnx"))
    assert not list(tmp_path.iterdir())


def test_pictures_show_the_models_own_numbers(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{m}.{k}") for m in "qr" for k in ("svg", "png")]
    draw_retrieval(retrieval_model(hidden_units=(16,)), names[:2])
    draw_ranking(ranking_model(tasks=("clicked", "liked")), names[2:])
    tower, ranking = ((tmp_path / f"{m}.svg").read_text() for m in "qr")
    # 3 bags of 8, 4 of the tokens, 2 of the device, 4 of the age's, 1 age.
    for text in (">35<", "35 -&gt; 16", "16 -&gt; 8", "v: 40 x 8, b: 40"):
        assert text in tower
    # log2(41) is 5.4, log2(10) 3.3, log2(4) 2, log2(6) 2.6: dimensions 12, 8,
    # 4, 6. Twice the history, tokens, device, age; topics, watches; video,
    # topics, duration: 24 + 8 + 4 + 4 + 6 + 4 + 12 + 6 + 4.
    for text in (">72<", "72 -&gt; 16", "16 -&gt; 3", "table topic, 5 x 6"):
        assert text in ranking
    for name in (names[1], names[3]):
        assert Path(name).read_bytes().startswith(b"\x89PNG")
    # The second: a bag of 4, 4 of the tokens, 2, 4 and 1.
    draw_retrieval(retrieval_model(**RETRIEVAL["two towers"]), names[:1])
    both = Path(names[0]).read_text()
    for text in (">35<", ">15<", "15 -&gt; 16", "16 -&gt; 4", "-&gt; 24 + 4"):
        assert text in both
    draw_ranking(ranking_model(**RANKING["experts"]), [f"{tmp_path}/e.svg"])
    mixture = (tmp_path / "e.svg").read_text()
    for text in (
        ">3 experts, relu<",
        "16 -&gt; 8 -&gt; 4",
        ">3 gates, softmax<",
        "16 -&gt; 3",
        "4 -&gt; 3",
        "softplus, squared loss",
    ):
        assert text in mixture
    draw_retrieval(retrieval_model(hidden_units=(16,)), [f"{tmp_path}/a.svg"])
    assert (tmp_path / "a.svg").read_text() == tower
