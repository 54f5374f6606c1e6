"""The gRPC API by TensorFlow Serving's own stubs."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.pipeline.serve.conftest import FOUND


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def ranking_request(loaded):
    """Four candidates; everything else absent."""
    signature = loaded.ranking.signatures["serving_default"]
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ranking"
    arrays = {}
    for name, spec in signature.structured_input_signature[1].items():
        shape = [1] + [0] * (spec.shape.rank - 1)
        arrays[name] = np.zeros(shape, spec.dtype.as_numpy_dtype)
        if spec.dtype == tf.string:
            arrays[name] = np.full(shape, b"", object)
    arrays["candidate_video_id"] = np.array(
        [[b"v000012", b"unknown", b"v000003", b""]], object
    )
    for name, array in arrays.items():
        request.inputs[name].CopyFrom(
            tf.make_tensor_proto(
                array,
                signature.structured_input_signature[1][name].dtype,
                array.shape,
            )
        )
    return request, signature, arrays


def test_predict_equals_the_saved_model(stub, loaded):
    request, signature, arrays = ranking_request(loaded)
    answer = stub.Predict(request, timeout=30)
    assert answer.model_spec.name == "ranking"
    assert answer.model_spec.version.value == 1
    assert answer.model_spec.signature_name == "serving_default"
    outputs = {n: tf.make_ndarray(t) for n, t in answer.outputs.items()}
    assert outputs["expected_watch_time_s"].tolist() == [[12, 0, 3, 0]]
    specs = signature.structured_input_signature[1]
    expected = signature(
        **{n: tf.constant(a, specs[n].dtype) for n, a in arrays.items()}
    )
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(outputs[name], values.numpy())


def test_only_the_outputs_asked_for(stub, loaded):
    request, _, _ = ranking_request(loaded)
    request.output_filter.append("clicked")
    assert list(stub.Predict(request, timeout=30).outputs) == ["clicked"]
    request.output_filter.append("nothing")
    assert_fails(stub.Predict, request, grpc.StatusCode.INVALID_ARGUMENT)


def test_serialized_examples(stub):
    feature = {
        "request_time_us": tf.train.Feature(
            int64_list=tf.train.Int64List(value=[5])
        ),
        "user_age": tf.train.Feature(
            float_list=tf.train.FloatList(value=[7.0])
        ),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "retrieval"
    request.model_spec.signature_name = "serialized_examples"
    request.inputs["examples"].CopyFrom(
        tf.make_tensor_proto([example.SerializeToString()])
    )
    outputs = stub.Predict(request, timeout=30).outputs
    assert tf.make_ndarray(outputs["scores"])[0, 0] == 7.0
    ids = tf.make_ndarray(outputs["video_ids"])[0]
    assert [v.decode() for v in ids] == [*FOUND, ""]


def test_metadata(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "retrieval"
    assert_fails(
        stub.GetModelMetadata, request, grpc.StatusCode.INVALID_ARGUMENT
    )
    request.metadata_field.append("signature_def")
    answer = stub.GetModelMetadata(request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    assert sorted(signatures.signature_def) == [
        "best",
        "serialized_examples",
        "serving_default",
    ]
    examples = signatures.signature_def["serialized_examples"].inputs
    assert examples["examples"].dtype == tf.string.as_datatype_enum


def test_status(channel):
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "ranking"
    (status,) = stub.GetModelStatus(request, timeout=30).model_version_status
    available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert (status.version, status.state) == (1, available)
    request.model_spec.version.value = 4
    assert_fails(stub.GetModelStatus, request, grpc.StatusCode.NOT_FOUND)


def test_what_is_not_there(stub, loaded):
    request, _, _ = ranking_request(loaded)
    request.model_spec.version.value = 2
    assert_fails(stub.Predict, request, grpc.StatusCode.NOT_FOUND)
    request.model_spec.version_label = "stable"
    assert_fails(stub.Predict, request, grpc.StatusCode.INVALID_ARGUMENT)
    request.model_spec.ClearField("version_choice")
    request.model_spec.signature_name = "nothing"
    assert_fails(stub.Predict, request, grpc.StatusCode.NOT_FOUND)
    request.model_spec.name = "nothing"
    assert_fails(stub.Predict, request, grpc.StatusCode.NOT_FOUND)
    request = regression_pb2.RegressionRequest()
    assert_fails(stub.Regress, request, grpc.StatusCode.UNIMPLEMENTED)


def assert_fails(method, request, code):
    with pytest.raises(grpc.RpcError) as failed:
        method(request, timeout=30)
    assert failed.value.code() is code
    assert failed.value.details()
    assert "\n" not in failed.value.details()
