"""What a ranking model should beat: popularity, a linear model, trees.

All see of an impression what the ranking model sees, its transformed features,
in one table: numbers and single ids; bags of ids are left out, as trees take
none. The learned ones predict clicks and watch time, clicked or not.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from models.ranking_predictions import of_impressions
from schemas.errors import UsageError
from schemas.events import LONGEST_WATCH_S
from schemas.features import CONTINUOUS_WIDTH, Feature, FeatureSet
from schemas.hashing import uniform

Outputs = dict[str, np.ndarray]
# Impressions of an average video that are added to each video's.
_PRIOR_IMPRESSIONS = 20.0
_IS_MISSING = CONTINUOUS_WIDTH - 1
_ROUNDS, _PATIENCE = 500, 20


@dataclasses.dataclass(frozen=True)
class Table:
    """Impressions as rows.

    Attributes:
      columns: feature -> float32 [n] normalised values, NaN where missing, or
        int64 [n] ids.
      clicked, watch_time_s: float32 [n], NaN where the log does not tell.
    """

    columns: Mapping[str, np.ndarray]
    clicked: np.ndarray
    watch_time_s: np.ndarray

    def matrix(self) -> np.ndarray:
        """All columns, float32 [n, columns]: exact for ids below 2^24."""
        return np.stack(list(self.columns.values()), axis=1, dtype=np.float32)

    def ids(self) -> list[str]:
        """Names of the columns that are ids."""
        return [n for n, c in self.columns.items() if c.dtype == np.int64]


class Baseline(Protocol):
    """What is measured beside the model."""

    def outputs(self, table: Table) -> Outputs:
        """`score`, `clicked` and, if known, `expected_watch_time_s`, [n]."""


def columns_of(features: FeatureSet) -> tuple[Feature, ...]:
    """The features of a `Table`."""
    scopes = features.select("query", "request", "candidate")
    return tuple(f for f in scopes if f.kind != "bag")


def read_table(
    batches: Iterable[Mapping[str, Any]],
    features: Sequence[Feature],
    share: float = 1.0,
) -> Table:
    """Reads ranking examples.

    Args:
      batches: tensors of `ranking_keys`.
      features: the columns, none of them a bag.
      share: take this share of the requests, chosen by stable hash.

    Raises:
      ValueError: no impression is taken.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        values: dict[str, Any] = {f.name: _column(batch, f) for f in features}
        values |= {n: batch[n] for n in ("clicked", "watch_time_s")}
        chosen = uniform(0, np.asarray(batch["request_key"])) < share
        values["chosen"] = chosen
        flat = dict(of_impressions(batch, values))
        kept = flat.pop("chosen")
        for name, value in flat.items():
            parts.setdefault(name, []).append(value[kept])
    columns = {name: np.concatenate(part) for name, part in parts.items()}
    if not columns or not len(columns["clicked"]):
        raise ValueError(
            "Expected ranking examples with impressions, received none. Check "
            "the interval and evaluation.ranking_baseline_impressions."
        )
    return Table(
        columns=columns,
        clicked=columns.pop("clicked"),
        watch_time_s=columns.pop("watch_time_s"),
    )


class Popularity:
    """Clicks per impression of the video, drawn to the mean of all.

    Args:
      batches: training examples.
      num_videos: V; videos out of vocabulary share a rate.
    """

    def __init__(
        self, batches: Iterable[Mapping[str, Any]], num_videos: int
    ) -> None:
        clicks, impressions = np.zeros((2, num_videos + 1))
        for batch in batches:
            names = ("video", "clicked")
            flat = dict(of_impressions(batch, {n: batch[n] for n in names}))
            known = np.isfinite(flat["clicked"])
            video = flat["video"][known]
            clicks += np.bincount(
                video, flat["clicked"][known], minlength=num_videos + 1
            )
            impressions += np.bincount(video, minlength=num_videos + 1)
        mean = clicks.sum() / max(impressions.sum(), 1.0)
        self._rate = (clicks + _PRIOR_IMPRESSIONS * mean) / (
            impressions + _PRIOR_IMPRESSIONS
        )

    def outputs(self, table: Table) -> Outputs:
        rate = self._rate[table.columns["video"]]
        return {"score": rate, "clicked": rate}


