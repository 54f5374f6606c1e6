"""The training loop: what it learns, how it resumes, what it says."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import training_step
from models.keras_setup import tf
from models.loss_scale import LossScale
from models.retrieval import FullSoftmaxModel, RetrievalModel
from schemas.errors import InputError, WatchnextError
from tests.pipeline.rule_to_learn import (
    assert_same_bits,
    build,
    run,
    weights,
    write_files,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return write_files(tmp_path_factory.mktemp("examples"))


@pytest.mark.parametrize("kind", [RetrievalModel, FullSoftmaxModel])
def test_it_learns_the_rule(
    kind: type[RetrievalModel], files: dict[str, int], tmp_path: Path
) -> None:
    changes = {"epochs": 16, "patience": 16}
    result = run(
        files, tmp_path, build_model=lambda: build(kind), changes=changes
    )
    history = result.history
    # By chance 1 in 40.
    assert history[-1]["hit_rate"] > 0.6
    assert history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]
    assert len(history) == 16


def test_without_a_metric_the_last_epoch_is_the_best(
    files: dict[str, int], tmp_path: Path
) -> None:
    def evaluate(_: RetrievalModel) -> dict[str, float]:
        raise AssertionError("nothing is to be evaluated")

    options: dict[str, Any] = {
        "changes": {"epochs": 3, "patience": 1},
        "metric": None,
    }
    result = run(files, tmp_path / "all", evaluate, **options)
    assert result.best_epoch == 3
    assert [sorted(epoch) for epoch in result.history] == 3 * [["train_loss"]]
    # A stopped one goes on to the same.
    run(files, tmp_path / "cut", evaluate, stop_after_steps=15, **options)
    resumed = run(files, tmp_path / "cut", evaluate, **options)
    assert_same_bits(resumed.model, result.model)


def test_the_weights_are_those_of_the_best_epoch(
    files: dict[str, int], tmp_path: Path
) -> None:
    seen = []

    def evaluate(model: RetrievalModel) -> dict[str, float]:
        seen.append(weights(model))
        return {"hit_rate": [0.1, 0.5, 0.3, 0.5, 0.9][len(seen) - 1]}

    result = run(files, tmp_path, evaluate, changes={"patience": 2})
    # Epochs 3 and 4 are no better than 2 (0.5 again is not better): stop.
    assert len(seen) == 4 and result.best_epoch == 2
    for found, expected in zip(weights(result.model), seen[1], strict=True):
        np.testing.assert_array_equal(found, expected)
    for table, then in zip(weights(result.model), seen[3], strict=True):
        assert not np.array_equal(table, then)
    assert [h["hit_rate"] for h in result.history] == [0.1, 0.5, 0.3, 0.5]


def test_a_metric_may_be_one_that_falls(
    files: dict[str, int], tmp_path: Path
) -> None:
    values = iter([3.0, 1.0, 2.0, 5.0])
    result = run(
        files,
        tmp_path,
        lambda _: {"hit_rate": next(values)},
        higher_is_better=False,
        changes={"patience": 2},
    )
    assert result.best_epoch == 2 and len(result.history) == 4


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [("lazy_adam", "cosine"), ("rowwise_adagrad", "constant")],
)
def test_a_resumed_run_ends_with_the_same_bits(
    files: dict[str, int], tmp_path: Path, optimizer: str, schedule: str
) -> None:
    options = {
        "changes": {"table_optimizer": optimizer, "schedule": schedule},
        "total_steps": 40,
    }
    whole = run(files, tmp_path / "whole", **options)
    # In the middle of epoch 1, at the very end of epoch 2, inside epoch 3.
    for stop in (4, 20, 25):
        part = run(files, tmp_path / "parts", stop_after_steps=stop, **options)
        assert len(part.history) == (stop - 1) // 10
    resumed = run(files, tmp_path / "parts", **options)
    assert_same_bits(whole.model, resumed.model)
    assert resumed.history == whole.history
    assert resumed.best_epoch == whole.best_epoch


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_resumed_run_in_16_bits_ends_with_the_same_bits(
    files: dict[str, int],
    tmp_path: Path,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A scale that is halved at first and doubled now and then: forgotten, it
    # would leave out other steps.
    scale = functools.partial(LossScale, first=2.0**24, patience=3)
    monkeypatch.setattr(training_step, "LossScale", scale)
    options = {
        "build_model": lambda: build(precision=precision),
        "changes": {"precision": precision},
    }
    whole = run(files, tmp_path / "whole", **options)
    run(files, tmp_path / "parts", stop_after_steps=13, **options)
    resumed = run(files, tmp_path / "parts", **options)
    assert_same_bits(whole.model, resumed.model)
    assert resumed.history == whole.history
    assert whole.history[-1]["hit_rate"] > whole.history[0]["hit_rate"]


def test_the_rates_of_a_step_reach_both_optimisers(
    files: dict[str, int], tmp_path: Path
) -> None:
    # A warm-up of 10^9 steps: each of 10 moves a weight by 1e-9 at most.
    changes = {"warmup_steps": 10**9, "epochs": 1}
    learnt = run(files, tmp_path, changes=changes).model
    for found, initial in zip(weights(learnt), weights(build()), strict=True):
        np.testing.assert_allclose(found, initial, atol=1e-7)


def test_a_finished_run_is_read_back(
    files: dict[str, int], tmp_path: Path
) -> None:
    first = run(files, tmp_path, changes={"epochs": 2})

    def never(_: Any) -> dict[str, float]:
        raise AssertionError("A finished run was evaluated again.")

    again = run(files, tmp_path, never, changes={"epochs": 2})
    assert_same_bits(first.model, again.model)
    assert again.history == first.history


def test_a_loss_that_is_not_finite_names_the_step(
    files: dict[str, int], tmp_path: Path
) -> None:
    class Diverging(RetrievalModel):
        def compute_loss(self, inputs: Any, **options: Any) -> Any:
            loss, metrics = super().compute_loss(inputs, **options)
            return tf.where(options["step"] == 13, np.nan, loss), metrics

    with pytest.raises(WatchnextError, match="nan at step 13"):
        run(files, tmp_path, build_model=lambda: build(Diverging))
    # The last checkpoint is from before.
    steps = {p.stem for p in (tmp_path / "checkpoints").glob("*.json")}
    assert steps == {"step-7", "step-10"}


def test_wrong_inputs_are_explained(
    files: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="one batch of 1000"):
        run(files, tmp_path / "a", changes={"batch_size": 1000})
    with pytest.raises(WatchnextError, match=r"'hit_rate'.*gave auc"):
        run(files, tmp_path / "b", lambda _: {"auc": 1.0})
    with pytest.raises(WatchnextError, match="is nan after epoch 1"):
        run(files, tmp_path / "c", lambda _: {"hit_rate": float("nan")})
