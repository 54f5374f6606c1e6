"""TensorFlow Serving's gRPC API: Predict, GetModelMetadata, GetModelStatus.

Its other methods (Classify, Regress, MultiInference) answer UNIMPLEMENTED:
the published models have no such signatures.
"""

import functools
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from models.keras_setup import tf
from models.saved_models import SERVING_DEFAULT
from pipeline.serve.limits import MAX_BODY_BYTES, check_names, check_shape
from pipeline.serve.protocol import model_metadata, model_status
from pipeline.serve.served_models import NotServedError, ServedModels, one_line
from schemas.errors import InputError, UsageError

_THREADS = 8
_FIELDS = {
    tf.string: "string_val",
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
}

Method = Callable[[Any, Any, grpc.ServicerContext], Any]


def start(models: ServedModels, address: str) -> tuple[grpc.Server, int]:
    """Starts the services; returns the server and the port it got.

    Args:
      models: served.
      address: HOST:PORT; port 0 is any free one.

    Raises:
      UsageError: the port is taken.
    """
    server = grpc.server(
        futures.ThreadPoolExecutor(_THREADS, "grpc"),
        options=[
            ("grpc.max_receive_message_length", MAX_BODY_BYTES),
            ("grpc.max_send_message_length", -1),
            # Else a second server on the same port is no error.
            ("grpc.so_reuseport", 0),
        ],
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        _Predictions(models), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(
        _States(models), server
    )
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise UsageError(
            f"{address} is taken or not of this machine. Choose another "
            "--grpc-port."
        ) from error
    server.start()
    return server, port


def _explained(method: Method) -> Method:
    """Turns errors into a status with one line."""

    @functools.wraps(method)
    def explained(
        service: Any, request: Any, context: grpc.ServicerContext
    ) -> Any:
        try:
            return method(service, request, context)
        except NotServedError as error:
            code, said = grpc.StatusCode.NOT_FOUND, str(error)
        except InputError as error:
            code, said = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        return context.abort(code, " ".join(said.split()))

    return explained


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: ServedModels) -> None:
        self._models = models

    @_explained
    def Predict(
        self, request: predict_pb2.PredictRequest, _: grpc.ServicerContext
    ) -> predict_pb2.PredictResponse:
        version = self._models.get(*_asked(request.model_spec))
        signature = request.model_spec.signature_name or SERVING_DEFAULT
        check_names(request.inputs, version.specs(signature))
        inputs = {n: _array(n, t) for n, t in request.inputs.items()}
        outputs = version.predict(inputs, signature)
        wanted = set(request.output_filter) or outputs.keys()
        if not wanted <= outputs.keys():
            raise InputError(
                f"{version.model} has the outputs {', '.join(sorted(outputs))};"
                " the request's filter names others."
            )
        response = predict_pb2.PredictResponse()
        response.model_spec.name = version.model
        response.model_spec.version.value = version.number
        response.model_spec.signature_name = signature
        for name in wanted:
            _write(outputs[name], response.outputs[name])
        return response

    @_explained
    def GetModelMetadata(
        self,
        request: get_model_metadata_pb2.GetModelMetadataRequest,
        _: grpc.ServicerContext,
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if list(request.metadata_field) != ["signature_def"]:
            raise InputError("`metadata_field` must be signature_def.")
        return model_metadata(self._models.get(*_asked(request.model_spec)))


class _States(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: ServedModels) -> None:
        self._models = models

    @_explained
    def GetModelStatus(
        self,
        request: get_model_status_pb2.GetModelStatusRequest,
        _: grpc.ServicerContext,
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return model_status(self._models, *_asked(request.model_spec))


def _asked(spec: model_pb2.ModelSpec) -> tuple[str, int | None]:
    choice = spec.WhichOneof("version_choice")
    if choice == "version_label":
        raise InputError("Versions have no labels here. Give a number.")
    return spec.name, spec.version.value if choice else None


def _array(name: str, tensor: Any) -> np.ndarray:
    """A message's array; its size is judged before memory is taken for it."""
    shape = tensor.tensor_shape
    lengths = tuple(d.size for d in shape.dim)
    if shape.unknown_rank or any(length < 0 for length in lengths):
        raise InputError(f"`{name}` must have a shape of known lengths.")
    check_shape(name, lengths)
    try:
        array = tf.make_ndarray(tensor)
    # No such type; fewer values than the shape has.
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"`{name}` is no tensor: {one_line(error)}."
        ) from error
    return np.asarray(array)


def _write(array: np.ndarray, tensor: Any) -> None:
    """Fills a message's field of the type, as TensorFlow Serving does.

    `tf.make_tensor_proto` packs bytes, which clients in other languages that
    read `float_val` would take for nothing.
    """
    dtype = tf.as_dtype(array.dtype)
    tensor.dtype = dtype.as_datatype_enum
    for length in array.shape:
        tensor.tensor_shape.dim.add(size=length)
    getattr(tensor, _FIELDS[dtype]).extend(array.ravel().tolist())
