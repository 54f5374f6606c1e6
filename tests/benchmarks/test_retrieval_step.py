"""The benchmark of the training step runs, and its arithmetic."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.retrieval_step_job import Roofline

ROOT = Path(__file__).parents[2]


def test_the_roofline_is_products_and_five_moves_of_the_rows() -> None:
    # A gather of 4 s moves each row twice: 2 s a move; 5 moves are 10 s.
    assert Roofline.seconds(3.0, 4.0) == 13.0


@pytest.mark.slow
def test_the_benchmark_prints_its_keys() -> None:
    process = subprocess.run(
        [sys.executable, "benchmarks/retrieval_step.py", "--quick"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    for key in (
        "step_ratio_1m_10k",
        "speedup_vs_stock_adam",
        "roofline_ratio",
        "memory_ratio",
    ):
        assert result[key] > 0.0
