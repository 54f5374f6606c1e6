"""What the ranking model's logits mean: losses and predictions per task.

Watch time is learnt by weighted logistic regression (paper, section 4.2): the
logit z is trained so that e^z is a number of watch-time units. Binary tasks
(clicked, liked, ...) are logistic regressions, and `rating` is a regression
by squared loss (2019, section 4.2).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from models.keras_setup import tf
from schemas.errors import UsageError
from schemas.events import LONGEST_WATCH_S
from schemas.model_config import RankingConfig

Objective = Literal["expected_watch_time", "paper"]
# The head's name in `task_weights`; its output is named by the objective.
WATCH_TIME = "watch_time"
WATCH_TIME_OUTPUT: dict[Objective, str] = {
    "expected_watch_time": "expected_watch_time_s",
    "paper": "watch_time_odds",
}
# The task that is no yes or no.
RATING = "rating"
# ln of the least predicted rating: the logarithm of 0 is none.
_LEAST_LOG = -69.0

Tensors = Mapping[str, tf.Tensor]


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
      UsageError: naming what is possible and what was received.
    """
    # Watch time is a task already.
    possible = [label for label in labels if label != "watch_time_s"]
    twice = len(set(config.tasks)) < len(config.tasks)
    if twice or not set(config.tasks) <= set(possible):
        raise UsageError(
            "`ranking.tasks` must be different names of the log's labels, "
            f"{', '.join(possible)}; received {config.tasks}."
        )
    known = (WATCH_TIME, *config.tasks)
    for name, weight in config.task_weights.items():
        if name not in known or not 0.0 <= weight < math.inf:
            raise UsageError(
                "`ranking.task_weights` must be finite weights, at least 0, of "
                f"{', '.join(known)}; received {name!r}: {weight}."
            )
    outputs = [output_name(head, config) for head in heads(config)]
    powers = config.score_weights
    if not powers or not set(powers) <= set(outputs):
        raise UsageError(
            "`ranking.score_weights` must be powers of outputs that this "
            f"configuration has, {', '.join(outputs) or 'none'}; received "
            f"{dict(powers)}. The outputs follow from `objective`, `tasks` "
            "and `task_weights`."
        )


def output_name(head: str, config: RankingConfig) -> str:
    """Names a head's prediction."""
    return WATCH_TIME_OUTPUT[config.objective] if head == WATCH_TIME else head


def loss(
    head: str, logit: tf.Tensor, labels: Tensors, config: RankingConfig
) -> tf.Tensor:
    """Returns a head's loss of each impression, without the task's weight.

    Args:
      head: of `heads`.
      logit: float32 [N].
      labels: float32 [N] each, NaN where the log does not tell.
      config: the model's section.

    Returns:
      float32 [N]; 0, with gradient 0, where a label is NaN.
    """
    if head == WATCH_TIME:
        return watch_time_loss(
            logit,
            labels["clicked"],
            labels["watch_time_s"],
            objective=config.objective,
            unit_s=config.watch_time_unit_s,
        )
    of_task = squared_loss if head == RATING else binary_loss
    return of_task(logit, labels[head])


def log_prediction(
    head: str, logit: tf.Tensor, config: RankingConfig
) -> tf.Tensor:
    """ln of what a head predicts, float32 [N]: all predictions are above 0.

    So the score, a product of their powers, exists whatever the tasks are.
    """
    if head == WATCH_TIME:
        return log_watch_time_s(logit, config.watch_time_unit_s)
    if head == RATING:
        log = tf.math.log(tf.nn.softplus(logit))
        return tf.maximum(log, _LEAST_LOG)
    return tf.math.log_sigmoid(logit)


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


def squared_loss(logit: tf.Tensor, rating: tf.Tensor) -> tf.Tensor:
    """(softplus(z) - rating)^2, float32 [N]; 0 where the rating is NaN.

    Softplus is z from about 3 on, and above 0 everywhere, since a rating is a
    factor of the score: on a scale that goes down to 0 or below, the lowest
    ratings are predicted too high.
    """
    known = tf.math.is_finite(rating)
    error = tf.nn.softplus(logit) - tf.where(known, rating, 0.0)
    return tf.where(known, error**2, 0.0)


def log_watch_time_s(logit: tf.Tensor, unit_s: float) -> tf.Tensor:
    """ln of the predicted seconds, at most ln of the longest valid watch.

    Only predictions are clipped. A loss on clipped logits would have no
    gradient where the model is most wrong.
    """
    return tf.minimum(logit + math.log(unit_s), math.log(LONGEST_WATCH_S))
