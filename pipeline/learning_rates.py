"""How the learning rates go over a run: up in a warm-up, then down.

A pure function of the step, so a resumed run goes on with the same rates.
"""

import math
from typing import Literal, Protocol


class RatesSection(Protocol):
    """The fields of a model's section that are read here."""

    @property
    def schedule(self) -> Literal["constant", "cosine"]: ...
    @property
    def warmup_steps(self) -> int: ...


def rate_factor(
    config: RatesSection, step: int, total_steps: int | None
) -> float:
    """What all learning rates of the section are multiplied by.

    Args:
      config: the model's section.
      step: from 0.
      total_steps: of all epochs; early stopping does not shorten it. Only
        `cosine` needs it.

    Returns:
      In (0, 1]: rising linearly over the first `warmup_steps`; times, for
      `cosine`, half a cosine wave from 1 down to nearly 0 at the last step.

    Raises:
      ValueError: a cosine without its end.
    """
    factor = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.schedule == "cosine":
        if not total_steps:
            raise ValueError(
                "`schedule: cosine` needs `total_steps` of at least 1, "
                f"received {total_steps}."
            )
        # + 1: the last step still learns.
        progress = min(step, total_steps) / (total_steps + 1)
        factor *= 0.5 * (1.0 + math.cos(math.pi * progress))
    return factor
