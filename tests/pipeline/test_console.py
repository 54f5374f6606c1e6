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
