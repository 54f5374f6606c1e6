"""Impressions as rows of numbers, for models that are no networks.

In: batches of ranking examples. Out: what the ranking model sees of an
impression, its transformed features, one row an impression: numbers and single
ids; bags of ids are left out.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from models.ranking_predictions import of_impressions
from schemas.features import CONTINUOUS_WIDTH, Feature, FeatureSet
from schemas.hashing import uniform

LABELS = ("clicked", "watch_time_s")
_IS_MISSING = CONTINUOUS_WIDTH - 1


@dataclasses.dataclass(frozen=True)
class Table:
    """Impressions as rows.

    Attributes:
      columns: feature -> float32 [n] normalised values, NaN where missing, or
        int64 [n] ids.
      labels: what happened -> float32 [n], NaN where the log does not tell.
    """

    columns: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]

    def matrix(self, names: Sequence[str]) -> np.ndarray:
        """Some columns, float32 [n, columns]: exact for ids below 2^24."""
        columns = [self.columns[name] for name in names]
        return np.stack(columns, axis=1, dtype=np.float32)

    def ids(self) -> list[str]:
        """Names of the columns that are ids."""
        return [n for n, c in self.columns.items() if c.dtype == np.int64]


def columns_of(features: FeatureSet) -> tuple[Feature, ...]:
    """The features of a `Table`."""
    scopes = features.select("query", "request", "candidate")
    return tuple(f for f in scopes if f.kind != "bag")


def read_table(
    batches: Iterable[Mapping[str, Any]],
    features: Sequence[Feature],
    share: float = 1.0,
    labels: Sequence[str] = LABELS,
) -> Table:
    """Reads ranking examples.

    Args:
      batches: tensors of `ranking_keys`.
      features: the columns, none of them a bag.
      share: take this share of the requests, chosen by stable hash.
      labels: which to take along.

    Raises:
      ValueError: no impression is taken.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        values: dict[str, Any] = {f.name: _column(batch, f) for f in features}
        values |= {n: batch[n] for n in labels}
        chosen = uniform(0, np.asarray(batch["request_key"])) < share
        values["chosen"] = chosen
        flat = dict(of_impressions(batch, values))
        kept = flat.pop("chosen")
        for name, value in flat.items():
            parts.setdefault(name, []).append(value[kept])
    flat = {name: np.concatenate(part) for name, part in parts.items()}
    if not flat or not len(flat[labels[0]]):
        raise ValueError(
            "Expected ranking examples with impressions, received none. Check "
            "the interval and evaluation.ranking_baseline_impressions."
        )
    return Table(labels={name: flat.pop(name) for name in labels}, columns=flat)


def _column(batch: Mapping[str, Any], feature: Feature) -> np.ndarray:
    """A feature's column, [B] or [B, C]."""
    values = np.asarray(batch[feature.name])
    if feature.kind == "categorical":
        return values
    missing = values[..., _IS_MISSING] > 0.5
    return np.where(missing, np.float32(np.nan), values[..., 0])
