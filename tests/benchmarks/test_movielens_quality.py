"""What the MovieLens benchmark makes of its runs."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import movielens_quality
from benchmarks.movielens_quality import Bench

HIT_RATE = "retrieval.hit_rate_at_10_seen_removed"


def test_means_and_spreads_over_the_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(module: str, *args: object) -> dict[str, Any]:
        seen.append([module, *map(str, args)])
        number = len(seen)
        return {
            "metrics": {
                HIT_RATE: 0.30 + 0.02 * number,
                "retrieval.hit_rate_at_50": 0.5,
            },
            # The second one was resumed.
            "training_s": 100.0 * number if number != 2 else None,
            "training_cpu_s": 90.0 if number != 2 else None,
            "best_epoch": 4 + number,
        }

    monkeypatch.setattr(movielens_quality, "run_module", run)
    bench = Bench(tmp_path, ["retrieval.epochs=3"])
    bench.section("bags", "movielens-1m", [1, 2, 7], "beam.num_shards=1")
    assert seen[2] == [
        "movielens_run",
        "movielens-1m",
        str(tmp_path / "bags"),
        "--name=bags-seed-7",
        "--set=seed=7",
        "--set=beam.num_shards=1",
        "--set=retrieval.epochs=3",
    ]
    results = bench.results
    # .32, .34 and .36.
    assert results[f"bags.{HIT_RATE}"] == pytest.approx(0.34)
    assert results[f"bags.{HIT_RATE}.spread"] == pytest.approx(0.04)
    assert results["bags.training_s"] == 200.0
    assert results["bags.best_epoch"] == 6.0
    assert [run["seed"] for run in bench.details["bags"]] == [1, 2, 7]
