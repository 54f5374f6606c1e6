"""Utilisation by hand, and alarms of mixtures made to be broken."""

import math

import numpy as np
import pytest

from models.expert_usage import alarms, measure
from models.keras_setup import tf
from models.ranking import RankingModel
from schemas.features import Feature, FeatureSet
from schemas.model_config import ExpertsConfig, RankingConfig

FEATURES = FeatureSet(
    (
        Feature("age_days", "continuous", "request", unit="days"),
        Feature("duration_s", "continuous", "candidate", unit="s"),
    )
)


@pytest.fixture
def model():
    """One shared unit x, the first number of the duration; by hand are

    expert 0: (x, x), expert 1: (x, 0), expert 2: (0, 0);
    gates of watch_time 0, 0, 0; of clicked x, 0, 0.
    """
    model = RankingModel(
        FEATURES,
        {},
        RankingConfig(
            hidden_units=(1,), experts=ExpertsConfig(number=3, units=(2,))
        ),
        1,
        labels=("clicked", "watch_time_s"),
        positions=False,
    )
    for variable in model.dense_variables:
        variable.assign(tf.zeros_like(variable))
    model.tower.layers[0].kernel.assign(np.eye(8)[:, 4:5])
    for tower, kernel in zip(
        model.experts.towers, ([1, 1], [1, 0], [-1, 0]), strict=True
    ):
        tower.layers[0].kernel.assign([kernel])
    model.experts.gate.kernel.assign([[0, 0, 0, 1, 0, 0]])
    return model


def batch(rows):
    """Requests of candidates by their x; the padding to 3 must not count."""
    x = np.full((len(rows), 3, 4), 50.0, np.float32)
    for i, row in enumerate(rows):
        x[i, : len(row), 0] = row
    return {
        "age_days": tf.ones([len(rows), 4]),
        "duration_s": tf.constant(x),
        "candidate_count": tf.constant([len(r) for r in rows], tf.int64),
    }


# Three impressions of x = ln 2, 0 and ln 6.
BATCHES = [batch([[math.log(2)], [0.0]]), batch([[], [math.log(6)]])]


def test_utilisation_by_hand(model):
    found = measure(model, BATCHES)
    want = dict.fromkeys(
        [f"utilisation/watch_time/{e}" for e in range(3)], 1 / 3
    )
    # e^x : 1 : 1 is 2 : 1 : 1, 1 : 1 : 1, 6 : 1 : 1.
    first = (2 / 4 + 1 / 3 + 6 / 8) / 3
    want |= {
        "utilisation/clicked/0": first,
        "utilisation/clicked/1": (1 - first) / 2,
        "utilisation/clicked/2": (1 - first) / 2,
        # Where x is 0 all are; else of expert 1 one unit of two, of 2 both.
        "zero_activations/0": 1 / 3,
        "zero_activations/1": (1 / 2 + 1 + 1 / 2) / 3,
        "zero_activations/2": 1.0,
    }
    assert found == pytest.approx(want, rel=1e-5)
    # However the impressions are batched.
    together = measure(model, [batch([[math.log(2), 0.0, math.log(6)]])])
    assert together == pytest.approx(want, rel=1e-5)


def test_a_polarised_gate_and_a_dead_expert_are_named(model):
    # With 5 x at x = ln 6: 7776 : 1 : 1.
    model.experts.gate.kernel.assign([[0, 0, 0, 5, 0, 0]])
    said = alarms(measure(model, [batch([[math.log(6)]])]))
    assert len(said) == 3
    for line, expert in zip(said, (1, 2), strict=False):
        assert line.startswith(
            f"Task clicked hardly uses expert {expert}: mean gate weight 0.01%"
        )
    assert said[2].startswith("Expert 2 is nearly dead: 100.0% of its")


def test_a_sound_mixture_raises_no_alarm():
    # Exactly at the bounds is sound: under 1 %, over 90 %.
    assert not alarms(
        {
            "utilisation/clicked/0": 0.99,
            "utilisation/clicked/1": 0.01,
            "zero_activations/0": 0.9,
        }
    )


def test_nothing_to_measure_on_is_refused(model):
    with pytest.raises(ValueError, match="received none"):
        measure(model, [batch([[]])])


def test_dropout_has_no_part_in_it(model):
    settings = {"gate_dropout": 0.9, "number": 3, "units": (2,)}
    model.experts.config = ExpertsConfig(**settings)
    assert measure(model, BATCHES)["utilisation/watch_time/0"] == pytest.approx(
        1 / 3
    )
