"""What the ranking model's logits mean: losses and predictions per task.

Watch time is learnt by weighted logistic regression (paper, section 4.2): the
logit z is trained so that e^z is a number of watch-time units. Binary tasks
(clicked, liked, ...) are logistic regressions.
"""

import math
from collections.abc import Sequence
from typing import Literal

from models.keras_setup import tf
from schemas.config import RankingConfig
from schemas.events import LONGEST_WATCH_S

Objective = Literal["expected_watch_time", "paper"]
# The head's name in `task_weights`; its output is named by the objective.
WATCH_TIME = "watch_time"
WATCH_TIME_OUTPUT: dict[Objective, str] = {
    "expected_watch_time": "expected_watch_time_s",
    "paper": "watch_time_odds",
}
# Labels that are no yes or no.
_NOT_BINARY = ("watch_time_s", "rating")


def heads(config: RankingConfig) -> tuple[str, ...]:
    """Lists the tasks that are trained: a head of weight 0 is left out.

    `task_weights: {watch_time: 0}` thus gives a model of the clicks alone.
    """
    return tuple(
        head
        for head in (WATCH_TIME, *config.tasks)
        if config.task_weights.get(head, 1.0) > 0.0
    )


def check(config: RankingConfig, labels: Sequence[str]) -> None:
    """Checks that tasks, weights and score name what exists.

    Raises:
      ValueError: naming what is possible and what was received.
    """
    binary = [label for label in labels if label not in _NOT_BINARY]
    twice = len(set(config.tasks)) < len(config.tasks)
    if twice or not set(config.tasks) <= set(binary):
        raise ValueError(
            "`ranking.tasks` must be different names of the log's binary "
            f"labels, {', '.join(binary)}; received {config.tasks}."
        )
    known = (WATCH_TIME, *config.tasks)
    for name, weight in config.task_weights.items():
        if name not in known or not 0.0 <= weight < math.inf:
            raise ValueError(
                "`ranking.task_weights` must be finite weights, at least 0, of "
                f"{', '.join(known)}; received {name!r}: {weight}."
            )
    watch_time = WATCH_TIME_OUTPUT[config.objective]
    outputs = [watch_time if h == WATCH_TIME else h for h in heads(config)]
    powers = config.score_weights
    if not powers or not set(powers) <= set(outputs):
        raise ValueError(
            "`ranking.score_weights` must be powers of outputs that this "
            f"configuration has, {', '.join(outputs) or 'none'}; received "
            f"{dict(powers)}. The outputs follow from `objective`, `tasks` "
            "and `task_weights`."
        )


def watch_time_loss(
    logit: tf.Tensor,
    clicked: tf.Tensor,
    watch_time_s: tf.Tensor,
    *,
    objective: Objective,
    unit_s: float,
) -> tf.Tensor:
    """Weighs the logistic loss so that e^z estimates watch time.

    With T in units of `unit_s`, setting the gradient to zero over N alike
    impressions, k of them clicked:

      expected_watch_time: T softplus(-z) + softplus(z) for every impression.
        Gradient (T + 1) sigmoid(z) - T: e^z = mean T, clicked or not.
      paper: T softplus(-z) where clicked, softplus(z) where not.
        e^z = sum of clicked T / (N - k), the odds; near E[T] for few clicks.

    Args:
      logit: float32 [N], z.
      clicked: float32 [N], 0 or 1.
      watch_time_s: float32 [N], seconds; NaN where the log does not tell.
      objective: which of the two.
      unit_s: seconds of one unit. It multiplies no weight of the unclicked,
        so e^z shrinks by it exactly: `watch_time_s` below undoes that.

    Returns:
      float32 [N]; 0, with gradient 0, where a label is NaN.
    """
    known = tf.math.is_finite(watch_time_s) & tf.math.is_finite(clicked)
    # Before the product, not after: the gradient of NaN * 0 is NaN.
    units = tf.where(known, watch_time_s, 0.0) / unit_s
    positive = units * tf.nn.softplus(-logit)
    negative = tf.nn.softplus(logit)
    if objective == "expected_watch_time":
        loss = positive + negative
    else:
        loss = tf.where(clicked > 0.5, positive, negative)
    return tf.where(known, loss, 0.0)


def binary_loss(logit: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
    """Cross entropy in nats, float32 [N]; 0 where the label is NaN."""
    known = tf.math.is_finite(label)
    loss = tf.nn.sigmoid_cross_entropy_with_logits(
        labels=tf.where(known, label, 0.0), logits=logit
    )
    return tf.where(known, loss, 0.0)


def log_watch_time_s(logit: tf.Tensor, unit_s: float) -> tf.Tensor:
    """ln of the predicted seconds, at most ln of the longest valid watch.

    Only predictions are clipped. A loss on clipped logits would have no
    gradient where the model is most wrong.
    """
    return tf.minimum(logit + math.log(unit_s), math.log(LONGEST_WATCH_S))
