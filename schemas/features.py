"""Every feature of both models, declared once.

A `Feature` is what the transform graph emits, the TFRecords carry and the
models read. What the graph takes in is `schemas/requests.py`. Nothing else
spells a feature's key: modules go through `FeatureSet`.

Scopes:
  query: one value a request, known before any candidate; both models.
  request: one value a request; the ranking model only.
  candidate: one value per candidate of a request; the ranking model only.

Kinds and the tensors the transform graph emits for a batch of B requests with
C candidates (query and request scope have no C axis):
  categorical  int64 [B, C]       id in 1..V of `space`, 0 out of vocabulary
  bag          int64 [B, C, max_length]  ids, -1 is padding
  continuous   float32 [B, C, 4]  x~, x~ squared, sqrt(x~), is_missing
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import EventSchema, ExtraColumn

Kind = Literal["categorical", "bag", "continuous"]
Scope = Literal["query", "request", "candidate"]

PADDING_ID = -1
OUT_OF_VOCABULARY_ID = 0
# x~, x~ squared, sqrt(x~), is_missing: the last axis of a continuous feature.
CONTINUOUS_WIDTH = 4
# Spaces without a vocabulary file: id = value + 1.
FIXED_SPACES = {"hour_of_day": 24, "day_of_week": 7}


@dataclasses.dataclass(frozen=True)
class Feature:
    """One input of a model."""

    name: str
    kind: Kind
    scope: Scope
    space: str | None = None
    max_length: int | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        if (self.kind == "continuous") != (self.space is None):
            raise ValueError(
                f"Feature {self.name!r} of kind {self.kind!r} has space "
                f"{self.space!r}; ids need a space, continuous values none."
            )
        if (self.kind == "bag") != (self.max_length is not None):
            raise ValueError(
                f"Feature {self.name!r} of kind {self.kind!r} has max_length "
                f"{self.max_length!r}; exactly the bags have one."
            )


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """The features that one log and config give, in a fixed order."""

    features: tuple[Feature, ...]

    def __post_init__(self) -> None:
        names = [f.name for f in self.features]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"Features declared twice: {', '.join(twice)}.")

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def __getitem__(self, name: str) -> Feature:
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    def select(
        self, *scopes: Scope, kind: Kind | None = None
    ) -> tuple[Feature, ...]:
        """Features of the given scopes (and kind), in order."""
        return tuple(
            f
            for f in self.features
            if f.scope in scopes and kind in (None, f.kind)
        )

    def spaces(self, *scopes: Scope) -> tuple[str, ...]:
        """ID spaces that features of these scopes use, each once."""
        used = (f.space for f in self.features if f.scope in scopes)
        return tuple(dict.fromkeys(s for s in used if s is not None))


def feature_set(
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
) -> FeatureSet:
    """Declares the features that the log's columns allow.

    What depends on an absent optional column or table is left out.
    """
    features = list(_query_features(schema, retrieval))
    if schema.has("impressions"):
        features += _request_features(schema, retrieval)
        features += _candidate_features(schema, ranking)
    return FeatureSet(tuple(features))


def _query_features(
    schema: EventSchema, config: RetrievalExamplesConfig
) -> Iterable[Feature]:
    yield Feature(
        "watch_history", "bag", "query", "video", config.history_length
    )
    if schema.has("searches"):
        yield Feature(
            "search_tokens", "bag", "query", "token", config.search_tokens
        )
    for column in ("region", "device", "language", "gender", "logged_in"):
        if schema.has("users", column):
            yield Feature(f"user_{column}", "categorical", "query", column)
    if schema.has("users", "age"):
        yield Feature("user_age", "continuous", "query", unit="years")
    yield from _extras(
        schema.extras_of("users"), "user", "query", config.max_list
    )


def _request_features(
    schema: EventSchema, config: RetrievalExamplesConfig
) -> Iterable[Feature]:
    def count(name: str, unit: str) -> Feature:
        return Feature(name, "continuous", "request", unit=unit)

    yield Feature("surface", "categorical", "request", "surface")
    yield Feature("hour_of_day", "categorical", "request", "hour_of_day")
    yield Feature("day_of_week", "categorical", "request", "day_of_week")
    if schema.has("searches"):
        yield Feature(
            "last_search_tokens", "bag", "request", "token", config.max_list
        )
    if schema.has("impressions", "query_video_id"):
        yield Feature("query_video", "categorical", "request", "video")
        yield Feature("query_channel", "categorical", "request", "channel")
        yield Feature(
            "query_topics", "bag", "request", "topic", config.max_list
        )
    yield count("recent_watches", "watches")
    yield count("recent_impressions", "impressions")
    yield count("recent_click_share", "share")
    # Tells users apart who click alike and finish little or much.
    yield count("recent_completed_share", "share")
    yield count("recent_watch_time_s", "s")
    yield count("time_since_last_watch_s", "s")
    yield count("time_since_last_impression_s", "s")


def _candidate_features(
    schema: EventSchema, config: RankingExamplesConfig
) -> Iterable[Feature]:
    def categorical(name: str, space: str) -> Feature:
        return Feature(name, "categorical", "candidate", space)

    def number(name: str, unit: str) -> Feature:
        return Feature(name, "continuous", "candidate", unit=unit)

    yield categorical("video", "video")
    yield categorical("channel", "channel")
    yield Feature("topics", "bag", "candidate", "topic", config.max_list)
    if schema.has("videos", "language"):
        yield categorical("video_language", "language")
    if schema.has("impressions", "seed_video_id"):
        yield categorical("seed_video", "video")
    if schema.has("impressions", "candidate_source"):
        yield categorical("candidate_source", "candidate_source")
    if schema.has("impressions", "candidate_score"):
        yield number("candidate_score", "score")
    yield number("duration_s", "s")
    yield number("video_age_days", "days")
    # What the user did with the candidate's channel and topics (section 4.1:
    # "the most important signals describe a user's previous interaction").
    for group in ("channel", "topic"):
        yield number(f"{group}_watches", "watches")
        yield number(f"{group}_watch_time_s", "s")
        yield number(f"time_since_{group}_watch_s", "s")
        yield number(f"{group}_impressions", "impressions")
    # Churn: a video shown before and not clicked should sink (section 4.1).
    yield number("previous_impressions", "impressions")
    yield number("time_since_impression_s", "s")
    yield number("previous_watches", "watches")
    if config.lagged_statistics:
        for group in ("video", "channel"):
            yield number(f"{group}_lagged_impressions", "impressions")
            yield number(f"{group}_lagged_click_rate", "share")
            yield number(f"{group}_lagged_watch_time_s", "s/impression")
    yield from _extras(
        schema.extras_of("videos"), "video", "candidate", config.max_list
    )
    yield from _extras(
        schema.extras_of("impressions"),
        "impression",
        "candidate",
        config.max_list,
    )


def _extras(
    columns: Iterable[ExtraColumn], prefix: str, scope: Scope, max_list: int
) -> Iterable[Feature]:
    for column in columns:
        name = f"{prefix}_{column.name}"
        if column.kind == "continuous":
            yield Feature(name, "continuous", scope, unit=column.unit)
        elif column.kind == "categorical":
            yield Feature(name, "categorical", scope, extra_space(column))
        elif column.kind == "categorical_list":
            yield Feature(name, "bag", scope, extra_space(column), max_list)


def extra_space(column: ExtraColumn) -> str:
    """The ID space of a declared categorical column."""
    return column.space or column.name


def to_json(features: FeatureSet) -> list[dict[str, object]]:
    """Plain values for a model's own description."""
    return [dataclasses.asdict(f) for f in features]


def from_json(values: list[dict[str, object]]) -> FeatureSet:
    """The inverse of `to_json`."""
    return FeatureSet(tuple(Feature(**v) for v in values))  # type: ignore[arg-type]
