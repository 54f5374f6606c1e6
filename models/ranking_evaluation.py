"""Measures ranking models on held-out impressions.

In: a model and batches of ranking examples. Out: metrics by their shared
names. Order is judged by the model's `score`, probabilities by the task's own
output, seconds by `expected_watch_time_s`; positions are not shown to it.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models import ranking_metrics
from models.keras_setup import tf
from models.ranking_tasks import RATING
from schemas.hashing import hash_strings, mix

Array = NDArray[Any]
GroupBy = Literal["request", "user_day"]

_HOUR_US = 3_600_000_000
# The click's metrics are named after the event.
_METRIC_NAMES = {"clicked": "click"}
_SCORE, _SECONDS = "score", "expected_watch_time_s"


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
      loss: the model's own loss, a mean over impressions; None if unknown.
    """

    outputs: Mapping[str, Array]
    labels: Mapping[str, Array]
    group: Array
    loss: float | None = None


def group_by(has_request_ids: bool) -> GroupBy:
    """A request where the log has request ids, else a user's day."""
    return "request" if has_request_ids else "user_day"


def evaluate(
    model: RankingModelLike,
    dataset: Iterable[Mapping[str, Any]],
    groups: GroupBy,
    *,
    utc_offset_hours: float = 0.0,
    prefix: str = "ranking.",
) -> dict[str, float]:
    """Predicts and measures; see `collect_predictions` and `measure`.

    Also gives `groups_are_requests`, 1 or 0: which pairs
    `weighted_per_user_loss` compares.
    """
    predictions = collect_predictions(
        model, dataset, groups, utc_offset_hours=utc_offset_hours
    )
    values = measure(predictions, prefix)
    values[f"{prefix}groups_are_requests"] = float(groups == "request")
    return values


def collect_predictions(
    model: RankingModelLike,
    dataset: Iterable[Mapping[str, Any]],
    groups: GroupBy,
    *,
    utc_offset_hours: float = 0.0,
) -> Predictions:
    """Runs a model over a dataset.

    Args:
      model: as trained.
      dataset: batches of `ranking_keys`, any sizes.
      groups: what `group` numbers: requests, or days of users.
      utc_offset_hours: a day begins at midnight of this zone.

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

    outputs: dict[str, list[Array]] = {}
    labels: dict[str, list[Array]] = {name: [] for name in model.labels}
    group: list[Array] = []
    total = 0.0
    for batch in dataset:
        predicted, loss = run(batch)
        total += float(loss)
        slots = np.asarray(batch["clicked"]).shape[1]
        count = np.asarray(batch["candidate_count"])
        present = np.arange(slots) < count[:, None]
        for name, value in predicted.items():
            outputs.setdefault(name, []).append(np.asarray(value)[present])
        for name, values in labels.items():
            values.append(np.asarray(batch[name])[present])
        key = _group_keys(batch, groups, utc_offset_hours)
        group.append(np.repeat(key, present.sum(axis=1)))
    impressions = sum(map(len, group))
    if not impressions:
        raise ValueError(
            "Expected ranking examples with impressions to evaluate on, "
            "received none. Check that the held-out interval has impressions."
        )
    return Predictions(
        {name: np.concatenate(parts) for name, parts in outputs.items()},
        {name: np.concatenate(parts) for name, parts in labels.items()},
        np.concatenate(group),
        total / impressions,
    )


def measure(
    predictions: Predictions, prefix: str = "ranking."
) -> dict[str, float]:
    """Measures predictions, of our model or of any other.

    Args:
      predictions: `outputs` needs `score`; the rest as far as there.
      prefix: put before the names.

    Returns:
      `weighted_per_user_loss`, `weighted_per_user_loss_ties` (the share of
      pairs, by watch time, with equal scores), `watch_time_xauc`;
      `auc_<label>` and `log_loss_<label>` of each task (`click` for
      `clicked`), or `mse_rating` and `mae_rating`; with
      `expected_watch_time_s`, `watch_time_mae_s` and `calibration`; `loss`;
      `impressions`. What is undefined, such as the AUC of labels all alike,
      is left out.
    """
    outputs, labels = predictions.outputs, predictions.labels
    watch_time_s = labels["watch_time_s"]
    loss, ties = ranking_metrics.weighted_per_user_loss(
        outputs[_SCORE], labels["clicked"], watch_time_s, predictions.group
    )
    values = {
        "weighted_per_user_loss": loss,
        "weighted_per_user_loss_ties": ties,
        "watch_time_xauc": ranking_metrics.watch_time_xauc(
            outputs[_SCORE], watch_time_s
        ),
        "impressions": float(len(predictions.group)),
    }
    for task in outputs.keys() & labels.keys():
        name = _METRIC_NAMES.get(task, task)
        probability, label = outputs[task], labels[task]
        if task == RATING:
            values["mse_rating"] = ranking_metrics.mse(probability, label)
            values["mae_rating"] = ranking_metrics.mae(probability, label)
            continue
        values[f"auc_{name}"] = ranking_metrics.auc(probability, label)
        values[f"log_loss_{name}"] = ranking_metrics.log_loss(
            probability, label
        )
    if _SECONDS in outputs:
        expected_s = outputs[_SECONDS]
        values["watch_time_mae_s"] = ranking_metrics.mae(
            expected_s, watch_time_s
        )
        values["calibration"] = ranking_metrics.calibration(
            expected_s, watch_time_s
        )
    if predictions.loss is not None:
        values["loss"] = predictions.loss
    return {
        prefix + name: value
        for name, value in sorted(values.items())
        if not math.isnan(value)
    }


def _group_keys(
    batch: Mapping[str, Any], groups: GroupBy, utc_offset_hours: float
) -> Array:
    """int64 or uint64 [B]."""
    if groups == "request":
        return np.asarray(batch["request_key"])
    users = hash_strings(pa.array(np.asarray(batch["user_id"]).tolist()))
    offset_us = round(utc_offset_hours * _HOUR_US)
    local_us = np.asarray(batch["request_time_us"]) + offset_us
    return mix(0, users, local_us // (24 * _HOUR_US))
