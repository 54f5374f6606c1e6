"""TensorFlow Serving's REST API: predict, status and metadata.

    POST /v1/models/<name>[/versions/<n>]:predict
    GET  /v1/models/<name>[/versions/<n>]
    GET  /v1/models/<name>[/versions/<n>]/metadata

Whatever is wrong is said in one line, `{"error": "..."}`. Bodies are read
before they are judged, so that a client that sends too much gets its answer.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from models.saved_models import SERVING_DEFAULT
from pipeline.serve.json_tensors import (
    input_arrays,
    is_by_rows,
    output_json,
    parse_body,
)
from pipeline.serve.limits import MAX_BODY_BYTES
from pipeline.serve.protocol import model_metadata, model_status
from pipeline.serve.served_models import NotServedError, ServedModels, one_line
from schemas.errors import InputError, WatchnextError

_JSON = "application/json"
_PATHS = ("/v1/models/{name}", "/v1/models/{name}/versions/{version}")
# Longer numbers are no version.
_MAX_DIGITS = 18


def routes(models: ServedModels) -> list[Route]:
    """The API's routes."""

    async def predict(request: Request) -> Response:
        body = await read_body(request)

        def answer() -> bytes:
            parsed = parse_body(body)
            by_rows = is_by_rows(parsed)
            signature = parsed.get("signature_name") or SERVING_DEFAULT
            if not isinstance(signature, str):
                raise InputError("`signature_name` must be a string.")
            version = models.get(*_asked(request))
            inputs = input_arrays(parsed, version.specs(signature))
            return output_json(version.predict(inputs, signature), by_rows)

        return Response(await run_in_threadpool(answer), media_type=_JSON)

    def status(request: Request) -> Response:
        return _message(model_status(models, *_asked(request)))

    def metadata(request: Request) -> Response:
        answer = json_format.MessageToDict(
            model_metadata(models.get(*_asked(request))),
            preserving_proto_field_name=True,
        )
        answer["metadata"]["signature_def"].pop("@type")
        return json_response(answer)

    return [
        *(Route(f"{p}:predict", predict, methods=["POST"]) for p in _PATHS),
        *(Route(f"{p}/metadata", metadata) for p in _PATHS),
        *(Route(path, status) for path in _PATHS),
    ]


async def read_body(request: Request) -> bytes:
    """Reads a body to its end, keeping no more than is allowed.

    Raises:
      InputError: it is larger than `MAX_BODY_BYTES`.
    """
    kept, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY_BYTES:
            kept += chunk
    if size > MAX_BODY_BYTES:
        raise InputError(
            f"The request has {size:,} bytes; it may have {MAX_BODY_BYTES:,}."
        )
    return bytes(kept)


def json_response(content: Any, status: int = 200) -> Response:
    """A response that browsers read: numbers only, no NaN."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    return Response(text.encode(), status, media_type=_JSON)


def error_handlers() -> dict[Any, Callable[[Request, Any], Response]]:
    """Every error as one line of JSON."""

    def http(_: Request, error: HTTPException) -> Response:
        return _error(f"{error.detail}.", error.status_code)

    def unexpected(_: Request, error: Exception) -> Response:
        # Logged by the server, with where it was raised.
        return _error(f"The server failed: {one_line(error)}.", 500)

    return {
        NotServedError: lambda _, e: _error(str(e), 404),
        InputError: lambda _, e: _error(str(e), 400),
        WatchnextError: lambda _, e: _error(str(e), 500),
        HTTPException: http,
        Exception: unexpected,
    }


def _error(message: str, status: int) -> Response:
    line = " ".join(message.split())
    # What came in may hold half a surrogate pair; it must not stop the answer.
    with contextlib.suppress(UnicodeEncodeError):
        return json_response({"error": line}, status)
    return json_response({"error": ascii(line)[1:-1]}, status)


def _message(message: Any) -> Response:
    text = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return json_response(text)


def _asked(request: Request) -> tuple[str, int | None]:
    """The model, and the version if the path has one."""
    name, version = (request.path_params.get(k) for k in ("name", "version"))
    if version is None:
        return str(name), None
    if not version.isdecimal() or len(version) > _MAX_DIGITS:
        raise NotServedError(f"{version[:50]!r} is no version's number.")
    return str(name), int(version)
