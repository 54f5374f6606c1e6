"""The REST API by a real client: against hand arithmetic and TensorFlow."""

import base64

import numpy as np
import pytest
import tensorflow as tf

from tests.pipeline.serve.conftest import FOUND
from tests.pipeline.serve.rest_client import call, predict


def test_rows(server, row):
    younger = {**row, "user_age": 20.5, "watch_history_video_id": [""] * 6}
    status, answer = predict(server, {"instances": [row, younger]})
    assert status == 200
    # 10 x 2 watches + 30 years = 50; no watch + 20.5.
    first, second = answer["predictions"]
    assert first == {
        "video_ids": [*FOUND, ""],
        "scores": [50.0, 49.0, 48.0, 47.0, 46.0, -np.inf],
    }
    assert second["scores"][:2] == [20.5, 19.5]


def test_columns_equal_the_saved_model(server, row, loaded):
    rows = [{**row, "user_age": age} for age in (0.1, 1.7, 64.3)]
    columns = {name: [r[name] for r in rows] for name in row}
    status, answer = predict(server, {"inputs": columns})
    assert status == 200
    signature = loaded.retrieval.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    expected = signature(
        **{n: tf.constant(v, specs[n].dtype) for n, v in columns.items()}
    )
    scores = np.array(answer["outputs"]["scores"], np.float32)
    np.testing.assert_array_equal(scores, expected["scores"].numpy())
    ids = np.array(answer["outputs"]["video_ids"]).astype(np.bytes_)
    assert (ids == expected["video_ids"].numpy().astype(np.bytes_)).all()


def test_one_output_and_one_input_have_no_names(server, row):
    body = {"signature_name": "best", "instances": [row]}
    assert predict(server, body) == (200, {"predictions": [50.0]})
    columns = {name: [value] for name, value in row.items()}
    body = {"signature_name": "best", "inputs": columns}
    assert predict(server, body) == (200, {"outputs": [50.0]})


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_serialized_examples(server, key, named):
    feature = {
        "request_time_us": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[5])
        ),
        "watch_history_video_id": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[b"\xff", b"b", b"c"])
        ),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    text = base64.b64encode(example.SerializeToString()).decode()
    value = [{"b64": text}]
    if named:
        value = (
            [{"examples": value[0]}]
            if key == "instances"
            else {"examples": value}
        )
    body = {"signature_name": "serialized_examples", key: value}
    status, answer = predict(server, body)
    assert status == 200
    if key == "instances":
        assert answer["predictions"][0]["scores"][0] == 30.0
    else:
        assert answer["outputs"]["scores"][0][0] == 30.0


def test_bytes_by_base64_equal_text(server, row):
    coded = {**row, "user_region": {"b64": ""}}
    coded["watch_history_video_id"] = [
        {"b64": base64.b64encode(v.encode()).decode()}
        for v in row["watch_history_video_id"]
    ]
    plain = predict(server, {"instances": [row]})
    assert predict(server, {"instances": [coded]}) == plain


def test_lists_of_any_length(server, row):
    lengths = {n: v[:1] for n, v in row.items() if isinstance(v, list)}
    _, one = predict(server, {"instances": [{**row, **lengths}]})
    assert one["predictions"][0]["scores"][0] == 40.0
    lengths = {n: [] for n in lengths}
    _, none = predict(server, {"instances": [{**row, **lengths}]})
    assert none["predictions"][0]["scores"][0] == 30.0


def test_status_and_metadata(server):
    ok = {"error_code": "OK", "error_message": ""}
    version = {"version": "1", "state": "AVAILABLE", "status": ok}
    expected = (200, {"model_version_status": [version]})
    assert call(server, "/v1/models/retrieval") == expected
    assert call(server, "/v1/models/retrieval/versions/1") == expected
    status, answer = call(server, "/v1/models/ranking/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "ranking", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert list(signatures) == ["serving_default"]
    times = signatures["serving_default"]["inputs"]["request_time_us"]
    assert times["dtype"] == "DT_INT64"


def test_versions_by_number(server, row):
    body = {"instances": [row]}
    path = "/v1/models/retrieval/versions/{}:predict"
    assert call(server, path.format(1), body)[0] == 200
    status, answer = call(server, path.format(2), body)
    assert status == 404
    assert "version 2 is not being served; version 1 is" in answer["error"]


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v1/models/nothing", "GET", 404),
        ("/v1/models/nothing:predict", "POST", 404),
        ("/v1/models/retrieval/versions/9", "GET", 404),
        ("/v1/models/retrieval/versions/x", "GET", 404),
        (f"/v1/models/retrieval/versions/{'9' * 5000}", "GET", 404),
        ("/v1/models/retrieval:predict", "GET", 404),
        ("/v1/models/retrieval:classify", "POST", 405),
        ("/nowhere", "GET", 404),
    ],
)
def test_what_is_not_there(server, row, path, method, status):
    body = {"instances": [row]} if method == "POST" else None
    received, answer = call(server, path, body, method)
    assert received == status
    assert list(answer) == ["error"]
    assert "\n" not in answer["error"]
