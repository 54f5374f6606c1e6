"""Measures how the data jobs grow, and writes docs/scaling.md.

    python benchmarks/scaling.py --output docs/scaling.md

Each job runs in a process of its own at 1M (three times), 3M and 10M events;
a straight line is fitted to each cost, and the document is filled in from the
figures. With `--measured FILE` it is filled in from the figures of an earlier
run, which are kept beside the logs.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import JobFailed, Measured, run_module, say
from benchmarks.scaling_document import JOBS, document

DATA = Path(tempfile.gettempdir(), "watchnext-benchmarks")


def measure(
    data: Path, sizes: list[int], repetitions: list[int]
) -> dict[str, object]:
    """Runs every job at every size.

    Args:
      data: folder of logs and outputs.
      sizes: events in the timed tables of each log.
      repetitions: how often each size is measured.

    Returns:
      `machine`, `sizes`, `config` and its `sha256`, and `runs`: job -> list
      of measurements.
    """
    runs: dict[str, list[Measured]] = {job: [] for job in JOBS}
    machine = run_module("machine")
    for size, times in zip(sizes, repetitions, strict=True):
        log, work = data / f"log-{size}", data / f"work-{size}"
        if not (log / "log.json").exists():
            say(f"Making {log} ...")
            run_module("logs", log, f"--num_events={size}")
        for _ in range(times):
            for job in JOBS:
                run = run_module(
                    "prepare_job", job, f"--log={log}", f"--work={work}"
                )
                runs[job].append(run)
                say(
                    f"{job:>18} {run['events']:>10,} events "
                    f"{run['seconds']:7.1f} s {run['cpu_s']:7.1f} CPU s "
                    f"{run['peak_rss_gib']:5.2f} GiB "
                    f"{run['shuffled_bytes'] / 1e6:8.1f} MB shuffled"
                )
        shutil.rmtree(work)
    return {
        "machine": machine,
        "sizes": sizes,
        "runs": runs,
        **run_module("settings"),
    }


def main() -> None:
    """Measures, writes the document; the last line is a JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--measured", type=Path)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[1_000_000, 3_000_000, 10_000_000],
    )
    parser.add_argument("--repetitions", type=int, nargs="+", default=[3, 1, 1])
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    if len(args.sizes) != len(args.repetitions):
        parser.error("--repetitions needs one number per size.")
    if args.measured:
        measured = json.loads(args.measured.read_text())
    else:
        measured = measure(args.data, args.sizes, args.repetitions)
        (args.data / "scaling.json").write_text(json.dumps(measured))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(document(measured))
    print(json.dumps(measured))


if __name__ == "__main__":
    try:
        main()
    except JobFailed as error:
        sys.exit(f"error: {error}")
