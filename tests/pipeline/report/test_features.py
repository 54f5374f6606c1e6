"""Distributions of features: read back from the graph, by hand arithmetic."""

from pathlib import Path

import numpy as np
import pytest

from beam_jobs.transform_graph import TransformGraph, stored_knots
from pipeline.report.features import (
    normalized_values,
    quantile,
    share_below,
)
from pipeline.report.work_folder import WorkFolder
from schemas.features import Feature, FeatureSet

# Half of the rows are 0; the others lie evenly from 0 to 4, and 4 itself has
# a tenth: P(X < 0) = 0, P(X <= 0) = .5, P(X < 4) = .9, P(X <= 4) = 1.
KNOTS = np.array([0.0, 4.0], np.float32)
LEVELS = np.array([[0.0, 0.5], [0.9, 1.0]], np.float32)


@pytest.mark.parametrize(
    ("level", "value"),
    [(0.0, 0.0), (0.3, 0.0), (0.5, 0.0), (0.6, 1.0), (0.7, 2.0), (0.95, 4.0)],
)
def test_quantiles_with_atoms(level: float, value: float) -> None:
    assert quantile(KNOTS, LEVELS, level) == pytest.approx(value, abs=1e-5)


def test_shares_with_atoms() -> None:
    x = np.array([-1.0, 0.0, 1.0, 2.0, 4.0, 5.0])
    assert share_below(KNOTS, LEVELS, x) == pytest.approx(
        [0.0, 0.5, 0.6, 0.7, 1.0, 1.0]
    )


def test_the_knots_are_those_that_the_graph_normalises_by(work: Path) -> None:
    folder = WorkFolder(str(work))
    path = f"{folder.needed('transform').path}/transform_fn"
    knots = stored_knots(path, folder.features)
    continuous = [f.name for f in folder.features if f.kind == "continuous"]
    assert knots is not None and sorted(knots) == sorted(continuous)
    places, levels = knots["user_age"]
    middle = (places[:-1] + places[1:]) / 2
    ages = np.concatenate([places, middle]).astype(np.float32)
    (age,) = (i for i in folder.raw_inputs if i.name == "user_age")
    graph = TransformGraph(path, ["user_age"])
    found = graph({age.name: ages})["user_age"][:, 0]
    # At a knot P(X < knot), half way between the levels on both sides.
    between = (levels[:-1, 1] + levels[1:, 0]) / 2
    assert found == pytest.approx([*levels[:, 0], *between], abs=1e-6)


def test_knots_that_cannot_be_told_apart_are_not_guessed(work: Path) -> None:
    path = f"{WorkFolder(str(work)).needed('transform').path}/transform_fn"
    alike = FeatureSet(
        (
            Feature("a", "continuous", "request", unit="s"),
            Feature("b", "continuous", "candidate", unit="s"),
        )
    )
    assert stored_knots(path, alike) is None


def test_normalised_values_are_even_and_padding_is_none(work: Path) -> None:
    folder = WorkFolder(str(work))
    duration = normalized_values(folder)["duration_s"]
    counts = folder.needed("ranking_examples").counts
    assert len(duration.values) == counts["train_candidates"]
    assert duration.missing == 0
    # Each video counts by its impressions, as it did for the knots.
    shares = np.histogram(duration.values, 4, (0, 1))[0] / len(duration.values)
    assert shares == pytest.approx([0.25] * 4, abs=0.05)
