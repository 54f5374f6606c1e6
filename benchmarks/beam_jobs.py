"""Measures the Beam jobs beside their peers; prints one JSON object.

    python benchmarks/beam_jobs.py             # some 12 minutes on 2 cores
    python benchmarks/beam_jobs.py --quick     # small sizes: does it run?
    python benchmarks/beam_jobs.py --only columnar

Every run is a process of its own; ours and the peers take turns, so that a
slow minute of the machine hits all of them. README.md says what each key
means.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Run as a script, this very file would hide the package `beam_jobs`.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import Measured, median, run_module, say

KEYS = (
    "columnar_vs_naive",
    "columnar_vs_polars",
    "transform_vs_polars",
    "time_ratio_10m_1m",
    "memory_ratio_10m_1m",
    "peak_rss_gib",
    "thin_slices_ratio",
    "flink_bytes_equal",
)
# Logs are kept here: the next run finds them.
DATA = Path(tempfile.gettempdir(), "watchnext-benchmarks")
CONTESTANTS = ("columnar", "naive", "polars")


class Bench:
    """The settings of a run and what it has measured so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results: Measured = dict.fromkeys(KEYS)
        self.details: Measured = {}

    def log(self, num_events: int) -> Path:
        """A log of which retrieval examples read `num_events` rows."""
        path: Path = self.args.data / f"retrieval-{num_events}"
        if not (path / "log.json").exists():
            say(f"Simulating {path} ...")
            run_module(
                "logs",
                path,
                f"--num_events={num_events}",
                "--tables=watches,searches",
            )
        return path

    def graph(self) -> Path:
        """Vocabularies and transform graph, one for logs of every size."""
        num_events = min(self.args.events, 1_000_000)
        path: Path = self.args.data / f"graph-{num_events}"
        if not (path / "graph" / "transform_fn").exists():
            say(f"Fitting {path}/graph ...")
            run_module("logs", path, f"--num_events={num_events}", "--graph")
        return path / "graph"

    def examples(
        self, contestant: str, log: Path, *options: object
    ) -> Measured:
        """One run of a contestant, with its events per second."""
        run = run_module(
            f"{contestant}_examples",
            f"--log={log}",
            f"--graph={self.graph()}",
            f"--output={self.args.data / 'examples'}",
            *options,
        )
        run["events_per_s"] = run["events"] / run["seconds"]
        say(
            f"{contestant:>9} {run['events']:>10,} events "
            f"{run['seconds']:7.1f} s {run['events_per_s']:>10,.0f} events/s "
            f"{run['peak_rss_gib']:5.2f} GiB"
        )
        return run


def columnar(bench: Bench) -> None:
    """Our retrieval examples against those of both peers."""
    log = bench.log(bench.args.events)
    runs: dict[str, list[Measured]] = {name: [] for name in CONTESTANTS}
    for _ in range(bench.args.repetitions):
        for name in CONTESTANTS:
            runs[name].append(bench.examples(name, log))
    examples = [run["examples"] for name in runs for run in runs[name]]
    if any(other != examples[0] for other in examples):
        raise SystemExit(f"The examples differ: {json.dumps(examples)}")
    bench.details["columnar"] = runs
    rates = {name: median(runs[name], "events_per_s") for name in runs}
    bench.details["events_per_s"] = rates
    for peer in ("naive", "polars"):
        bench.results[f"columnar_vs_{peer}"] = rates["columnar"] / rates[peer]


SECTIONS: dict[str, Callable[[Bench], None]] = {"columnar": columnar}


def main() -> None:
    """Runs the chosen sections; the last line is the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=SECTIONS, action="append")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    bench = Bench(parser.parse_args())
    bench.details["machine"] = run_module("machine")
    for name in bench.args.only or SECTIONS:
        say(f"-- {name}")
        SECTIONS[name](bench)
    print(json.dumps(bench.results | bench.details))


if __name__ == "__main__":
    main()
