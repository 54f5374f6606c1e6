"""The command line as the pages type it, on platforms that are small.

What makes a new work directory gets small settings first, which the command's
own follow. What trains does train, also where the model is there already, as a
reader's first call would.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import main

SETTINGS = {
    "simulator.num_users": 300,
    "simulator.num_videos": 400,
    "simulator.num_channels": 40,
    "simulator.num_topics": 8,
    "simulator.num_days": 10,
    "simulator.requests_per_user_day": 0.4,
    "beam.num_shards": 3,
    "retrieval.epochs": 1,
    "retrieval.batch_size": 32,
    "ranking.epochs": 1,
    "ranking.batch_size": 32,
    # An epoch on 900 requests is not calibrated.
    "publishing.min_calibration": 0,
    "publishing.max_calibration": 99,
    "publishing.users": 100,
    "evaluation.bootstrap_resamples": 20,
    "evaluation.click_model": "false",
}
BEGINNING = ("demo", "run", "simulate", "ingest", "prepare")


def small(arguments: Sequence[str]) -> list[str]:
    """The arguments with the small settings, where they begin something."""
    command, *rest = arguments
    workdir = Path("work/demo")
    if "--workdir" in rest:
        workdir = Path(rest[rest.index("--workdir") + 1])
    if command == "train" and "--warm-start-from" not in rest:
        for folder in ("training", f"{rest[0]}_model"):
            shutil.rmtree(workdir / folder, ignore_errors=True)
    # `demo` has a configuration of its own; else a work directory's is read.
    begun = command != "demo" and (workdir / "config.yaml").exists()
    if command not in BEGINNING or begun:
        return [command, *rest]
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    return [command, *settings, *rest]


if __name__ == "__main__":
    sys.exit(main(small(sys.argv[1:])))
