"""The benchmark of a refresh, run quick."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_quick_run_measures_three_models(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/refresh.py", "--quick"]
    done = subprocess.run(
        [*command, "--epochs", "2", "--data", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["models"]) == {"full", "refresh", "moved"}
    # A day of six, and at most two epochs of each.
    assert 0 < found["examples"]["refresh"] < found["examples"]["full"] / 2
    for model in found["models"].values():
        assert 0 <= model["hit_rate_at_10"] <= model["hit_rate_at_100"] <= 1
