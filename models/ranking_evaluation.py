"""Measures ranking models on held-out impressions.

In: predictions, a model's or any other's. Out: metrics by their shared names.
Order is judged by `score`, probabilities by the task's own output, seconds by
`expected_watch_time_s`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from models import off_policy, ranking_metrics
from models.ranking_metrics import Ratio
from models.ranking_predictions import (
    Array,
    GroupBy,
    Predictions,
    RankingModelLike,
    collect_predictions,
)
from models.ranking_slices import VideoFacts, deciles, slices
from models.ranking_tasks import RATING
from models.user_bootstrap import UserBootstrap

# The click's metrics are named after the event.
_METRIC_NAMES = {"clicked": "click"}
_SCORE, _SECONDS = "score", "expected_watch_time_s"
_MEANS = ("mean_expected_watch_time_s", "mean_watch_time_s")
# What is worth knowing of a part of the impressions.
_SLICE_METRICS = (
    *("auc_click", "calibration", "weighted_per_user_loss"),
    *_MEANS,
)

Metrics = dict[str, float]
# Name -> what computes it: not all that could be is asked for.
Measures = dict[str, Callable[[], Ratio]]


@dataclasses.dataclass(frozen=True)
class Details:
    """What the test is told beyond the metrics of each epoch.

    Attributes:
      facts: of the videos and surfaces, for the slices.
      resamples: of the users, for the intervals; 0: none.
      seed: of the resamples.
    """

    facts: VideoFacts
    resamples: int
    seed: int


def evaluate(
    model: RankingModelLike,
    dataset: Iterable[Mapping[str, Any]],
    groups: GroupBy,
    *,
    utc_offset_hours: float = 0.0,
    prefix: str = "ranking.",
    details: Details | None = None,
) -> Metrics:
    """Predicts and measures; see `collect_predictions` and `measure`."""
    predictions = collect_predictions(
        model,
        dataset,
        groups,
        utc_offset_hours=utc_offset_hours,
        detailed=details is not None,
    )
    return measure(predictions, prefix, details)


def measure(
    predictions: Predictions,
    prefix: str = "ranking.",
    details: Details | None = None,
) -> Metrics:
    """Measures predictions, of our model or of any other.

    Args:
      predictions: `outputs` needs `score`; the rest as far as there.
      prefix: put before the names.
      details: if given, also slices, off-policy estimates and intervals.

    Returns:
      `weighted_per_user_loss`, `weighted_per_user_loss_ties` (the share of
      pairs, by watch time, with equal scores), `watch_time_xauc`;
      `auc_<label>`, `auc_per_user_<label>` and `log_loss_<label>` of each
      task (`click` for `clicked`), or `mse_rating` and `mae_rating`; with
      `expected_watch_time_s`,
      `watch_time_mae_s`, `watch_time_mse_s2`, `watch_time_rmse_s` and
      `calibration`; `loss`; `impressions`; `groups_are_requests`, 1 or 0:
      which pairs `weighted_per_user_loss` compares. With details
      `<slice>.<metric>`, `off_policy.<reward>_per_request.<estimate>`, and
      `<name>_low` and `<name>_high`, the ends of a 95 % interval. What is
      undefined, such as the AUC of labels all alike, is left out.
    """
    user = np.unique(predictions.user, return_inverse=True)[1]
    bootstrap = None
    if details is not None and details.resamples:
        bootstrap = UserBootstrap(
            int(user.max()) + 1, details.resamples, details.seed
        )
    values = _values(_measures(predictions), user, bootstrap)
    for end in ("", "_low", "_high"):
        if (squared := values.get(f"watch_time_mse_s2{end}")) is not None:
            values[f"watch_time_rmse_s{end}"] = math.sqrt(max(squared, 0.0))
    values["impressions"] = float(len(user))
    if predictions.groups is not None:
        values["groups_are_requests"] = float(predictions.groups == "request")
    if predictions.loss is not None:
        values["loss"] = predictions.loss
    if details is not None:
        for name, inside, metrics in _slices(predictions, details.facts):
            part = predictions.where(inside)
            every = _measures(part) | _means(part)
            some = {m: every[m] for m in metrics if m in every}
            found = _values(some, user[inside], bootstrap)
            found["impressions"] = float(inside.sum())
            values |= {f"{name}.{k}": v for k, v in found.items()}
        values |= _off_policy(predictions, user, bootstrap)
    return {prefix + name: value for name, value in sorted(values.items())}


def _measures(predictions: Predictions) -> Measures:
    """All metrics that the outputs and labels allow, not yet computed."""
    outputs, labels = predictions.outputs, predictions.labels
    score, user = outputs[_SCORE], predictions.user
    watch_time_s = labels["watch_time_s"]
    # Both of its metrics come from one pass.
    per_user = functools.cache(
        lambda: ranking_metrics.weighted_per_user_loss(
            score, labels["clicked"], watch_time_s, predictions.group
        )
    )
    measures: Measures = {
        "weighted_per_user_loss": lambda: per_user()[0],
        "weighted_per_user_loss_ties": lambda: per_user()[1],
        "watch_time_xauc": lambda: ranking_metrics.watch_time_xauc(
            score, watch_time_s
        ),
    }
    of = functools.partial
    for task in outputs.keys() & labels.keys():
        name = _METRIC_NAMES.get(task, task)
        pair = outputs[task], labels[task]
        if task == RATING:
            measures["mse_rating"] = of(ranking_metrics.mse, *pair)
            measures["mae_rating"] = of(ranking_metrics.mae, *pair)
            continue
        measures |= {
            f"auc_{name}": of(ranking_metrics.auc, *pair),
            f"auc_per_user_{name}": of(
                ranking_metrics.auc_per_user, *pair, user
            ),
            f"log_loss_{name}": of(ranking_metrics.log_loss, *pair),
        }
    if _SECONDS in outputs:
        pair = outputs[_SECONDS], watch_time_s
        measures |= {
            "watch_time_mae_s": of(ranking_metrics.mae, *pair),
            "watch_time_mse_s2": of(ranking_metrics.mse, *pair),
            "calibration": of(ranking_metrics.calibration, *pair),
        }
    return measures


def _means(predictions: Predictions) -> Measures:
    """Both sides of the calibration, in seconds."""
    if _SECONDS not in predictions.outputs:
        return {}
    observed = predictions.labels["watch_time_s"]
    values = predictions.outputs[_SECONDS], observed
    return {
        name: functools.partial(ranking_metrics.mean_where_known, one, observed)
        for name, one in zip(_MEANS, values, strict=True)
    }


def _values(
    measures: Measures, user: Array, bootstrap: UserBootstrap | None
) -> Metrics:
    """Computes the metrics that are defined, with their intervals."""
    values: Metrics = {}
    for name, compute in measures.items():
        values |= _value(name, compute(), user, bootstrap)
    return values


def _value(
    name: str, ratio: Ratio, user: Array, bootstrap: UserBootstrap | None
) -> Metrics:
    """A metric with its interval; empty if it is undefined."""
    if math.isnan(ratio.value):
        return {}
    values = {name: ratio.value}
    if bootstrap and (ends := bootstrap.interval(ratio, user)):
        values[f"{name}_low"], values[f"{name}_high"] = ends
    return values


def _slices(
    predictions: Predictions, facts: VideoFacts
) -> Iterator[tuple[str, Array, Sequence[str]]]:
    """Name, impressions and metrics of each slice that has an impression."""
    if predictions.context is not None:
        for name, inside in slices(predictions.context, facts):
            if inside.any():
                yield name, inside, _SLICE_METRICS
    if _SECONDS in predictions.outputs:
        for name, inside in deciles(predictions.outputs[_SECONDS]):
            if inside.any():
                # The order within a tenth of equal predictions says nothing.
                yield name, inside, ("calibration", *_MEANS)


def _off_policy(
    predictions: Predictions, user: Array, bootstrap: UserBootstrap | None
) -> Metrics:
    """Clicks and watch time per request, had the score decided the order.

    Empty where the log names no requests, or left no positions to chance.
    """
    if (
        predictions.groups != "request"
        or predictions.position is None
        or predictions.propensity is None
    ):
        return {}
    log = off_policy.RandomizedLog.of(
        predictions.group, predictions.position, predictions.propensity
    )
    if not log.requests:
        return {}
    values: Metrics = {"off_policy.requests": float(log.requests)}
    outputs, labels = predictions.outputs, predictions.labels
    for name, label, output in (
        ("clicks", "clicked", "clicked"),
        ("watch_time_s", "watch_time_s", _SECONDS),
    ):
        predicted = outputs.get(output)
        ratios = off_policy.estimates(
            log,
            outputs[_SCORE][log.rows],
            labels[label][log.rows].astype(np.float64),
            None if predicted is None else predicted[log.rows],
        )
        for estimate, ratio in ratios.items():
            key = f"off_policy.{name}_per_request.{estimate}"
            values |= _value(key, ratio, user[log.rows], bootstrap)
    return values
