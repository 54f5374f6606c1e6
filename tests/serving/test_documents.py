"""`deploy/serving` and `docs/serving.md` say what is published."""

import json
import re
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from models.keras_setup import tf
from models.serving_requests import MAX_CANDIDATES
from tests.serving import c_client
from tests.serving.front_end import MODELS

CHECKOUT = Path(__file__).resolve().parents[2]
DEPLOY = CHECKOUT / "deploy" / "serving"
DOCUMENT = (CHECKOUT / "docs" / "serving.md").read_text()
# Messages of TensorFlow Serving that its Python package leaves out, by the
# fields of session_bundle_config.proto and monitoring_config.proto.
MESSAGES = """
name: "of_serving.proto" package: "of_serving" syntax: "proto3"
dependency: "google/protobuf/wrappers.proto"
message_type {
  name: "BatchingParameters"
  field { name: "max_batch_size" number: 1 type: TYPE_MESSAGE
          type_name: ".google.protobuf.Int64Value" }
  field { name: "batch_timeout_micros" number: 2 type: TYPE_MESSAGE
          type_name: ".google.protobuf.Int64Value" }
  field { name: "max_enqueued_batches" number: 3 type: TYPE_MESSAGE
          type_name: ".google.protobuf.Int64Value" }
  field { name: "num_batch_threads" number: 4 type: TYPE_MESSAGE
          type_name: ".google.protobuf.Int64Value" }
  field { name: "pad_variable_length_inputs" number: 7 type: TYPE_BOOL }
}
message_type {
  name: "PrometheusConfig"
  field { name: "enable" number: 1 type: TYPE_BOOL }
  field { name: "path" number: 2 type: TYPE_STRING }
}
message_type {
  name: "MonitoringConfig"
  field { name: "prometheus_config" number: 1 type: TYPE_MESSAGE
          type_name: ".of_serving.PrometheusConfig" }
}
"""


@pytest.fixture(scope="module")
def signatures(published):
    return {
        model: c_client.loaded(folder).signatures
        for model, folder in published.items()
    }


def read(file, message):
    """Parses a text proto; a field that the message has not is an error."""
    return text_format.Parse((DEPLOY / file).read_text(), message)


def message_of(name):
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = text_format.Parse(MESSAGES, descriptor_pb2.FileDescriptorProto())
    pool.Add(file)
    found = pool.FindMessageTypeByName(f"of_serving.{name}")
    return message_factory.GetMessageClass(found)()


def test_models_are_those_that_are_published(platform, published):
    message = model_server_config_pb2.ModelServerConfig
    deployed = read("models.config", message())
    written = (platform.folder / "serving" / "models.config").read_text()
    assert deployed == text_format.Parse(written, message())
    configs = deployed.model_config_list.config
    assert sorted(c.name for c in configs) == sorted(published)
    for config in configs:
        # The docker line mounts the folder `serving` as `/models`.
        folder = config.base_path.replace("/models", "serving", 1)
        assert published[config.name] == str(platform.folder / folder / "1")
        assert config.model_platform == "tensorflow"


def test_batches_are_not_filled_with_what_was_not_watched():
    batching = read("batching.config", message_of("BatchingParameters"))
    assert not batching.pad_variable_length_inputs
    assert batching.max_batch_size.value > 1
    assert 0 < batching.batch_timeout_micros.value < 10_000
    assert batching.num_batch_threads.value > 0
    with pytest.raises(text_format.ParseError, match="max_batch"):
        text_format.Parse("max_batch: 3", message_of("BatchingParameters"))


def test_prometheus_is_on():
    monitoring = read("monitoring.config", message_of("MonitoringConfig"))
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path.startswith("/monitoring/")


def test_the_docker_line_names_what_is_deployed():
    (line,) = re.findall(r"docker run [^`]*", DOCUMENT)
    mounts = dict(re.findall(r'-v "\$PWD/([^:]+):([^"]+)"', line))
    assert mounts == {
        "work/demo/serving": "/models",
        "deploy/serving": "/config",
    }
    files = re.findall(r"=/config/(\S+)", line)
    assert sorted(files) == sorted(p.name for p in DEPLOY.iterdir())


def rows(first):
    """Cells of the document's table whose first column is so called."""
    lines = DOCUMENT.splitlines()
    start = next(i for i, x in enumerate(lines) if x.startswith(f"| {first} |"))
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def shape_of(spec, last):
    dims = ["B", *([last] if len(spec.shape) == 2 else [])]
    return f"{spec.dtype.name} [{', '.join(dims)}]"


def test_signatures_are_as_documented(signatures):
    documented = {
        (model.strip("`"), name.strip("`")): (inputs, outputs)
        for model, name, inputs, outputs in rows("model")
    }
    found = {}
    for model, by_name in signatures.items():
        for name, signature in by_name.items():
            taken = signature.structured_input_signature[1]
            inputs = "named tensors"
            if set(taken) == {"examples"}:
                inputs = f"`examples` {shape_of(taken['examples'], '')}"
            last = "n" if model == "ranking" else "K"
            special = {"query_embedding": "D", "every_candidate": "C"}
            last = special.get(name, last)
            found[model, name] = (
                inputs,
                {
                    f"`{output}` {shape_of(spec, last)}"
                    for output, spec in signature.structured_outputs.items()
                },
            )
    assert found == {
        key: (inputs, set(re.findall(r"`\w+` \w+ \[[^]]+\]", outputs)))
        for key, (inputs, outputs) in documented.items()
    }


@pytest.mark.parametrize("model", MODELS)
def test_inputs_are_as_documented(signatures, model):
    documented = {
        name.strip("`"): f"{dtype} {shape}"
        for name, dtype, shape, models, _ in rows("input")
        if models == "all" or model in models.split(", ")
    }
    for name, signature in signatures[model].items():
        if name == "serialized_examples":
            continue
        taken = signature.structured_input_signature[1]
        assert documented == {
            name: shape_of(spec, "n") for name, spec in taken.items()
        }


def test_the_limit_of_candidates_is_as_documented():
    assert DOCUMENT.count(f"{MAX_CANDIDATES:,}") == 2


def test_the_rest_example_is_answered(signatures):
    (text,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    body = json.loads(text)
    (model,) = re.findall(r"/v1/models/(\w+):predict", DOCUMENT)
    signature = signatures[model][body["signature_name"]]
    specs = signature.structured_input_signature[1]
    assert set(body["inputs"]) == set(specs)
    answer = signature(
        **{
            name: tf.constant(value, specs[name].dtype)
            for name, value in body["inputs"].items()
        }
    )
    assert set(re.findall(r'"(\w+)": \[\[\.', DOCUMENT)) == set(answer)
    assert (answer["video_ids"].numpy() != b"").all()


class Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers by the published models, in place of TensorFlow Serving."""

    def __init__(self, published):
        self.published = published

    def Predict(self, request, context):
        spec = request.model_spec
        tensors = {n: tf.make_ndarray(p) for n, p in request.inputs.items()}
        record = c_client.log(spec.name, spec.signature_name, tensors)
        (answer,) = c_client.in_python(self.published[spec.name], [record])
        response = c_client.predict_pb2.PredictResponse()
        for name, value in answer.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


def test_the_grpc_example_runs(published):
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Predictions(published), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # The first call of a signature takes longer than those after a warm-up.
    code = code.replace("localhost:8500", f"127.0.0.1:{port}")
    code = code.replace("timeout=1.0", "timeout=100.0")
    names = {}
    try:
        exec(code, names)
    finally:
        server.stop(None)
    assert names["videos"].dtype == object
    assert np.all(names["videos"] != b"")
