"""Requests as TensorFlow Serving's messages, and the C program's answers."""

import functools
import os
import struct
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from models.keras_setup import tf
from schemas.requests import RawInput

SOURCE = Path(__file__).with_name("predict.c")
Tensors = Mapping[str, np.ndarray]
# Outputs by name, or the text of the error.
Answer = dict[str, np.ndarray] | str


def build(folder: Path) -> Path:
    """Compiles `predict.c` against the libraries inside TensorFlow's wheel.

    Raises:
      FileNotFoundError: there is no gcc.
    """
    program = folder / "predict"
    libraries = tf.sysconfig.get_lib()
    subprocess.run(
        [
            *("gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"),
            *(f"-I{tf.sysconfig.get_include()}", str(SOURCE)),
            *("-o", str(program), f"-L{libraries}"),
            *("-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"),
            f"-Wl,-rpath,{libraries}",
        ],
        check=True,
    )
    return program


def log(model: str, signature: str, tensors: Tensors) -> bytes:
    """A request as a record of a warm-up file."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, value in tensors.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    predict = prediction_log_pb2.PredictLog(request=request)
    return prediction_log_pb2.PredictionLog(
        predict_log=predict
    ).SerializeToString()


def records(path: str) -> list[bytes]:
    """The records of a warm-up file."""
    return [r.numpy() for r in tf.data.TFRecordDataset(path)]


def in_c(program: Path, folder: str, logs: Sequence[bytes]) -> list[Answer]:
    """Asks the C program, which ends well whatever it is asked."""
    return [answer for answer, _ in timed_in_c(program, folder, logs)]


def timed_in_c(
    program: Path, folder: str, logs: Sequence[bytes]
) -> list[tuple[Answer, float]]:
    """Answers, and the seconds that the model took for each."""
    requests = program.parent / "requests"
    with tf.io.TFRecordWriter(str(requests)) as writer:
        for record in logs:
            writer.write(record)
    with requests.open("rb") as stream:
        done = subprocess.run(
            [str(program), folder],
            stdin=stream,
            capture_output=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
            check=False,
        )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    answers, rest = [], done.stdout
    while rest:
        answered, took_ns, size = struct.unpack_from("<?QQ", rest)
        payload, rest = rest[17 : 17 + size], rest[17 + size :]
        assert len(payload) == size
        answer = _outputs(payload) if answered else _text(payload)
        answers.append((answer, took_ns / 1e9))
    assert len(answers) == len(logs)
    return answers


def request_of(record: bytes) -> predict_pb2.PredictRequest:
    """Parses a record, independently of the C program."""
    log = prediction_log_pb2.PredictionLog.FromString(record)
    return log.predict_log.request


@functools.cache
def loaded(folder: str) -> Any:
    """Loads a SavedModel, once for all tests."""
    return tf.saved_model.load(folder)


def in_python(folder: str, logs: Iterable[bytes]) -> list[Answer]:
    """Asks the signatures that `tf.saved_model.load` gives."""
    signatures = loaded(folder).signatures
    answers: list[Answer] = []
    for record in logs:
        request = request_of(record)
        inputs = {
            name: tf.constant(tf.make_ndarray(proto))
            for name, proto in request.inputs.items()
        }
        try:
            outputs = signatures[request.model_spec.signature_name](**inputs)
        # UnicodeDecodeError: of TensorFlow, whose error quotes the request.
        except (TypeError, UnicodeDecodeError, tf.errors.OpError) as error:
            answers.append(str(error))
        else:
            answers.append({k: v.numpy() for k, v in outputs.items()})
    return answers


def assert_same(got: Answer, expected: Answer) -> None:
    """The same strings and integers, and floats within 1e-6."""
    assert not isinstance(got, str), got
    assert not isinstance(expected, str), expected
    assert set(got) == set(expected)
    for name, values in expected.items():
        assert got[name].dtype == values.dtype, name
        if values.dtype == np.float32:
            np.testing.assert_allclose(
                got[name], values, rtol=1e-6, atol=1e-6, err_msg=name
            )
        else:
            np.testing.assert_array_equal(got[name], values, name)


def named(
    request: Mapping[str, object], inputs: Sequence[RawInput]
) -> dict[str, np.ndarray]:
    """One request as tensors [1] or [1, n]; its lists have any length."""
    return {i.name: np.array([request[i.name]], i.numpy_dtype) for i in inputs}


def example(
    request: Mapping[str, object], inputs: Sequence[RawInput]
) -> dict[str, np.ndarray]:
    """One request as a serialized tf.Example, its absent values left out."""
    message = tf.train.Example()
    for i in inputs:
        value = request[i.name]
        values = value if isinstance(value, list) else [value]
        # NaN differs from itself.
        if all(v == i.absent or v != v for v in values):
            continue
        feature = message.features.feature[i.name]
        kinds = {
            "string": feature.bytes_list,
            "int64": feature.int64_list,
            "float32": feature.float_list,
        }
        kinds[i.dtype].value.extend(values)
    return {"examples": np.array([message.SerializeToString()], object)}


def _outputs(response: bytes) -> dict[str, np.ndarray]:
    message = predict_pb2.PredictResponse.FromString(response)
    return {k: tf.make_ndarray(v) for k, v in message.outputs.items()}


def _text(payload: bytes) -> str:
    # An error may quote bytes of the request.
    return payload.decode(errors="replace")
