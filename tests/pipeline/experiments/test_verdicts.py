"""Verdicts on numbers made by hand."""

import pytest

from pipeline.experiments.verdicts import (
    DOES_NOT_HOLD,
    HOLDS,
    INCONCLUSIVE,
    Check,
    above,
    at_least,
    at_most,
    combined,
    mean_and_spread,
    rising,
)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values, 1))


def test_the_spread_is_that_of_a_sample() -> None:
    # Of 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, / 2 = 7.
    mean, spread = mean_and_spread([1.0, 2.0, 6.0])
    assert (mean, spread) == (3.0, pytest.approx(7**0.5))
    assert mean_and_spread([4.0]) == (4.0, None)


@pytest.mark.parametrize(
    ("more", "less", "outcome"),
    [
        # Differences 1, 2, 3: mean 2 above the spread of 1.
        ((11, 22, 33), (10, 20, 30), HOLDS),
        # The levels differ far more than the settings do: pairs decide.
        ((1.1, 100.1, 1000.1), (1, 100, 1000), HOLDS),
        # Differences 0, 1, 3: mean 4/3, spread sqrt(7/3) = 1.53.
        ((10, 21, 33), (10, 20, 30), INCONCLUSIVE),
        # Differences -1, -2, -3.
        ((10, 20, 30), (11, 22, 33), DOES_NOT_HOLD),
        # Equal with every seed.
        ((1, 2, 3), (1, 2, 3), INCONCLUSIVE),
    ],
)
def test_above_is_judged_by_the_differences(
    more: tuple[float, ...], less: tuple[float, ...], outcome: str
) -> None:
    assert above("", by_seed(*more), by_seed(*less)).outcome == outcome


def test_only_seeds_of_both_sides_count() -> None:
    # Seed 3 would turn the verdict, but has no other side.
    found = above("", {1: 2.0, 2: 2.1, 3: -90.0}, {1: 1.0, 2: 1.0, 4: 0.0})
    assert found.outcome == HOLDS
    assert found.numbers.startswith("2.0500 against 1.0000")


@pytest.mark.parametrize("values", [{}, {1: 0.95}])
def test_one_seed_and_none_are_inconclusive(values: dict[int, float]) -> None:
    zero = dict.fromkeys(values, 0.0)
    for found in (
        above("", values, zero),
        at_least("", values, 0.5),
        at_most("", values, 2.0),
    ):
        assert found.outcome == INCONCLUSIVE
        assert "seed" in found.numbers


@pytest.mark.parametrize(
    ("values", "least", "most"),
    [
        # Mean 0.9133, 0.0133 above the bound, spread 0.0252.
        ((0.89, 0.91, 0.94), INCONCLUSIVE, INCONCLUSIVE),
        ((0.93, 0.94, 0.95), HOLDS, DOES_NOT_HOLD),
        ((0.80, 0.81, 0.82), DOES_NOT_HOLD, HOLDS),
        # No spread at all, as of a curve that is flat by construction.
        ((1.0, 1.0, 1.0), HOLDS, DOES_NOT_HOLD),
    ],
)
def test_bounds_are_judged_beyond_the_spread(
    values: tuple[float, ...], least: str, most: str
) -> None:
    assert at_least("", by_seed(*values), 0.9).outcome == least
    assert at_most("", by_seed(*values), 0.9).outcome == most
    assert at_most("", by_seed(0.5, 0.7), 1.0).numbers == (
        "0.600 ± 0.141, bound 1"
    )


def test_rising_is_every_step() -> None:
    low, middle, high = (
        by_seed(0.1, 0.1, 0.11),
        by_seed(0.2, 0.21, 0.2),
        by_seed(0.3, 0.3, 0.31),
    )
    assert rising("", [low, middle, high]).outcome == HOLDS
    assert rising("", [low, high, middle]).outcome == DOES_NOT_HOLD
    same = by_seed(0.19, 0.21, 0.21)
    assert rising("", [low, middle, same]).outcome == INCONCLUSIVE
    assert rising("", [low, {}, high]).outcome == INCONCLUSIVE


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, INCONCLUSIVE), INCONCLUSIVE),
        ((HOLDS, INCONCLUSIVE, DOES_NOT_HOLD), DOES_NOT_HOLD),
        ((), INCONCLUSIVE),
    ],
)
def test_one_claim_that_does_not_hold_decides(
    outcomes: tuple[str, ...], verdict: str
) -> None:
    assert combined([Check("", o, "") for o in outcomes]) == verdict
