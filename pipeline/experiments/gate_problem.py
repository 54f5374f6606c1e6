"""A small ranking problem whose gates polarise, and a training on it.

What makes gates of ReLU experts polarise (Zhao et al. 2019, section 5): tasks
that conflict, of very unequal loss, at a high learning rate. Each seed draws
its own problem and initial weights.
"""

from typing import Any

import numpy as np

from models.expert_usage import LEAST_UTILISATION, MOST_ZEROS, measure
from models.keras_setup import tf
from models.ranking import RankingModel
from models.training_step import TrainingStep
from schemas.features import CONTINUOUS_WIDTH, Feature, FeatureSet
from schemas.model_config import ExpertsConfig, RankingConfig

REQUESTS, CANDIDATES = 64, 4
TASKS = ("clicked", "liked", "dismissed")
FEATURES = FeatureSet(
    (
        Feature("age", "continuous", "request", unit="years"),
        Feature("duration", "continuous", "candidate", unit="s"),
        Feature("freshness", "continuous", "candidate", unit="days"),
    )
)


def config(gate_dropout: float, experts: int, rate: float) -> RankingConfig:
    """The model's section."""
    return RankingConfig(
        tasks=TASKS,
        hidden_units=(16,),
        experts=ExpertsConfig(
            number=experts, units=(16,), gate_dropout=gate_dropout
        ),
        learning_rate=rate,
        batch_size=REQUESTS,
    )


class Problem:
    """Impressions whose tasks are unlike functions of the same features.

    Watch time is a few minutes, so that its loss is many times that of the
    others; few impressions are clicked, fewer liked or dismissed.

    Args:
      seed: of the tasks and of every batch.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        rng = np.random.default_rng([seed, 0])
        # Two directions a task, whose product and sum it depends on.
        shape = (len(TASKS) + 1, 2, 3 * CONTINUOUS_WIDTH)
        self._directions = rng.normal(0, 1, shape)

    def batch(self, number: int) -> dict[str, tf.Tensor]:
        """Batch `number`, from 1 on; that of 0 is to measure on."""
        rng = np.random.default_rng([self._seed, 1, number])
        requests = 16 * REQUESTS if number == 0 else REQUESTS
        shape = (requests, CANDIDATES)
        age = rng.normal(0, 1, (requests, CONTINUOUS_WIDTH))
        duration, freshness = rng.normal(0, 1, (2, *shape, CONTINUOUS_WIDTH))
        seen = np.broadcast_to(age[:, None], duration.shape)
        x = np.concatenate([seen, duration, freshness], axis=-1)
        a, b = np.einsum("tdx,rcx->dtrc", self._directions, x) / 2
        # Of the tasks, and of the logarithm of watch time.
        logits = a * b + np.maximum(a, 0)
        chance = rng.random((len(TASKS), *shape))
        shares = np.array([-1.0, -4.0, -4.0])[:, None, None]
        clicked, liked, dismissed = (
            chance < 1 / (1 + np.exp(-(logits[:-1] + shares)))
        ).astype(np.float32)
        watch_time_s = clicked * np.minimum(200 * np.exp(logits[-1] / 2), 7200)
        arrays = {
            "age": age,
            "duration": duration,
            "freshness": freshness,
            "clicked": clicked,
            "watch_time_s": watch_time_s,
            "liked": liked,
            "dismissed": dismissed,
        }
        tensors = {n: tf.constant(v, tf.float32) for n, v in arrays.items()}
        return tensors | {
            "candidate_count": tf.fill([requests], tf.cast(4, tf.int64)),
            "example_index": tf.range(requests, dtype=tf.int64),
        }


def usage(seed: int, section: RankingConfig, steps: int) -> dict[str, float]:
    """Trains one model; returns what `models.expert_usage.measure` does."""
    model = RankingModel(
        FEATURES,
        {},
        section,
        seed,
        labels=("clicked", "watch_time_s", "liked", "dismissed"),
        positions=False,
    )
    step, problem = tf.function(TrainingStep(model, section)), Problem(seed)
    for number in range(steps):
        loss, _ = step(problem.batch(number + 1), tf.constant(number, tf.int64))
    if not np.isfinite(loss):
        raise ValueError(f"The loss is {loss} with seed {seed}.")
    return measure(model, [problem.batch(0)])


def summary(found: dict[str, float]) -> dict[str, Any]:
    """Which experts are out of use, and which say nothing."""
    of_tasks = {n: v for n, v in found.items() if n.startswith("utilisation")}
    zeros = [v for n, v in found.items() if n.startswith("zero_activations")]
    return {
        "polarised": sorted(
            name.removeprefix("utilisation/")
            for name, value in of_tasks.items()
            if value < LEAST_UTILISATION
        ),
        "greatest_utilisation": round(max(of_tasks.values()), 4),
        "dead_experts": sum(value > MOST_ZEROS for value in zeros),
    }
