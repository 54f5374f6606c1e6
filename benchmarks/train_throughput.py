"""Measures training's examples/s beside torch-rechub; prints one JSON object.

    apt install python3-torch python3-pandas python3-sklearn python3-tqdm
    python3 -m venv --system-site-packages peer    # Debian's own python3
    peer/bin/pip install torch-rechub
    WATCHNEXT_DATA=... python benchmarks/train_throughput.py \\
        --peer-python peer/bin/python

MovieLens-1M, models of one size, from files on disk to updated weights. Ours
and the peer take turns, each run a process of its own. README.md says what
each key means. Without a peer only our own figure is measured.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

# Run as a script: the repository's root is not on the path yet.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.beam_jobs import DATA
from benchmarks.processes import (
    ROOT,
    JobFailed,
    Measured,
    median,
    run_module,
    say,
)

KEYS = ("examples_per_s", "vs_torch_rechub")
NO_PEER = (
    "not measured: pass --peer-python, an interpreter that has torch and "
    "torch-rechub."
)
# As the peer's script takes all watches but the last two of a user.
_STAGES = (
    "--config=movielens-1m",
    "--set=retrieval_examples.examples_per_user=null",
)


def make_examples(workdir: Path) -> None:
    """Runs the data stages of MovieLens-1M, unless they are there.

    Raises:
      JobFailed: a stage failed; with the end of its output.
    """
    if list(workdir.glob("retrieval_holdout/*/COMPLETED")):
        return
    options = [*_STAGES, f"--workdir={workdir}"]
    for command in ("ingest", "prepare"):
        say(f"{command} {workdir} ...")
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", command, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise JobFailed(f"{command} failed:\n{done.stdout[-4000:]}")


def measured(
    name: str, module: str, *args: object, python: str = sys.executable
) -> Measured:
    """Runs a contestant, adds `examples_per_s` and says it."""
    run = run_module(module, *args, python=python)
    run["examples_per_s"] = run["examples"] / run["seconds"]
    say(
        f"{name:>12} {run['examples_per_s']:>9,.0f} examples/s, "
        f"{run['seconds']:.1f} s, {run['cpu_s']:.1f} s of CPU, loss "
        f"{run['train_loss'][-1]:.3f}"
    )
    return run


def contest(args: argparse.Namespace) -> Measured:
    """All runs in turns; ratios are of medians."""
    make_examples(args.workdir)
    epochs = f"--epochs={args.epochs}"
    runs: dict[str, list[Measured]] = {"ours": [], "torch_rechub": []}
    arrays = args.workdir / "torch_rechub.npz"
    if args.peer_python and not arrays.exists():
        run_module("train_arrays", args.workdir, arrays)
    for _ in range(args.repetitions):
        runs["ours"].append(
            measured("ours", "train_ours", args.workdir, epochs)
        )
        if args.peer_python:
            run = measured(
                "torch-rechub",
                "train_torch_rechub",
                arrays,
                epochs,
                f"--loaders={args.loaders}",
                python=args.peer_python,
            )
            runs["torch_rechub"].append(run)
    results: Measured = dict.fromkeys(KEYS)
    results["examples_per_s"] = median(runs["ours"], "examples_per_s")
    if args.peer_python:
        theirs = median(runs["torch_rechub"], "examples_per_s")
        results["vs_torch_rechub"] = results["examples_per_s"] / theirs
    else:
        results["vs_torch_rechub_note"] = NO_PEER
    return {**results, "runs": runs}


def main() -> None:
    """Prints progress, then JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=Path, default=DATA / "movielens-1m")
    parser.add_argument("--peer-python", help="with torch and torch-rechub")
    parser.add_argument("--loaders", type=int, default=8, help="of the peer")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    results = contest(args)
    results["machine"] = run_module("machine")
    print(json.dumps(results))


if __name__ == "__main__":
    try:
        main()
    except JobFailed as error:
        sys.exit(f"error: {error}")
