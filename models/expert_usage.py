"""Which task uses which expert, and which experts are dead.

In: a ranking model with experts and batches of ranking examples. Out: mean
gate weights (the paper's expert utilisation, 2019, section 5) and alarms.
Measured in evaluation alone: a training step pays nothing for it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from models.keras_setup import tf
from models.ranking import RankingModel

# Below this mean weight an expert has no part in a task: the gate is
# polarised (2019, section 5).
LEAST_UTILISATION = 0.01
# Above this share of zeros an expert's last layer says next to nothing: most
# of its ReLU units are dead (HoME, Kuaishou 2024).
MOST_ZEROS = 0.9
_UTILISATION, _ZEROS = "utilisation", "zero_activations"


def measure(
    model: RankingModel, dataset: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Averages over all impressions of a dataset.

    Args:
      model: with experts.
      dataset: batches of `ranking_keys`, any sizes.

    Returns:
      `utilisation/<task>/<expert>`, in [0, 1], adding up to 1 over a task's
      experts, which count from 0; `zero_activations/<expert>`, the share of
      zeros among the expert's outputs.

    Raises:
      ValueError: the dataset has no impression.
    """
    spec = getattr(dataset, "element_spec", None)
    sums = tf.function(
        model.expert_sums, input_signature=None if spec is None else [spec]
    )
    weights = zeros = np.zeros(())
    impressions = 0
    for batch in dataset:
        found = sums(batch)
        # In double precision: a million float32 would not add up.
        weights = weights + found["weights"].numpy().astype(np.float64)
        zeros = zeros + found["zeros"].numpy().astype(np.float64)
        impressions += int(found["impressions"])
    if not impressions:
        raise ValueError(
            "Expected ranking examples with impressions to measure experts "
            "on, received none."
        )
    values = {}
    for task, row in zip(model.heads, weights / impressions, strict=True):
        for expert, value in enumerate(row):
            values[f"{_UTILISATION}/{task}/{expert}"] = float(value)
    for expert, value in enumerate(zeros / impressions):
        values[f"{_ZEROS}/{expert}"] = float(value)
    return values


def alarms(usage: Mapping[str, float]) -> list[str]:
    """Says in words which of `measure`'s values show a broken mixture."""
    found = []
    for name, value in usage.items():
        kind, *which = name.split("/")
        if kind == _UTILISATION and value < LEAST_UTILISATION:
            task, expert = which
            found.append(
                f"Task {task} hardly uses expert {expert}: mean gate weight "
                f"{value:.2%}, below {LEAST_UTILISATION:.0%} (polarised). "
                "Raise `ranking.experts.gate_dropout`, or lower "
                "`ranking.learning_rate`."
            )
        if kind == _ZEROS and value > MOST_ZEROS:
            found.append(
                f"Expert {which[0]} is nearly dead: {value:.1%} of its last "
                f"layer's outputs are 0, above {MOST_ZEROS:.0%}. Lower "
                "`ranking.learning_rate`, or set `ranking.experts.normalize`."
            )
    return found