class LinearRanking:
    """Logistic regressions of the click and of watch time.

    Watch time as in the ranking model's objective `expected_watch_time`: each
    impression is a positive of weight T and a negative of weight 1, so that
    the odds are E[T]. By scikit-learn.
    """

    def __init__(self, table: Table) -> None:
        self._sizes = {n: int(table.columns[n].max()) for n in table.ids()}
        inputs = self._inputs(table)
        known = np.isfinite(table.clicked)
        self._click = _fitted(inputs[known], table.clicked[known] > 0.5)
        watched = np.nan_to_num(table.watch_time_s.astype(np.float64))
        self._unit_s = max(float(watched.mean()), 1e-6)
        told = np.isfinite(table.watch_time_s)
        positive = watched > 0.0
        self._seconds = _fitted(
            sparse.vstack([inputs[positive], inputs[told]], format="csr"),
            np.repeat([True, False], [positive.sum(), told.sum()]),
            np.append(watched[positive] / self._unit_s, np.ones(told.sum())),
        )

    def outputs(self, table: Table) -> Outputs:
        inputs = self._inputs(table)
        # Clipped where e^z leaves the valid watch times, as the model's are.
        log_s = self._seconds.decision_function(inputs) + np.log(self._unit_s)
        seconds = np.exp(np.minimum(log_s, np.log(LONGEST_WATCH_S)))
        clicked = self._click.predict_proba(inputs)[:, 1]
        return _by_seconds(clicked, seconds)

    def _inputs(self, table: Table) -> sparse.csr_matrix:
        """Of values x, x^2, sqrt(x) and whether missing; of ids ones."""
        blocks = []
        for name, column in table.columns.items():
            if name in self._sizes:
                largest = self._sizes[name]
                rows = np.flatnonzero((column > 0) & (column <= largest))
                shape = (len(column), largest + 1)
                ones = np.ones(len(rows), np.float32)
                one_hot = (ones, (rows, column[rows]))
                blocks.append(sparse.csr_matrix(one_hot, shape=shape))
                continue
            missing = np.isnan(column)
            x = np.where(missing, 0.0, column)
            dense = np.stack([x, x**2, np.sqrt(x), missing], axis=1)
            blocks.append(sparse.csr_matrix(dense.astype(np.float32)))
        return sparse.hstack(blocks, format="csr")


class LightGbm:
    """Gradient boosted trees by LightGBM: clicks, and watch time (Tweedie).

    The Tweedie loss estimates a mean of amounts of which many are zero. The
    number of trees is chosen on validation.

    Raises:
      UsageError: LightGBM is not installed.
    """

    def __init__(self, table: Table, valid: Table, seed: int) -> None:
        self._lightgbm = _import_lightgbm()
        self._click = self._fit(table, valid, "clicked", "binary", seed)
        self._seconds = self._fit(table, valid, "watch_time_s", "tweedie", seed)

    def outputs(self, table: Table) -> Outputs:
        matrix = table.matrix()
        return _by_seconds(
            self._click.predict(matrix), self._seconds.predict(matrix)
        )

    def _fit(
        self, table: Table, valid: Table, label: str, objective: str, seed: int
    ) -> Any:
        parameters = {
            "objective": objective,
            "learning_rate": 0.05,
            "num_leaves": 63,
            "seed": seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        sets: list[Any] = []
        for part in (table, valid):
            y = getattr(part, label)
            known = np.isfinite(y)
            sets.append(
                self._lightgbm.Dataset(
                    part.matrix()[known],
                    y[known],
                    feature_name=list(part.columns),
                    categorical_feature=part.ids(),
                    reference=sets[0] if sets else None,
                )
            )
        return self._lightgbm.train(
            parameters,
            sets[0],
            _ROUNDS,
            valid_sets=sets[1:],
            callbacks=[self._lightgbm.early_stopping(_PATIENCE, verbose=False)],
        )


def _column(batch: Mapping[str, Any], feature: Feature) -> np.ndarray:
    """A feature's column, [B] or [B, C]."""
    values = np.asarray(batch[feature.name])
    if feature.kind == "categorical":
        return values
    missing = values[..., _IS_MISSING] > 0.5
    return np.where(missing, np.float32(np.nan), values[..., 0])


def _by_seconds(clicked: np.ndarray, seconds: np.ndarray) -> Outputs:
    return {
        "score": seconds,
        "clicked": clicked,
        "expected_watch_time_s": seconds,
    }


def _fitted(
    inputs: sparse.csr_matrix,
    label: np.ndarray,
    weight: np.ndarray | None = None,
) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=200).fit(inputs, label, weight)


def _import_lightgbm() -> Any:
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        # An OSError is a library of the system, such as libgomp.
        raise UsageError(
            f"The baseline 'lightgbm' cannot be loaded: {error}. Install it "
            "by `pip install 'watchnext[lightgbm]'`, or leave it out of "
            "evaluation.ranking_baselines."
        ) from error
    return lightgbm
