"""SavedModels on disk: signatures, versions, warm-up requests.

In: a module of stock TensorFlow operations. Out: `<folder>/<version>/`, which
appears whole or not at all, for TensorFlow Serving or any other loader.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from models import serving_requests as requests
from models.keras_setup import tf
from schemas.errors import ArtifactError
from schemas.requests import RawInput

SERVING_DEFAULT = "serving_default"
SERIALIZED = "serialized_examples"
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"

Tensors = Mapping[str, tf.Tensor]
Service = Callable[[Tensors], dict[str, tf.Tensor]]


class ServedModule(Protocol):
    """A tf.Module with signatures; `inputs` are what a request has."""

    inputs: tuple[RawInput, ...]

    @property
    def name(self) -> str: ...

    def signatures(
        self,
    ) -> dict[str, tf.types.experimental.ConcreteFunction]: ...


def traced(
    function: Service, specs: Mapping[str, tf.TensorSpec]
) -> tf.types.experimental.ConcreteFunction:
    """Traces a signature of named tensors."""
    graph = tf.function(function, input_signature=[specs], autograph=False)
    return graph.get_concrete_function()


def traced_examples(
    function: Service, inputs: Sequence[RawInput]
) -> tf.types.experimental.ConcreteFunction:
    """Traces a signature of serialized tf.Examples of these inputs."""

    def of_examples(raw: Tensors) -> dict[str, tf.Tensor]:
        return function(requests.parsed(raw[requests.EXAMPLES], inputs))

    return traced(of_examples, requests.examples_spec())


def publish(
    service: ServedModule,
    some_videos: Sequence[str],
    folder: str,
    version: int,
) -> str:
    """Writes `<folder>/<version>/` with a warm-up request of each signature.

    Args:
      service: what is served.
      some_videos: ids for the warm-up request.
      folder: of all versions.
      version: a number from 1 that is not there yet.

    Returns:
      Path of the version.

    Raises:
      ArtifactError: the version is there already.
      ValueError: `version` is no number from 1.
    """
    with _new_version(folder, version) as path:
        signatures = service.signatures()
        tf.saved_model.save(service, path, signatures=signatures)
        request = warm_up_request(service.inputs, some_videos)
        warm_up = os.path.join(path, WARM_UP_FILE)
        tf.io.gfile.makedirs(os.path.dirname(warm_up))
        with tf.io.TFRecordWriter(warm_up) as writer:
            for signature in signatures:
                tensors = request
                if signature == SERIALIZED:
                    tensors = requests.serialized(request, service.inputs)
                log = _prediction_log(service.name, signature, tensors)
                writer.write(log)
    return os.path.join(folder, str(version))


def warm_up_request(
    inputs: Sequence[RawInput], video_ids: Sequence[str]
) -> dict[str, np.ndarray]:
    """Makes a request of one user who watched, and is shown, these videos.

    Everything else is absent, but the lists have their full lengths, so that
    the first real requests find memory and threads ready.
    """
    request = {}
    for raw in inputs:
        value: np.ndarray = np.full(
            (1, *raw.shape), raw.absent, raw.numpy_dtype
        )
        if raw.name.endswith("video_id") and raw.shape:
            ids = [v.encode() for v in video_ids][: raw.shape[0]]
            value[0, : len(ids)] = ids
        request[raw.name] = value
    return request


@contextlib.contextmanager
def _new_version(folder: str, version: int) -> Iterator[str]:
    """A folder to fill, renamed to the version when the block ends well.

    TensorFlow Serving loads a folder as soon as its name is a number, and
    ignores all others.
    """
    if version < 1:
        raise ValueError(f"`version` must be at least 1, got {version}.")
    final = os.path.join(folder, str(version))
    if tf.io.gfile.exists(final):
        raise ArtifactError(
            f"{final} is there already; versions are never replaced. Export "
            "a higher version."
        )
    partial = os.path.join(folder, f".{version}.partial")
    if tf.io.gfile.exists(partial):  # Left by a killed export.
        tf.io.gfile.rmtree(partial)
    tf.io.gfile.makedirs(partial)
    try:
        yield partial
    except BaseException:
        tf.io.gfile.rmtree(partial)
        raise
    tf.io.gfile.rename(partial, final)


def _prediction_log(
    model: str, signature: str, tensors: Mapping[str, np.ndarray]
) -> bytes:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = signature
    for name, value in tensors.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    log = prediction_log_pb2.PredictLog(request=message)
    return prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString(
        deterministic=True
    )
