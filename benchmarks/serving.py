"""Serving: what clients of the published models meet; prints one JSON object.

    python benchmarks/serving.py                          # both sections
    python benchmarks/serving.py --only recommender
    python benchmarks/serving.py --only swap --workdir work/demo

README.md says what each key means. `recommender` simulates and trains its own
platform below `--data DIR`, and finds it again; `swap` needs a run's models.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

# Run as a script: the repository's root is not on the path yet.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.beam_jobs import DATA
from benchmarks.processes import JobFailed, Measured, run_module, say

SECTIONS = ("recommender", "swap")


def main() -> None:
    """Prints progress, then JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--data", type=Path, default=DATA / "recommender")
    parser.add_argument("--workdir", type=Path, default=Path("work/demo"))
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    if args.only != "swap" and shutil.which("gcc") is None:
        raise JobFailed("gcc is not on PATH: it builds the C program.")
    if args.only != "recommender" and not (args.workdir / "serving").is_dir():
        raise JobFailed(f"{args.workdir} has no models. Run `watchnext run`.")
    results: Measured = {"machine": run_module("machine")}
    if args.only != "swap":
        say("A platform of 100,000 videos, asked in C ...")
        results |= run_module("recommender_times", args.data)
    if args.only != "recommender":
        say("Four clients, and new versions under them ...")
        swap = run_module("version_swap", args.workdir, args.seconds)
        results |= {"failed_requests": swap["failed_requests"], "swap": swap}
    print(json.dumps(results))


if __name__ == "__main__":
    try:
        main()
    except JobFailed as error:
        sys.exit(f"error: {error}")
