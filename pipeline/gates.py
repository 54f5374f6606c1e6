"""The gates before publishing: what was measured, the bound, and the verdict.

Pure functions of measured numbers. A new version is published if all gates
pass; what has nothing to be held to passes, and says so.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from schemas.config import IndexConfig, PublishingConfig
from schemas.errors import ArtifactError


@dataclasses.dataclass(frozen=True)
class Gate:
    """One measurement beside its bound.

    Attributes:
      name: what was measured.
      measured: the number; None where there is nothing to measure.
      bound: in words, with its number; None where there is none to hold it to.
      passed: whether it may be published.
      remedy: what to do if it may not; or why there is no bound.
    """

    name: str
    measured: float | None
    bound: str | None
    passed: bool
    remedy: str

    def __str__(self) -> str:
        number = "" if self.measured is None else f" is {self.measured:.4f}"
        if self.bound is None:
            return f"{self.name}{number}, not compared: {self.remedy}"
        return f"{self.name}{number}, must be {self.bound}"


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a SavedModel said to n requests, K entries each.

    Attributes:
      outputs: float32 [n, K] by name.
      used: bool [n, K], False where an entry is a blank.
      ordered_by: the output that orders the entries.
      lists: object [n, K] of video ids, where the model chooses the videos.
    """

    outputs: Mapping[str, np.ndarray]
    used: np.ndarray
    ordered_by: str
    lists: np.ndarray | None = None


def refuse(gates: Sequence[Gate]) -> None:
    """Raises if a gate is closed.

    Raises:
      ArtifactError: naming every closed gate with measured value and bound.
    """
    closed = [gate for gate in gates if not gate.passed]
    if closed:
        reasons = "; ".join(f"{gate}. {gate.remedy}" for gate in closed)
        raise ArtifactError(
            f"Not published, {len(closed)} of {len(gates)} gates are closed "
            f"(what was published goes on serving): {reasons}"
        )


def parts_gate(mismatches: Sequence[str]) -> Gate:
    """The fingerprints of the parts: `pipeline.lineage.mismatches`."""
    return Gate(
        "number of parts that do not belong together",
        float(len(mismatches)),
        "0",
        not mismatches,
        f"{'; '.join(mismatches) or 'None'}. Run `watchnext run`, which makes "
        "anew what does not fit.",
    )


def index_gates(
    recalls: Mapping[str, float], config: IndexConfig
) -> list[Gate]:
    """Recall against exact search, by name of the search."""
    return [
        _at_least(
            name,
            recall,
            config.min_recall,
            "Raise the recall that the index is tuned for, or lower "
            "index.min_recall.",
        )
        for name, recall in recalls.items()
    ]


def hit_rate_gate(
    new: float, published: float | str, config: PublishingConfig
) -> Gate:
    """The retrieval's hit rate beside the published version's.

    Args:
      new: on validation cases.
      published: on the same cases, or why it is not known.
      config: the bounds.
    """
    name = "retrieval.hit_rate"
    if isinstance(published, str):
        return Gate(name, new, None, True, published)
    return _at_least(
        name,
        new,
        published * (1.0 - config.max_loss_of_hit_rate),
        f"The published version's is {published:.4f} on the same requests. "
        "Train longer or on more days, or raise "
        "publishing.max_loss_of_hit_rate.",
    )


def ranking_loss_gate(
    new: float, published: float | str, config: PublishingConfig
) -> Gate:
    """The ranking's weighted per-user loss beside the published version's."""
    name = "ranking.weighted_per_user_loss"
    if isinstance(published, str):
        return Gate(name, new, None, True, published)
    return _at_most(
        name,
        new,
        published * (1.0 + config.max_rise_of_ranking_loss),
        f"The published version's is {published:.4f} on the same requests. "
        "Train longer or on more days, or raise "
        "publishing.max_rise_of_ranking_loss.",
    )


def calibration_gate(
    calibration: float | None, config: PublishingConfig
) -> Gate:
    """Expected seconds over observed ones; None: seconds are not predicted."""
    name = "ranking.calibration"
    if calibration is None:
        why = "the ranking model has no expected_watch_time_s to calibrate"
        return Gate(name, None, None, True, why)
    low, high = config.min_calibration, config.max_calibration
    return Gate(
        name,
        calibration,
        f"between {low:g} and {high:g}",
        # NaN is refused by every comparison here.
        low <= calibration <= high,
        "Train longer, or set publishing.min_calibration and "
        "publishing.max_calibration.",
    )


def answer_gates(
    model: str, answers: Answers, config: PublishingConfig
) -> list[Gate]:
    """Numbers that are none, empty lists, scores and lists that never change.

    Args:
      model: name, put before the gates'.
      answers: to requests of the validation part.
      config: the bounds.
    """
    used, most = answers.used, config.max_bad_answers
    finite: np.ndarray = np.ones(len(used), bool)
    for values in answers.outputs.values():
        finite = finite & np.all(np.isfinite(values) | ~used, axis=1)
    scores = answers.outputs[answers.ordered_by]
    # One video alone cannot have another score than itself.
    several = np.sum(used, axis=1) > 1
    lowest = np.where(used, scores, np.inf).min(axis=1)
    highest = np.where(used, scores, -np.inf).max(axis=1)
    equal: np.ndarray = np.equal(lowest[several], highest[several])
    again = "Look at the training's losses, and train the model again."
    gates = [
        _at_most(f"{model}.not_finite", _share(~finite), 0.0, again),
        _at_most(f"{model}.constant_scores", _share(equal), most, again),
    ]
    if answers.lists is not None:
        empty: np.ndarray = ~np.any(used, axis=1)
        gates.append(_at_most(f"{model}.empty", _share(empty), most, again))
        if len(answers.lists) > 1:
            alike: np.ndarray = np.all(
                answers.lists == answers.lists[:1], axis=1
            )
            gates.append(
                Gate(
                    f"{model}.one_list_for_all",
                    _share(alike),
                    "below 1",
                    not alike.all(),
                    again,
                )
            )
    return gates


def _share(rows: np.ndarray) -> float:
    return float(rows.mean()) if rows.size else 0.0


def _at_least(name: str, value: float, bound: float, remedy: str) -> Gate:
    # Written so that NaN is refused too.
    return Gate(name, value, f"at least {bound:.4f}", value >= bound, remedy)


def _at_most(name: str, value: float, bound: float, remedy: str) -> Gate:
    return Gate(name, value, f"at most {bound:.4f}", value <= bound, remedy)
