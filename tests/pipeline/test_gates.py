"""Each gate on both sides of its bound, by numbers made up by hand."""

import math

import numpy as np
import pytest

from pipeline import gates
from pipeline.gates import Answers
from schemas.config import IndexConfig, PublishingConfig
from schemas.errors import ArtifactError

CONFIG = PublishingConfig()
NAN = math.nan


@pytest.mark.parametrize(
    ("calibration", "passes"),
    [
        (0.9, True),
        (1.1, True),
        (0.899, False),
        (1.101, False),
        (NAN, False),
        (None, True),
    ],
)
def test_calibration(calibration: float | None, passes: bool) -> None:
    assert gates.calibration_gate(calibration, CONFIG).passed is passes


@pytest.mark.parametrize(
    ("new", "published", "passes"),
    # 0.4 may fall by a tenth of itself, to 0.36.
    [
        (0.361, 0.4, True),
        (0.359, 0.4, False),
        (NAN, 0.4, False),
        (0.3, NAN, False),
    ],
)
def test_a_worse_hit_rate(new: float, published: float, passes: bool) -> None:
    assert gates.hit_rate_gate(new, published, CONFIG).passed is passes


@pytest.mark.parametrize(
    ("new", "published", "passes"),
    # 0.2 may rise by a tenth of itself, to 0.22: it is a loss.
    [(0.219, 0.2, True), (0.221, 0.2, False), (NAN, 0.2, False)],
)
def test_a_worse_order(new: float, published: float, passes: bool) -> None:
    assert gates.ranking_loss_gate(new, published, CONFIG).passed is passes


def test_what_could_not_be_compared_says_why() -> None:
    for gate in (
        gates.hit_rate_gate(0.25, "it is gone", CONFIG),
        gates.ranking_loss_gate(0.25, "it is gone", CONFIG),
    ):
        assert gate.passed
        assert str(gate) == f"{gate.name} is 0.2500, not compared: it is gone"


def test_recall_of_each_search() -> None:
    config = IndexConfig(min_recall=0.95)
    found = gates.index_gates({"a": 0.95, "b": 0.949, "c": NAN}, config)
    assert [gate.passed for gate in found] == [True, False, False]


def _closed(
    scores: list[list[float]], ids: list[list[str]] | None = None
) -> set[str]:
    """Names of the gates that these answers do not pass; "" is a blank."""
    values = np.array(scores, np.float32)
    lists = None if ids is None else np.array(ids, object)
    used = np.ones(values.shape, bool) if lists is None else lists != ""
    answers = Answers({"score": values}, used, "score", lists)
    found = gates.answer_gates("m", answers, CONFIG)
    return {gate.name for gate in found if not gate.passed}


def test_answers() -> None:
    assert _closed([[3, 2], [3, 1]]) == set()
    assert _closed([[3, 2], [3, NAN]]) == {"m.not_finite"}
    assert _closed([[3, 2], [3, math.inf]]) == {"m.not_finite"}
    # Half of the requests have all scores alike, a hundredth may.
    assert _closed([[3, 2], [3, 3]]) == {"m.constant_scores"}
    scores = [[3.0, 2.0]] * 99 + [[3.0, 3.0]]
    assert _closed(scores) == set()
    assert _closed([*scores[1:], [3.0, 3.0]]) == {"m.constant_scores"}


def test_answers_with_videos() -> None:
    right = [[3, 2], [3, 1]]
    assert _closed(right, [["a", "b"], ["b", "a"]]) == set()
    # A blank's score is -inf, and that is right.
    blank = [[3, 2, -math.inf], [3, 1, 0]]
    assert _closed(blank, [["a", "b", ""], ["a", "b", "c"]]) == set()
    # A single video is no constant.
    assert _closed([[3, 0], [3, 1]], [["a", ""], ["a", "b"]]) == set()
    empty = [["", ""], ["a", "b"]]
    assert _closed(right, empty) == {"m.empty"}
    assert _closed(right, [["a", "b"]] * 2) == {"m.one_list_for_all"}


def test_other_outputs_must_be_numbers_too() -> None:
    score, clicked = np.array([[2.0, 1.0]]), np.array([[0.5, NAN]])
    outputs = {"score": score, "clicked": clicked}
    answers = Answers(outputs, np.ones((1, 2), bool), "score")
    first, *_ = gates.answer_gates("m", answers, CONFIG)
    assert (first.name, first.passed) == ("m.not_finite", False)


def test_a_refusal_names_every_closed_gate_and_no_other() -> None:
    found = [
        gates.calibration_gate(1.25, CONFIG),
        gates.hit_rate_gate(0.5, 0.4, CONFIG),
        gates.ranking_loss_gate(0.3, 0.2, CONFIG),
    ]
    with pytest.raises(ArtifactError) as refused:
        gates.refuse(found)
    said = str(refused.value)
    assert "2 of 3 gates are closed" in said
    assert "ranking.calibration is 1.2500, must be between 0.9 and 1.1" in said
    assert "weighted_per_user_loss is 0.3000, must be at most 0.2200" in said
    assert "hit_rate" not in said
    gates.refuse(found[1:2])
