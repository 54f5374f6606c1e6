"""Runs ranking models over held-out impressions.

In: a model and batches of ranking examples. Out: flat arrays, one entry an
impression; positions are not shown to the model.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.keras_setup import tf
from models.ranking_slices import Context
from schemas.examples import PROPENSITY
from schemas.hashing import hash_strings, mix

Array = NDArray[Any]
GroupBy = Literal["request", "user_day"]

_HOUR_US = 3_600_000_000


class RankingModelLike(Protocol):
    """What is measured of `models.ranking.RankingModel`."""

    @property
    def labels(self) -> Sequence[str]: ...

    def predict(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs float32 [B, C]."""

    def compute_loss(
        self,
        inputs: Mapping[str, Any],
        *,
        training: bool,
        global_batch_size: int,
    ) -> tuple[Any, Any]:
        """The loss summed over impressions / `global_batch_size`."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Flat arrays [n], one entry an impression, padding left out.

    Attributes:
      outputs: what a model says: `score`, task probabilities, seconds.
      labels: what happened, NaN where the log does not tell; at least
        `clicked` and `watch_time_s`.
      group: integers; order is judged among impressions of equal group.
      user: integers, equal for the impressions of a user.
      groups: what the groups are, if that is to be told.
      loss: the model's own loss, a mean over impressions; None if unknown.
      context: what slices are cut by; None: no slices.
      position: from 1, 0 where not known; None: no off-policy estimates.
      propensity: of the video at this position; None likewise.
    """

    outputs: Mapping[str, Array]
    labels: Mapping[str, Array]
    group: Array
    user: Array
    groups: GroupBy | None = None
    loss: float | None = None
    context: Context | None = None
    position: Array | None = None
    propensity: Array | None = None

    def where(self, inside: Array) -> "Predictions":
        """A part of the impressions, bool [n], for the metrics."""
        return Predictions(
            {name: value[inside] for name, value in self.outputs.items()},
            {name: value[inside] for name, value in self.labels.items()},
            self.group[inside],
            self.user[inside],
        )


def group_by(has_request_ids: bool) -> GroupBy:
    """A request where the log has request ids, else a user's day."""
    return "request" if has_request_ids else "user_day"


def collect_predictions(
    model: RankingModelLike,
    dataset: Iterable[Mapping[str, Any]],
    groups: GroupBy,
    *,
    utc_offset_hours: float = 0.0,
    detailed: bool = False,
) -> Predictions:
    """Runs a model over a dataset.

    Args:
      model: as trained.
      dataset: batches of `ranking_keys`, any sizes.
      groups: what `group` numbers: requests, or days of users.
      utc_offset_hours: a day begins at midnight of this zone.
      detailed: also collect `context`, `position` and `propensity`.

    Raises:
      ValueError: the dataset has no impression.
    """

    def predict(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        # Summed, not averaged: batches have different numbers of impressions.
        loss, _ = model.compute_loss(batch, training=False, global_batch_size=1)
        return model.predict(batch), loss

    # One trace for all batches, the last and smaller one included.
    spec = getattr(dataset, "element_spec", None)
    run = tf.function(predict, input_signature=None if spec is None else [spec])

    parts: dict[tuple[str, str], list[Array]] = {}
    total = 0.0
    for batch in dataset:
        predicted, loss = run(batch)
        total += float(loss)
        labels = {name: batch[name] for name in model.labels}
        user = hash_strings(pa.array(np.asarray(batch["user_id"]).tolist()))
        other = {
            "user": user,
            "group": _group_keys(batch, user, groups, utc_offset_hours),
        }
        if detailed:
            other |= _details(batch)
        kinds = {"output": predicted, "label": labels, "other": other}
        for kind, values in kinds.items():
            for name, value in of_impressions(batch, values):
                parts.setdefault((kind, name), []).append(value)
    flat = {key: np.concatenate(part) for key, part in parts.items()}
    impressions = len(flat.get(("other", "user"), ()))
    if not impressions:
        raise ValueError(
            "Expected ranking examples with impressions to evaluate on, "
            "received none. Check that the held-out interval has impressions."
        )

    def of_kind(kind: str) -> dict[str, Array]:
        return {name: v for (of, name), v in flat.items() if of == kind}

    rest = of_kind("other")
    return Predictions(
        of_kind("output"),
        of_kind("label"),
        rest["group"],
        rest["user"],
        groups,
        total / impressions,
        Context(*(rest[f.name] for f in dataclasses.fields(Context)))
        if detailed
        else None,
        rest.get("position"),
        rest.get(PROPENSITY),
    )


def _details(batch: Mapping[str, Any]) -> dict[str, Any]:
    """`context`'s fields, `position` and `propensity` of a batch."""
    history = np.asarray(batch["watch_history"])
    found = {
        "watched": (history >= 0).sum(axis=1),
        "video": batch["video"],
        "surface": batch["surface"],
        "time_us": batch["request_time_us"],
    }
    if PROPENSITY in batch:
        found |= {name: batch[name] for name in ("position", PROPENSITY)}
    return found


def of_impressions(
    batch: Mapping[str, Any], values: Mapping[str, Any]
) -> Iterator[tuple[str, Array]]:
    """Flattens [B] or [B, C], leaving padding out."""
    slots = np.asarray(batch["clicked"]).shape[1]
    present = np.arange(slots) < np.asarray(batch["candidate_count"])[:, None]
    for name, value in values.items():
        array = np.asarray(value)
        if array.ndim == 1:
            array = np.broadcast_to(array[:, None], present.shape)
        yield name, array[present]


def _group_keys(
    batch: Mapping[str, Any],
    user: Array,
    groups: GroupBy,
    utc_offset_hours: float,
) -> Array:
    """int64 or uint64 [B]."""
    if groups == "request":
        return np.asarray(batch["request_key"])
    offset_us = round(utc_offset_hours * _HOUR_US)
    local_us = np.asarray(batch["request_time_us"]) + offset_us
    return mix(0, user, local_us // (24 * _HOUR_US))
