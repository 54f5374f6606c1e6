"""Gradient boosted trees by LightGBM, on the columns of a `Table`.

Ids of few terms are categories. Those of many (videos, channels) are left out:
trees learn single ids by heart.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.ranking_table import Table
from schemas.errors import UsageError

_MOST_TERMS = 255
_ROUNDS, _PATIENCE = 500, 20
_ROWS_A_THREAD = 50_000


@dataclasses.dataclass(frozen=True)
class Objective:
    """What the trees learn.

    Attributes:
      loss: LightGBM's name of it; `tweedie` estimates a mean of amounts of
        which many are zero.
      label: of the table.
      weight: a label that weighs what is clicked, all else by 1: the paper's
        weighted logistic regression. None weighs all alike.
    """

    loss: str
    label: str
    weight: str | None = None


class BoostedTrees:
    """Trees of one objective.

    Args:
      table: learnt from.
      valid: chooses the number of trees.
      objective: what is learnt.
      seed: of the samples of rows and columns that each tree sees.

    Raises:
      UsageError: LightGBM is not installed.
    """

    def __init__(
        self, table: Table, valid: Table, objective: Objective, seed: int
    ) -> None:
        lightgbm = _import_lightgbm()
        ids = table.ids()
        few = [n for n in ids if table.columns[n].max() <= _MOST_TERMS]
        self.columns = [n for n in table.columns if n not in ids or n in few]
        sets: list[Any] = []
        for part in (table, valid):
            y = part.labels[objective.label]
            known = np.isfinite(y)
            sets.append(
                lightgbm.Dataset(
                    part.matrix(self.columns)[known],
                    y[known],
                    weight=_weights(part, objective, known),
                    feature_name=self.columns,
                    categorical_feature=few,
                    reference=sets[0] if sets else None,
                )
            )
        self._trees = lightgbm.train(
            _parameters(objective.loss, seed, len(sets[0].label)),
            sets[0],
            _ROUNDS,
            valid_sets=sets[1:],
            callbacks=[lightgbm.early_stopping(_PATIENCE, verbose=False)],
        )

    def predict(self, table: Table) -> np.ndarray:
        """Of each row: a probability, or a mean of the label; float64 [n]."""
        return np.asarray(self._trees.predict(table.matrix(self.columns)))


def _weights(
    table: Table, objective: Objective, known: Sequence[bool] | np.ndarray
) -> np.ndarray | None:
    if objective.weight is None:
        return None
    clicked = table.labels["clicked"] > 0.5
    amount = np.nan_to_num(table.labels[objective.weight])
    return np.asarray(np.where(clicked, amount, 1.0)[known])


def _parameters(loss: str, seed: int, rows: int) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    return {
        # Over few rows threads do nothing but wait for each other.
        "num_threads": min(cores, 1 + rows // _ROWS_A_THREAD),
        "objective": loss,
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_data_in_leaf": 50,
        # Each tree sees half of the columns and 70 % of the rows: on few rows
        # better than all.
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


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
