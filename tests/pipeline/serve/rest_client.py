"""A REST client, with nothing of the server's code."""

import http.client
import json
from typing import Any


def call(
    server: Any, path: str, body: Any = None, method: str | None = None
) -> tuple[int, Any]:
    """Status and parsed JSON; a body is sent as it is, or as JSON."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", server.rest_port, timeout=60
    )
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    connection.request(
        method or ("GET" if body is None else "POST"), path, body
    )
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text)


def predict(
    server: Any, body: Any, model: str = "retrieval"
) -> tuple[int, Any]:
    return call(server, f"/v1/models/{model}:predict", body)
