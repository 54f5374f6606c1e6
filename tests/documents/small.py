"""The command line as the pages type it, on platforms that are small.

What makes a new work directory gets small settings first, which the command's
own follow. What trains does train, in a copy of the work directory without the
model: there the command would only find it, and other commands still need it.
"""

import shutil
import sys
import tempfile
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
        place = rest.index("--workdir") + 1
        workdir = Path(rest[place])
    if command == "train" and "--warm-start-from" not in rest:
        copy = Path(tempfile.mkdtemp(dir=".")) / "work"
        shutil.copytree(workdir, copy)
        for folder in ("training", f"{rest[0]}_model"):
            shutil.rmtree(copy / folder, ignore_errors=True)
        rest[place] = str(copy)
    # `demo` has a configuration of its own; else a work directory's is read.
    begun = command != "demo" and (workdir / "config.yaml").exists()
    if command not in BEGINNING or begun:
        return [command, *rest]
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    return [command, *settings, *rest]


if __name__ == "__main__":
    sys.exit(main(small(sys.argv[1:])))
