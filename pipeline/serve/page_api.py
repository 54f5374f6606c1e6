"""The page and the JSON it asks for: users, videos, recommendations.

Recommendations come from the SavedModels by the same call as a client's.
"""

import importlib.resources
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pydantic
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from models.recommender import EVERY_CANDIDATE
from models.saved_models import SERVING_DEFAULT
from models.serving import RECOMMENDER, RETRIEVAL
from pipeline.recommend import Recommendation, described
from pipeline.serve.json_tensors import parse_body
from pipeline.serve.limits import MAX_STRING_BYTES
from pipeline.serve.log import Log
from pipeline.serve.rest import json_response, read_body
from pipeline.serve.served_models import LoadedVersion, ServedModels
from schemas.errors import ArtifactError, InputError

_FOUND = 20
_HEADERS = {
    # Nothing from elsewhere, nothing to elsewhere.
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_Text = pydantic.constr(strict=True, max_length=MAX_STRING_BYTES // 4)


class Wanted(pydantic.BaseModel):
    """For whom to recommend; see `Log.request`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    user_id: _Text | None = None  # type: ignore[valid-type]
    history: list[_Text] | None = pydantic.Field(  # type: ignore[valid-type]
        None, max_length=1000
    )
    searches: list[_Text] = pydantic.Field(  # type: ignore[valid-type]
        [], max_length=1000
    )


def routes(models: ServedModels, log: Log) -> list[Route]:
    """The page's routes."""
    page = importlib.resources.files("pipeline.serve").joinpath("page.html")
    text = page.read_text(encoding="utf-8")

    def index(_: Request) -> Response:
        return HTMLResponse(text, headers=_HEADERS)

    def about(_: Request) -> Response:
        versions = {name: models.get(name).number for name in models.names}
        return json_response(
            {
                "versions": versions,
                "num_users": len(log.facts.users),
                "num_videos": log.videos.num_rows,
                "has_searches": log.has_searches,
                "has_ranking": RECOMMENDER in versions,
            }
        )

    def users(request: Request) -> Response:
        return json_response(log.find_users(_query(request), _FOUND))

    def videos(request: Request) -> Response:
        return json_response(log.find_videos(_query(request), _FOUND))

    async def recommend(request: Request) -> Response:
        body = await read_body(request)

        def answer() -> dict[str, Any]:
            return recommendations(models, log, _wanted(parse_body(body)))

        return json_response(await run_in_threadpool(answer))

    return [
        Route("/", index),
        Route("/api/about", about),
        Route("/api/users", users),
        Route("/api/videos", videos),
        Route("/api/recommend", recommend, methods=["POST"]),
    ]


def recommendations(
    models: ServedModels, log: Log, wanted: Wanted
) -> dict[str, Any]:
    """All candidates for one request, ranked, with what went in.

    Returns:
      `request` (what the models were told), `ranked` (all candidates, best
      first, each with its `source`: name, rank from 1, score) and `versions`.

    Raises:
      InputError: the log does not have the user.
      ArtifactError: the models are of another log or configuration.
    """
    name = RECOMMENDER if RECOMMENDER in models.names else RETRIEVAL
    version = models.get(name)
    request = log.request(wanted.user_id, wanted.history, wanted.searches)
    rows = described(_call(version, request), request, log.videos)
    return {
        "request": _told(log, wanted, request),
        "ranked": [_row(row) for row in rows],
        "versions": {name: version.number},
    }


def _call(
    version: LoadedVersion, request: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    known = version.has(EVERY_CANDIDATE)
    signature = EVERY_CANDIDATE if known else SERVING_DEFAULT
    specs = version.specs(signature)
    missing = sorted(specs.keys() - request.keys())
    if missing:
        raise ArtifactError(
            f"{version.model} version {version.number} wants "
            f"{', '.join(missing)}, which this log's requests do not have: it "
            "was exported for another log or configuration. Run `watchnext "
            "export` again."
        )
    return version.predict({n: request[n] for n in specs}, signature)


def _row(row: Recommendation) -> dict[str, Any]:
    return {
        "video_id": row.video_id,
        "title": row.title,
        "channel_id": row.channel_id,
        "score": _finite(row.score),
        "predictions": {n: _finite(p) for n, p in row.predictions.items()},
        "why": row.why,
        "source": {
            "name": row.source,
            "rank": row.retrieval_rank,
            "score": _finite(row.retrieval_score),
        },
    }


def _told(
    log: Log, wanted: Wanted, request: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    watched = request["watch_history_video_id"][0]
    seconds = request["watch_history_watch_time_s"][0]
    searches = request["search_query"][0] if log.has_searches else []
    return {
        "user_id": wanted.user_id,
        "request_time_us": int(request["request_time_us"][0]),
        "history": [
            log.about(v.decode()) | {"watch_time_s": _finite(float(s))}
            for v, s in zip(watched, seconds, strict=True)
            if v
        ],
        "searches": [s.decode() for s in searches if s],
    }


def _finite(value: float) -> float | None:
    """Strict JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _query(request: Request) -> str:
    return str(request.query_params.get("q", "")).strip()


def _wanted(body: Mapping[str, Any]) -> Wanted:
    try:
        return Wanted.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        raise InputError(f"`{place}`: {first['msg']}.") from error
