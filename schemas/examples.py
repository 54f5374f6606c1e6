"""What the TFRecords hold: tf.Example keys, dtypes and shapes.

Bags of query and request scope are stored without padding (a VarLen list) and
read back padded with -1; everything with a candidate axis C is stored padded
to `max_candidates`, with `candidate_count` beside it, so that shapes are
static. Writers use `stored_length`, readers `parse_spec`.
"""

import dataclasses
from typing import Literal

import tensorflow as tf

from schemas.events import EventSchema
from schemas.features import CONTINUOUS_WIDTH, Feature, FeatureSet

# What the log says of an impression's position, beside what happened.
PROPENSITY = "propensity"
FILE_PATTERN = "{part}-{shard:05d}-of-{shards:05d}.tfrecord"


@dataclasses.dataclass(frozen=True)
class ExampleKey:
    """One key of a tf.Example; `shape` None is a list of any length."""

    name: str
    dtype: Literal["int64", "float32", "string"]
    shape: tuple[int, ...] | None

    def parse_spec(self) -> tf.io.FixedLenFeature | tf.io.RaggedFeature:
        dtype = tf.dtypes.as_dtype(self.dtype)
        if self.shape is None:
            return tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
        return tf.io.FixedLenFeature(self.shape, dtype)


def retrieval_keys(
    features: FeatureSet,
    part: Literal["train", "evaluation"],
    *,
    example_age: bool,
) -> tuple[ExampleKey, ...]:
    """Keys of a retrieval example.

    Training: one next watch. `label` is in 1..V; `example_age` is (end of the
    training window - label time) / length of the window, in [0, 1].
    Evaluation: one case a user. `labels` are the completed watches of the
    held-out interval in time order, 0 where out of vocabulary (a miss);
    `seen` are all videos watched before the case, at any time.
    """
    keys = [_feature_key(f, None) for f in features.select("query")]
    keys.append(ExampleKey("user_id", "string", ()))
    keys.append(ExampleKey("event_time_us", "int64", ()))
    if part == "evaluation":
        keys.append(ExampleKey("labels", "int64", None))
        keys.append(ExampleKey("seen", "int64", None))
        return tuple(keys)
    if example_age:
        keys.append(ExampleKey("example_age", "float32", ()))
    keys.append(ExampleKey("label", "int64", ()))
    keys.append(ExampleKey("example_weight", "float32", ()))
    return tuple(keys)


def ranking_keys(
    features: FeatureSet, schema: EventSchema, max_candidates: int
) -> tuple[ExampleKey, ...]:
    """Keys of a ranking example: one request with its impressions.

    `request_key` is equal for the examples of one request (a long request is
    continued in a further example); `position` is 0 where not known; an
    observation is NaN where the log does not tell.
    """
    per_candidate = (max_candidates,)
    keys = [_feature_key(f, None) for f in features.select("query", "request")]
    keys += [
        _feature_key(f, max_candidates) for f in features.select("candidate")
    ]
    keys.append(ExampleKey("user_id", "string", ()))
    keys.append(ExampleKey("request_time_us", "int64", ()))
    keys.append(ExampleKey("request_key", "int64", ()))
    keys.append(ExampleKey("candidate_count", "int64", ()))
    keys.append(ExampleKey("position", "int64", per_candidate))
    keys += [
        ExampleKey(name, "float32", per_candidate)
        for name in ranking_observations(schema)
    ]
    return tuple(keys)


def ranking_observations(schema: EventSchema) -> tuple[str, ...]:
    """What no request carries: the labels and, where logged, `propensity`.

    Each float32 [C] or NaN. `propensity` is for evaluation alone.
    """
    known = schema.has("impressions", PROPENSITY)
    return (*ranking_labels(schema), *([PROPENSITY] if known else []))


def ranking_labels(schema: EventSchema) -> tuple[str, ...]:
    """Names of what happened to an impression, each float32 [C] or NaN."""
    optional = [
        name
        for name in ("liked", "dismissed", "rating")
        if schema.has("impressions", name)
    ]
    return ("clicked", "watch_time_s", *optional, *schema.labels)


def _feature_key(feature: Feature, candidates: int | None) -> ExampleKey:
    outer = () if candidates is None else (candidates,)
    if feature.kind == "continuous":
        shape: tuple[int, ...] | None = (*outer, CONTINUOUS_WIDTH)
        return ExampleKey(feature.name, "float32", shape)
    if feature.kind == "categorical":
        return ExampleKey(feature.name, "int64", outer)
    if candidates is None:
        return ExampleKey(feature.name, "int64", None)
    assert feature.max_length is not None  # Feature's own invariant.
    return ExampleKey(feature.name, "int64", (*outer, feature.max_length))
