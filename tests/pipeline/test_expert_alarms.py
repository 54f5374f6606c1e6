"""What an evaluation of a mixture of experts gives, and what it says."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.keras_setup import tf
from models.ranking import RankingModel
from pipeline import model_training
from pipeline.model_training import Trainer, Workers
from schemas.config import Config
from schemas.features import Feature, FeatureSet
from schemas.model_config import ExpertsConfig, RankingConfig

FEATURES = FeatureSet(
    (
        Feature("age", "continuous", "request", unit="years"),
        Feature("duration_s", "continuous", "candidate", unit="s"),
    )
)
BATCH = {
    "age": tf.ones([2, 4]),
    "duration_s": tf.ones([2, 3, 4]),
    "candidate_count": tf.constant([3, 2], tf.int64),
    "request_key": tf.constant([1, 2], tf.int64),
    "user_id": tf.constant(["a", "b"]),
    "request_time_us": tf.constant([1, 2], tf.int64),
    "clicked": tf.constant([[1.0, 0, 0], [0, 1, 0]]),
    "watch_time_s": tf.constant([[30.0, 0, 0], [0, 5, 0]]),
}


def evaluated(
    model: RankingModel, monkeypatch: pytest.MonkeyPatch, **how: str
) -> dict[str, float]:
    """Metrics of the one batch, through the trainer."""
    monkeypatch.setattr(model_training, "dataset", lambda *_, **__: [BATCH])
    schema = SimpleNamespace(has=lambda *_: True, labels=())
    data: Any = SimpleNamespace(features=FEATURES, schema=schema)
    run: Any = SimpleNamespace(config=Config())
    examples: Any = SimpleNamespace(files=lambda prefix: [])
    trainer = Trainer(run, data, Workers())
    return trainer.evaluate_ranking(model, examples, "valid", **how)


def ranking_model(experts: ExpertsConfig | None) -> RankingModel:
    return RankingModel(
        FEATURES,
        {},
        RankingConfig(hidden_units=(4,), experts=experts),
        1,
        labels=("clicked", "watch_time_s"),
        positions=False,
    )


def test_a_polarised_gate_is_said_and_all_utilisation_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ranking_model(ExpertsConfig(number=2, units=(3,)))
    for variable in model.dense_variables:
        variable.assign(tf.ones_like(variable))
    # Shared units are 8 + 1: the click's gate of expert 1 is 36 below.
    kernel = np.zeros((4, 4))
    kernel[:, 3] = -1.0
    assert model.experts is not None
    model.experts.gate.kernel.assign(kernel)
    found = evaluated(model, monkeypatch)
    assert found["ranking.impressions"] == 5
    usage = {n: v for n, v in found.items() if "/" in n}
    assert usage == pytest.approx(
        {
            "ranking.utilisation/watch_time/0": 0.5,
            "ranking.utilisation/watch_time/1": 0.5,
            "ranking.utilisation/clicked/0": 1.0,
            "ranking.utilisation/clicked/1": 0.0,
            "ranking.zero_activations/0": 0.0,
            "ranking.zero_activations/1": 0.0,
        }
    )
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("Task clicked hardly uses expert 1: mean gate")
    assert "utilisation/clicked/1" in evaluated(model, monkeypatch, prefix="")


def test_without_experts_there_is_nothing_to_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(ranking_model(None), monkeypatch)
    assert "ranking.loss" in found
    assert not [n for n in found if "/" in n]
    assert not capsys.readouterr().out
