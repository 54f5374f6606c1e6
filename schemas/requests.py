"""The raw request: what serving receives, and all that training may use.

These are the inputs of the transform graph, as dense batches. An absent slot
of a list is "" for a string, 0 for a time and NaN for a quantity; lists are
most recent first. Names are flat because a SavedModel's signature allows no
dots in them.
"""

import dataclasses
from typing import Literal

import numpy as np

from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import EventSchema

Dtype = Literal["string", "int64", "float32"]
Axis = Literal["request", "watch", "impression", "search", "candidate"]


@dataclasses.dataclass(frozen=True)
class RawInput:
    """One input tensor: [B] for axis `request`, else [B, length of axis].

    `inner` > 0 adds a last axis of that many strings (a list per cell).
    `ranking_only` inputs are not part of the retrieval request.
    """

    name: str
    dtype: Dtype
    axis: Axis
    length: int | None = None
    inner: int = 0
    ranking_only: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without the batch axis."""
        outer = () if self.length is None else (self.length,)
        return (*outer, self.inner) if self.inner else outer

    @property
    def numpy_dtype(self) -> type:
        return {"string": np.object_, "int64": np.int64, "float32": np.float32}[
            self.dtype
        ]

    @property
    def absent(self) -> bytes | int | float:
        """The value of a slot that the request does not fill."""
        absent: dict[str, bytes | int | float] = {
            "string": b"",
            "int64": 0,
            "float32": float("nan"),
        }
        return absent[self.dtype]


def raw_inputs(
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
) -> tuple[RawInput, ...]:
    """Lists the request's tensors for a log, in a fixed order."""
    history, inputs = retrieval.history_length, []

    def add(
        name: str,
        dtype: Dtype,
        axis: Axis = "request",
        inner: int = 0,
        ranking_only: bool = False,
    ) -> None:
        length = {
            "request": None,
            "watch": history,
            "impression": history,
            "search": retrieval.searches,
            "candidate": ranking.max_candidates,
        }[axis]
        inputs.append(RawInput(name, dtype, axis, length, inner, ranking_only))

    add("request_time_us", "int64")
    add("watch_history_video_id", "string", "watch")
    add("watch_history_event_time_us", "int64", "watch")
    add("watch_history_watch_time_s", "float32", "watch")
    if schema.has("searches"):
        add("search_query", "string", "search")
        add("search_event_time_us", "int64", "search")
    for column in ("region", "device", "language", "gender", "logged_in"):
        if schema.has("users", column):
            add(f"user_{column}", "string")
    if schema.has("users", "age"):
        add("user_age", "float32")
    for extra in schema.extras_of("users"):
        if extra.kind == "continuous":
            add(f"user_{extra.name}", "float32")
        elif extra.kind == "categorical":
            add(f"user_{extra.name}", "string")
        elif extra.kind == "categorical_list":
            add(f"user_{extra.name}", "string", inner=retrieval.max_list)
    if not schema.has("impressions"):
        return tuple(inputs)

    def rank(
        name: str, dtype: Dtype, axis: Axis = "request", inner: int = 0
    ) -> None:
        add(name, dtype, axis, inner, ranking_only=True)

    # 1 or 0; NaN while the watch goes on.
    rank("watch_history_completed", "float32", "watch")
    rank("impression_history_video_id", "string", "impression")
    rank("impression_history_event_time_us", "int64", "impression")
    rank("surface", "string")
    if schema.has("impressions", "query_video_id"):
        rank("query_video_id", "string")
    rank("candidate_video_id", "string", "candidate")
    if schema.has("impressions", "position"):
        # Position for the shallow tower alone; 0 is "not known".
        rank("candidate_position", "int64", "candidate")
    if schema.has("impressions", "seed_video_id"):
        rank("candidate_seed_video_id", "string", "candidate")
    if schema.has("impressions", "candidate_source"):
        rank("candidate_source", "string", "candidate")
    if schema.has("impressions", "candidate_score"):
        rank("candidate_score", "float32", "candidate")
    if ranking.lagged_statistics:
        # Up to the day before the request; a server fills in the newest.
        for group in ("video", "channel"):
            rank(f"{group}_lagged_impressions", "float32", "candidate")
            rank(f"{group}_lagged_click_rate", "float32", "candidate")
            rank(f"{group}_lagged_watch_time_s", "float32", "candidate")
    for extra in schema.extras_of("impressions"):
        if extra.kind == "continuous":
            rank(f"impression_{extra.name}", "float32", "candidate")
        elif extra.kind == "categorical":
            rank(f"impression_{extra.name}", "string", "candidate")
        elif extra.kind == "categorical_list":
            rank(
                f"impression_{extra.name}",
                "string",
                "candidate",
                inner=ranking.max_list,
            )
    return tuple(inputs)


def retrieval_inputs(
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
) -> tuple[RawInput, ...]:
    """Those of `raw_inputs` that the retrieval request has."""
    inputs = raw_inputs(schema, retrieval, ranking)
    return tuple(i for i in inputs if not i.ranking_only)
