"""What the ranking benchmark makes of its runs."""

import pytest

from benchmarks.ranking_quality import compared


def run(auc: float, trees: float) -> dict:
    """A seed: trees of clicks are best in AUC, of watch time in loss."""
    ours = {
        "auc_click": auc,
        "auc_long_view": 0.7,
        "watch_time_xauc": 0.6,
        "weighted_per_user_loss": 0.3,
        "watch_time_mae_s": 20.0,
        "calibration": 1.1,
    }
    beside = {
        "click": {"auc_click": trees, "watch_time_xauc": 0.5},
        "long_view": {"auc_long_view": 0.6, "weighted_per_user_loss": 0.5},
        "weighted_click": {"weighted_per_user_loss": 0.4},
        "watch_time": {"weighted_per_user_loss": 0.36, "watch_time_mae_s": 25},
        "watch_time_tweedie": {"watch_time_mae_s": 16.0},
    }
    costs = {f"lightgbm.{name}": 2.0 for name in beside} | {"ours": 30.0}
    return {
        "ours": ours,
        "seconds": costs,
        "cpu_s": costs,
        **{f"lightgbm.{name}": values for name, values in beside.items()},
    }


def test_ours_is_compared_with_the_best_trees_of_each_metric() -> None:
    found = compared([run(0.72, 0.75), run(0.78, 0.75)])
    # Means over the seeds: .75 and .75.
    assert found["auc_click"] == pytest.approx(0.75)
    assert found["auc_click_minus_lightgbm"] == pytest.approx(0.0)
    assert found["auc_click.spread"] == pytest.approx(0.06)
    assert found["auc_long_view_minus_lightgbm"] == pytest.approx(0.1)
    # The loss is better the lower it is: .3 against .36.
    loss = found["weighted_per_user_loss_minus_lightgbm"]
    assert loss == pytest.approx(-0.06)
    assert found["mae_vs_lightgbm"] == pytest.approx(20 / 25)
    assert found["mae_vs_best_lightgbm"] == pytest.approx(20 / 16)
    assert found["calibration"] == pytest.approx(1.1)
    # Five trainings of trees.
    assert found["train_vs_lightgbm.seconds"] == pytest.approx(3.0)
