"""Requests meant to break it: one line each, and the server goes on."""

import base64
import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from pipeline.serve.json_tensors import input_arrays, is_by_rows, parse_body
from schemas.errors import InputError
from tests.pipeline.serve.rest_client import call, predict

MEGABYTES_10 = 10 << 20


def instances(**changes):
    return lambda row: {"instances": [{**row, **changes}]}


def example_of_bytes():
    """A tf.Example whose time is bytes that are no text either."""
    example = tf.train.Example()
    time = example.features.feature["request_time_us"]
    time.bytes_list.value.append(b"\xff")
    return base64.b64encode(example.SerializeToString()).decode()


def without(name):
    return lambda row: {
        "instances": [{n: v for n, v in row.items() if n != name}]
    }


REFUSED = {
    "a string for a number": (instances(user_age="old"), "`user_age`"),
    "a number for a string": (instances(user_region=3), "`user_region`"),
    "a float for a whole number": (
        instances(request_time_us=1.5),
        "`request_time_us`",
    ),
    "true for a number": (instances(user_age=True), "`user_age`"),
    "NaN for a whole number": (
        instances(request_time_us=float("nan")),
        "`request_time_us`",
    ),
    "beyond 64 bits": (instances(request_time_us=2**63), "`request_time_us`"),
    "null": (instances(user_age=None), "`user_age`"),
    "an object": (instances(user_region={"x": 1}), "`user_region`"),
    "no base64": (instances(user_region={"b64": "%%%"}), "`user_region`"),
    "half a pair": (instances(user_region="\ud800"), "`user_region`"),
    "no list": (
        instances(watch_history_video_id="v1"),
        "`watch_history_video_id`",
    ),
    "too deep": (
        instances(watch_history_video_id=[["v1"]]),
        "`watch_history_video_id`",
    ),
    "a million videos": (
        instances(watch_history_video_id=["v"] * 1_000_000),
        "`watch_history_video_id` has 1,000,000 values",
    ),
    "10 MB in one string": (
        instances(search_query=["x" * MEGABYTES_10]),
        "`search_query` has a string of 10,485,760 bytes",
    ),
    "a missing name": (without("user_age"), "misses input(s) user_age"),
    "an unknown name": (instances(nonsense=1), "unknown input(s) nonsense"),
    "no rows": (lambda _: {"instances": []}, "at least one row"),
    "many rows": (lambda row: {"instances": [row] * 300}, "300 rows"),
    "lists of two lengths": (
        lambda row: {"instances": [row, {**row, "search_query": ["one more"]}]},
        "`search_query` differ in length",
    ),
    "columns of two lengths": (
        lambda row: {
            "inputs": {n: [v] for n, v in row.items()}
            | {"user_age": [1.0, 2.0]}
        },
        "same number of rows",
    ),
    "neither key": (lambda _: {}, "`instances`"),
    "both keys": (lambda _: {"instances": [1], "inputs": {}}, "`instances`"),
    "a list": (lambda _: [1], "a JSON object"),
    "no tf.Example": (
        lambda _: {
            "signature_name": "serialized_examples",
            "instances": ["nonsense"],
        },
        "serialized tf.Example",
    ),
    "bytes for a number, serialized": (
        lambda _: {
            "signature_name": "serialized_examples",
            "instances": [{"b64": example_of_bytes()}],
        },
        "Data type: string but expected type: int64",
    ),
    "signature of a number": (
        lambda row: {"signature_name": 3, "instances": [row]},
        "`signature_name`",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused(server, row, case):
    make, said = REFUSED[case]
    status, answer = predict(server, make(row))
    assert status == 400
    assert said in answer["error"]
    assert "\n" not in answer["error"]
    assert len(answer["error"]) < 1500
    assert predict(server, {"instances": [row]})[0] == 200


RAW = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"instances": ["\xff"]}',
    "100,000 deep": b"[" * 100_000,
    "an integer of 10,000 digits": b'{"instances": [%s]}' % (b"9" * 10_000),
    "zeros": bytes(1 << 20),
    "64 MiB": b" " * (64 << 20),
}


@pytest.mark.parametrize("case", RAW)
def test_bytes_are_refused(server, row, case):
    status, answer = call(
        server, "/v1/models/retrieval:predict", RAW[case], "POST"
    )
    assert status == 400
    assert "\n" not in answer["error"]
    assert predict(server, {"instances": [row]})[0] == 200


@pytest.mark.parametrize(
    ("changes", "first_score"),
    [
        ({"user_age": float("nan")}, 20.0),
        ({"watch_history_watch_time_s": [float("inf"), -1e300]}, 50.0),
        ({"watch_history_video_id": ["\U0001f4a9", "' OR 1=1"]}, 50.0),
        ({"watch_history_video_id": ["v"] * 10_000}, 100_030.0),
        ({"request_time_us": -(2**63)}, 50.0),
    ],
)
def test_has_a_sensible_answer(server, row, changes, first_score):
    status, answer = predict(server, {"instances": [{**row, **changes}]})
    assert status == 200
    assert answer["predictions"][0]["scores"][0] == first_score


def test_a_name_with_half_a_pair_is_said(server, row):
    status, answer = predict(server, {"instances": [{**row, "\ud800": 1}]})
    assert (status, "ud800" in answer["error"]) == (400, True)


def big_tensor():
    """A few bytes that claim to be 2^60 numbers."""
    tensor = tensor_pb2.TensorProto(dtype=1, float_val=[1.0])
    for _ in range(2):
        tensor.tensor_shape.dim.add(size=2**30)
    return tensor


def short_tensor():
    tensor = tensor_pb2.TensorProto(dtype=1, tensor_content=b"123")
    tensor.tensor_shape.dim.add(size=4)
    return tensor


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (big_tensor(), "has 1,073,741,824 rows"),
        (short_tensor(), "`user_age`"),
        (tf.make_tensor_proto([1]), "must be float32, got int32"),
        (tf.make_tensor_proto(["x"]), "must be float32, got string"),
        (tf.make_tensor_proto([[1.0]]), "must have 1 axes"),
        (tensor_pb2.TensorProto(dtype=999), "`user_age`"),
    ],
)
def test_grpc_refuses(server, row, tensor, said):
    channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "retrieval"
    for name, value in row.items():
        dtype = np.int64 if name.endswith("_us") else None
        if name.endswith("watch_time_s") or name == "user_age":
            dtype = np.float32
        request.inputs[name].CopyFrom(
            tf.make_tensor_proto(np.array([value], dtype))
        )
    request.inputs["user_age"].CopyFrom(tensor)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Predict(request, timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in refused.value.details()
    request.inputs["user_age"].CopyFrom(tf.make_tensor_proto([30.0]))
    assert stub.Predict(request, timeout=30).outputs["scores"].float_val


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
SPECS = {
    "a": tf.TensorSpec([None], tf.string),
    "b": tf.TensorSpec([None, None], tf.float32),
    "c": tf.TensorSpec([None], tf.int64),
}


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional={n: JSON for n in "abc"}) | JSON)
def test_any_json_gives_arrays_or_one_line(value):
    for key in ("instances", "inputs"):
        body = {key: [value] if key == "instances" else value}
        try:
            parsed = parse_body(json.dumps(body).encode())
            is_by_rows(parsed)
            arrays = input_arrays(parsed, SPECS)
        except InputError as error:
            assert str(error)
        else:
            for name, spec in SPECS.items():
                assert arrays[name].ndim == spec.shape.rank
