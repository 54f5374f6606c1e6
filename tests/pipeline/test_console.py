import subprocess
import sys

import pytest

from pipeline.console import print_metrics

METRICS = {
    "retrieval.cases": 2272.0,
    "retrieval.hit_rate_at_10": 0.25,
    "retrieval.hit_rate_at_100": 0.75,
    "retrieval.hit_rate_at_50": 0.5,
    "baselines.popularity.hit_rate_at_10": 0.125,
    "ranking.weighted_per_user_loss": 0.3,
    "baselines.click_model.ranking.weighted_per_user_loss": 0.4,
    "ranking.calibration": 1.01,
}


def test_each_metric_stands_beside_its_baselines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_metrics(METRICS)
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert rows[:4] == [
        ["cases", "2,272", "-"],
        ["hit_rate_at_10", "0.2500", "0.1250"],
        ["hit_rate_at_50", "0.5000", "-"],
        ["hit_rate_at_100", "0.7500", "-"],
    ]
    assert ["weighted_per_user_loss", "0.3000", "0.4000"] in rows
    # The click model predicts no seconds.
    assert ["calibration", "1.0100", "-"] in rows


def test_ranking_shows_intervals_and_baselines_but_no_slices(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_metrics(
        {
            "baselines.popularity.ranking.auc_click": 0.5,
            "baselines.popularity.ranking.auc_click_low": 0.4,
            "ranking.auc_click": 0.75,
            "ranking.auc_click_high": 0.875,
            "ranking.auc_click_low": 0.625,
            "ranking.by_surface.home.auc_click": 0.25,
            "ranking.impressions": 900.0,
            "ranking.off_policy.clicks_per_request.ips": 1.5,
        }
    )
    out = capsys.readouterr().out
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in out.splitlines()
        if line.startswith("│")
    ]
    assert rows == [
        ["auc_click", "0.7500", "0.6250 to 0.8750", "0.5000"],
        ["impressions", "900", "-", "-"],
        ["off_policy.clicks_per_request.ips", "1.5000", "-", "-"],
    ]
    assert "popularity" in out and "95 % interval" in out


def test_a_bucket_is_a_row_and_the_index_a_column(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In the order of metrics.json.
    age = "by_video_age"
    print_metrics(
        {
            "baselines.ease.by_activity.seen_0_to_5.hit_rate_at_100": 0.125,
            "retrieval.by_activity.seen_0_to_5.cases": 12.0,
            "retrieval.by_activity.seen_0_to_5.hit_rate_at_100": 0.25,
            "retrieval.by_activity.seen_0_to_5.hit_rate_at_50": 0.125,
            f"retrieval.{age}.2_to_7_days.hit_rate_at_100": 0.5,
            f"retrieval.{age}.2_to_7_days.labels": 3000.0,
            f"retrieval.{age}.under_2_days.hit_rate_at_100": 0.75,
            f"retrieval.{age}.under_2_days.labels": 20.0,
            "retrieval.cases": 12.0,
            "retrieval.map_at_10": 0.1,
            "retrieval.map_at_100": 0.2,
            "retrieval.map_at_10_seen_removed": 0.3,
            "retrieval.recall_at_10": 0.4,
            "retrieval.recall_at_100": 0.6,
            "retrieval.through_index.map_at_10": 0.0625,
        }
    )
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    # Ours, the index, ease.
    assert rows == [
        ["cases", "12", "-", "-"],
        ["map_at_10", "0.1000", "0.0625", "-"],
        ["recall_at_100", "0.6000", "-", "-"],
        ["seen 0 to 5", "12", "0.2500", "-", "0.1250"],
        ["under 2 days", "20", "0.7500", "-", "-"],
        ["2 to 7 days", "3,000", "0.5000", "-", "-"],
    ]


_TELLS = """
import sys
from pipeline.console import import_tensorflow_quietly
sys.stderr.write("before\\n")
import_tensorflow_quietly()
sys.stderr.write("after\\n")
assert "tensorflow" in sys.modules
"""


def test_importing_tensorflow_says_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _TELLS],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines() == ["before", "after"]
