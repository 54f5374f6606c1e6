import pytest

from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import TABLES, EventSchema, ExtraColumn
from schemas.examples import ranking_keys, ranking_labels, retrieval_keys
from schemas.features import (
    Feature,
    FeatureSet,
    feature_set,
    from_json,
    to_json,
)
from schemas.requests import raw_inputs

ALL = EventSchema({t: tuple(c.name for c in cs) for t, cs in TABLES.items()})
# Users and their watches alone, as a log of ratings gives them.
BARE = EventSchema(
    {
        "watches": tuple(c.name for c in TABLES["watches"] if c.required),
        "videos": tuple(c.name for c in TABLES["videos"] if c.required),
        "users": ("user_id",),
    }
)
RETRIEVAL = RetrievalExamplesConfig(history_length=7, search_tokens=11)
RANKING = RankingExamplesConfig(max_candidates=3, max_list=2)


def test_a_bare_log_gives_watches_alone() -> None:
    features = feature_set(BARE, RETRIEVAL, RANKING)
    assert [f.name for f in features] == ["watch_history"]
    assert features.spaces("query") == ("video",)
    assert [i.name for i in raw_inputs(BARE, RETRIEVAL, RANKING)] == [
        "request_time_us",
        "watch_history_video_id",
        "watch_history_event_time_us",
        "watch_history_watch_time_s",
    ]


def test_each_optional_column_brings_its_features_and_only_those() -> None:
    names = {f.name for f in feature_set(ALL, RETRIEVAL, RANKING)}
    for table, column, feature in [
        ("users", "age", "user_age"),
        ("users", "region", "user_region"),
        ("impressions", "query_video_id", "query_video"),
        ("impressions", "seed_video_id", "seed_video"),
        ("impressions", "candidate_source", "candidate_source"),
        ("impressions", "candidate_score", "candidate_score"),
        ("videos", "language", "video_language"),
    ]:
        assert feature in names
        columns = dict(ALL.columns)
        columns[table] = tuple(c for c in columns[table] if c != column)
        without = {
            f.name
            for f in feature_set(EventSchema(columns), RETRIEVAL, RANKING)
        }
        lost = names - without
        assert feature in lost
        assert lost <= {feature, "query_channel", "query_topics"}


def test_retrieval_never_sees_what_belongs_to_a_candidate() -> None:
    keys = {
        k.name
        for part in ("train", "evaluation")
        for k in retrieval_keys(
            feature_set(ALL, RETRIEVAL, RANKING), part, example_age=True
        )
    }
    ranking_only = {
        f.name
        for f in feature_set(ALL, RETRIEVAL, RANKING).select(
            "request", "candidate"
        )
    }
    assert not keys & ranking_only
    inputs = raw_inputs(ALL, RETRIEVAL, RANKING)
    assert {i.axis for i in inputs if not i.ranking_only} == {
        "request",
        "watch",
        "search",
    }


def test_stored_shapes_follow_scope_and_kind() -> None:
    schema = EventSchema(
        ALL.columns,
        {
            "users": (ExtraColumn("income", "continuous"),),
            "videos": (ExtraColumn("cast", "categorical_list", "person"),),
            "impressions": (ExtraColumn("mood", "categorical"),),
        },
        ("long_view",),
    )
    features = feature_set(schema, RETRIEVAL, RANKING)
    shapes = {k.name: k.shape for k in ranking_keys(features, schema, 3)}
    assert shapes["watch_history"] is None  # a list of any length
    assert shapes["user_income"] == (4,)  # x~, x~^2, sqrt(x~), is_missing
    assert shapes["user_region"] == ()
    assert shapes["duration_s"] == (3, 4)
    assert shapes["video"] == (3,)
    assert shapes["video_cast"] == (3, 2)
    assert shapes["long_view"] == (3,)
    assert features["video_cast"].space == "person"
    assert features["impression_mood"].space == "mood"
    assert ranking_labels(schema) == (
        "clicked",
        "watch_time_s",
        "liked",
        "dismissed",
        "rating",
        "long_view",
    )
    # No label, but stored beside them.
    assert shapes["propensity"] == (3,)
    assert from_json(to_json(features)) == features


def test_a_contradictory_declaration_is_refused() -> None:
    with pytest.raises(ValueError, match="twice: a"):
        FeatureSet((Feature("a", "categorical", "query", "s"),) * 2)
    with pytest.raises(ValueError, match="max_length"):
        Feature("a", "bag", "query", "s")
    with pytest.raises(ValueError, match="need a space"):
        Feature("a", "categorical", "query")
