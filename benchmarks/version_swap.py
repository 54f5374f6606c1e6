"""Clients of the development server, while versions change under them.

Four clients, two by REST and two by gRPC, ask for so many seconds and for as
long as the swap takes: after half of them a new version of every model is
published, and when all of them serve, the other half begins. An answer that is
an error, does not come, or differs from the first one of its model has failed.
The new version is a copy: its answers are the same. The work directory is left
as it was.
"""

import argparse
import http.client
import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from benchmarks.processes import JobFailed
from benchmarks.server_process import ServerProcess
from models.keras_setup import tf
from models.saved_models import WARM_UP_FILE

CLIENTS = 4
_TIMEOUT_S = 30.0
_SWAP_S = 300.0

Arrays = Mapping[str, np.ndarray]
Ask = Callable[[str], tuple[str, dict[str, np.ndarray]]]


def warm_up_requests(
    serving: Path,
) -> dict[str, predict_pb2.PredictRequest]:
    """Model -> the request that its newest version was published with."""
    requests = {}
    for model in sorted(p.name for p in serving.iterdir() if p.is_dir()):
        path = serving / model / str(newest(serving / model)) / WARM_UP_FILE
        record = next(iter(tf.data.TFRecordDataset(str(path))))
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        requests[model] = log.predict_log.request
    return requests


def newest(folder: Path) -> int:
    """A model's highest version."""
    return max(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def publish_copies(serving: Path, server: ServerProcess) -> float:
    """Publishes the newest version of each model once more.

    Returns:
      Seconds until the server served them all.

    Raises:
      JobFailed: it did not within some minutes.
    """
    started = time.monotonic()
    for folder in sorted(p for p in serving.iterdir() if p.is_dir()):
        number = newest(folder)
        partial = folder / f"{number + 1}.partial"
        shutil.copytree(folder / str(number), partial)
        partial.rename(folder / str(number + 1))
        while not _serves(server, folder.name, number + 1):
            if time.monotonic() > started + _SWAP_S:
                raise JobFailed(f"{folder.name} {number + 1} is not served.")
            time.sleep(0.2)
    return time.monotonic() - started


def rest_client(
    port: int, requests: Mapping[str, predict_pb2.PredictRequest]
) -> Ask:
    """Asks by REST, on one connection."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=_TIMEOUT_S
    )
    bodies = {
        model: json.dumps({"inputs": _json_inputs(request)})
        for model, request in requests.items()
    }

    def ask(model: str) -> tuple[str, dict[str, np.ndarray]]:
        path = f"/v1/models/{model}:predict"
        connection.request("POST", path, bodies[model])
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != http.client.OK:
            raise RuntimeError(answer["error"])
        outputs = answer["outputs"]
        return "REST", {n: _array(v) for n, v in outputs.items()}

    return ask


def grpc_client(
    port: int, requests: Mapping[str, predict_pb2.PredictRequest]
) -> Ask:
    """Asks by gRPC; tells which version answered."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(model: str) -> tuple[str, dict[str, np.ndarray]]:
        answer = stub.Predict(requests[model], timeout=_TIMEOUT_S)
        version = answer.model_spec.version.value
        outputs = {n: tf.make_ndarray(t) for n, t in answer.outputs.items()}
        return f"gRPC, version {version}", outputs

    return ask


def load(
    server: ServerProcess,
    requests: Mapping[str, predict_pb2.PredictRequest],
    seconds: float,
    in_the_middle: Callable[[], None],
    is_right: Callable[[str, Arrays], bool],
) -> dict[str, Any]:
    """Asks without pause from `CLIENTS` threads.

    Args:
      server: is asked.
      requests: of each model, in turns.
      seconds: how long, beside the call.
      in_the_middle: is called after half of them.
      is_right: whether a model's outputs are as they must be.

    Returns:
      `requests`, `failed_requests`, the first `failures`, and `answered_by`:
      API and version -> count.
    """
    ended = threading.Event()
    answered, failures = Counter[str](), []
    kinds = (rest_client, grpc_client)
    ports = (server.rest_port, server.grpc_port)

    def client(number: int) -> None:
        ask = kinds[number % 2](ports[number % 2], requests)
        while not ended.is_set():
            for model in requests:
                try:
                    by, outputs = ask(model)
                except Exception as error:
                    failures.append(f"{model}: {error!r}")
                    continue
                answered[by] += 1
                if not is_right(model, outputs):
                    failures.append(f"{model}: another answer")

    threads = [
        threading.Thread(target=client, args=(number,))
        for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        time.sleep(seconds / 2)
        in_the_middle()
        time.sleep(seconds / 2)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    return {
        "requests": sum(answered.values()) + len(failures),
        "failed_requests": len(failures),
        "failures": failures[:5],
        "answered_by": dict(sorted(answered.items())),
    }


def swap_under_load(workdir: Path, seconds: float) -> dict[str, Any]:
    """The measure of `failed_requests`, on a copy of what is published."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for entry in workdir.iterdir():
            if entry.name != "serving":
                (copy / entry.name).symlink_to(entry.resolve())
        serving = copy / "serving"
        shutil.copytree(workdir / "serving", serving)
        requests = warm_up_requests(serving)
        with ServerProcess(copy) as server:
            ask = grpc_client(server.grpc_port, requests)
            first = {model: ask(model)[1] for model in requests}

            def is_right(model: str, outputs: Arrays) -> bool:
                return outputs.keys() == first[model].keys() and all(
                    _close(outputs[name], first[model][name])
                    for name in outputs
                )

            took: list[float] = []
            measured = load(
                server,
                requests,
                seconds,
                lambda: took.append(publish_copies(serving, server)),
                is_right,
            )
            measured["swap_s"] = round(took[0], 1)
            measured["server_ended_by_itself"] = not server.is_running
    return measured


def _serves(server: ServerProcess, model: str, number: int) -> bool:
    """Whether a version is available, by the server's word."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", server.rest_port, timeout=_TIMEOUT_S
    )
    connection.request("GET", f"/v1/models/{model}")
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return any(
        version["version"] == str(number) and version["state"] == "AVAILABLE"
        for version in answer["model_version_status"]
    )


def _json_inputs(request: predict_pb2.PredictRequest) -> dict[str, Any]:
    inputs = {}
    for name, tensor in request.inputs.items():
        array = tf.make_ndarray(tensor)
        if array.dtype == object:
            array = np.vectorize(bytes.decode, otypes=[object])(array)
        inputs[name] = array.tolist()
    return inputs


def _array(values: Any) -> np.ndarray:
    array = np.array(values)
    return array if array.dtype.kind == "f" else array.astype(np.bytes_)


def _close(received: np.ndarray, expected: np.ndarray) -> bool:
    if expected.dtype.kind == "f":
        # A candidate's place in a batch of threads moves the last bits.
        return np.allclose(received, expected, rtol=1e-5, equal_nan=True)
    return np.array_equal(
        received.astype(np.bytes_), expected.astype(np.bytes_)
    )


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("seconds", type=float)
    args = parser.parse_args()
    print(json.dumps(swap_under_load(args.workdir, args.seconds)))


if __name__ == "__main__":
    main()
