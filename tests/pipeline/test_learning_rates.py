"""The learning rates' course, by hand."""

from types import SimpleNamespace

import pytest

from pipeline.learning_rates import rate_factor


def course(schedule: str, warmup: int, steps: int) -> list[float]:
    config = SimpleNamespace(schedule=schedule, warmup_steps=warmup)
    return [rate_factor(config, step, steps) for step in range(steps)]


def test_without_schedule_and_warm_up_the_rates_stay() -> None:
    assert course("constant", 0, 3) == [1.0, 1.0, 1.0]


def test_the_warm_up_rises_in_equal_steps() -> None:
    assert course("constant", 4, 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_the_cosine_falls_to_nearly_nothing() -> None:
    # (1 + cos) / 2 of 0, 30, 60, 90, 120 and 150 degrees; 180 is the end.
    assert course("cosine", 0, 2) == pytest.approx([1.0, 0.75])
    assert course("cosine", 0, 5)[2:] == pytest.approx([0.75, 0.5, 0.25])
    assert course("cosine", 3, 5)[:3] == pytest.approx(
        [1 / 3, (2 + 3**0.5) / 6, 0.75]
    )


def test_resumed_beyond_the_end_it_stays_near_nothing() -> None:
    config = SimpleNamespace(schedule="cosine", warmup_steps=0)
    assert 0.0 < rate_factor(config, 7, 5) == rate_factor(config, 5, 5) < 0.07


def test_a_cosine_needs_its_end() -> None:
    config = SimpleNamespace(schedule="cosine", warmup_steps=0)
    with pytest.raises(ValueError, match="total_steps"):
        rate_factor(config, 0, None)
