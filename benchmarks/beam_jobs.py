"""Measures the Beam jobs beside their peers; prints one JSON object.

    python benchmarks/beam_jobs.py             # some 13 minutes on 2 cores
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

from benchmarks.processes import JobFailed, Measured, median, run_module, say

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
CONTESTANTS = ("columnar", "naive", "polars")
# Logs are kept here: the next run finds them.
DATA = Path(tempfile.gettempdir(), "watchnext-benchmarks")


class Bench:
    """The settings of a run and what it has measured so far."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.results: Measured = dict.fromkeys(KEYS)
        self.details: Measured = {}

    def log(self, num_events: int) -> Path:
        """A log of which retrieval examples read `num_events` rows."""
        return self._made(
            f"retrieval-{num_events}",
            "log.json",
            "logs",
            f"--num_events={num_events}",
            "--tables=watches,searches",
        )

    def graph(self) -> Path:
        """Vocabularies and transform graph, one for logs of every size."""
        path = self._made(
            f"graph-{self.args.events}",
            "graph/transform_fn",
            "logs",
            f"--num_events={self.args.events}",
            "--graph",
        )
        return path / "graph"

    def rows(self) -> Path:
        """Rows to analyse and transform."""
        return self._made(
            f"rows-{self.args.rows}",
            "rows.parquet",
            "transform_rows",
            f"--num_rows={self.args.rows}",
        )

    def examples(self, contestant: str, log: Path) -> Measured:
        """One run of a contestant."""
        return self.run(
            f"{contestant}_examples",
            "events",
            f"--log={log}",
            f"--graph={self.graph()}",
            f"--output={self.args.data / 'examples'}",
        )

    def run(
        self, module: str, unit: str, *args: object, whole_process: bool = False
    ) -> Measured:
        """Runs a module, adds `<unit>_per_s` and says it.

        Args:
          module: below benchmarks/.
          unit: what the module counts: events or rows.
          *args: of the module.
          whole_process: the rate is over the process with its start-up.
        """
        run = run_module(module, *args)
        seconds = run["process_seconds" if whole_process else "seconds"]
        memory = "process_peak_rss_gib" if whole_process else "peak_rss_gib"
        run[f"{unit}_per_s"] = run[unit] / seconds
        say(
            f"{module:>18} {run[unit]:>10,} {unit} {seconds:7.1f} s "
            f"{run[f'{unit}_per_s']:>10,.0f} {unit}/s {run[memory]:5.2f} GiB"
        )
        return run

    def _made(self, name: str, done: str, module: str, *args: str) -> Path:
        """A folder below the data, made by a module unless it is there."""
        path = Path(self.args.data, name)
        if not (path / done).exists():
            say(f"Making {path} ...")
            run_module(module, path, *args)
        return path


def columnar(bench: Bench) -> None:
    """Our retrieval examples against those of both peers."""
    log = bench.log(bench.args.contest_events)
    runs: dict[str, list[Measured]] = {name: [] for name in CONTESTANTS}
    for _ in range(bench.args.repetitions):
        for name in CONTESTANTS:
            runs[name].append(bench.examples(name, log))
    examples = [run["examples"] for name in runs for run in runs[name]]
    if any(other != examples[0] for other in examples):
        raise JobFailed(f"The examples differ: {json.dumps(examples)}")
    bench.details["columnar"] = runs
    ours = median(runs["columnar"], "events_per_s")
    for peer in ("naive", "polars"):
        theirs = median(runs[peer], "events_per_s")
        bench.results[f"columnar_vs_{peer}"] = ours / theirs


def transform(bench: Bench) -> None:
    """Analyse and transform, whole processes with their start-up."""
    path = bench.rows()
    runs: dict[str, list[Measured]] = {"columnar": [], "polars": []}
    for _ in range(bench.args.repetitions):
        for name in runs:
            run = bench.run(
                f"{name}_transform",
                "rows",
                path,
                f"--output={bench.args.data / 'features'}",
                whole_process=True,
            )
            runs[name].append(run)
    bench.details["transform"] = runs
    bench.results["transform_vs_polars"] = median(
        runs["columnar"], "rows_per_s"
    ) / median(runs["polars"], "rows_per_s")


def growth(bench: Bench) -> None:
    """Time and memory of the job as the log grows tenfold."""
    log = bench.log(bench.args.events)
    small = [
        bench.examples("columnar", log) for _ in range(bench.args.repetitions)
    ]
    large = [bench.examples("columnar", bench.log(10 * bench.args.events))]
    bench.details["growth"] = {"small": small, "large": large}
    results = bench.results
    results["time_ratio_10m_1m"] = large[0]["seconds"] / median(
        small, "seconds"
    )
    results["memory_ratio_10m_1m"] = large[0]["peak_rss_gib"] / median(
        small, "peak_rss_gib"
    )
    results["peak_rss_gib"] = large[0]["peak_rss_gib"]


def thin_slices(bench: Bench) -> None:
    """The shuffle with 10,000 shards against the default number."""
    log = bench.log(bench.args.thin_events)
    runs: dict[str, list[Measured]] = {"default": [], "thin": []}
    for _ in range(bench.args.thin_repetitions):
        for name, options in (
            ("default", ()),
            ("thin", (f"--num_shards={bench.args.thin_shards}",)),
        ):
            run = bench.run(
                "grouping",
                "events",
                f"--log={log}",
                f"--graph={bench.graph()}",
                *options,
            )
            runs[name].append(run)
    bench.details["thin_slices"] = runs
    bench.results["thin_slices_ratio"] = median(
        runs["thin"], "events_per_s"
    ) / median(runs["default"], "events_per_s")


def flink(bench: Bench) -> None:
    """Whether Flink writes the bytes that this process writes."""
    jar = bench.args.flink_job_server_jar
    options = [f"--flink_job_server_jar={jar}"] if jar else []
    run = run_module("engine_bytes", *options)
    bench.results["flink_bytes_equal"] = run["flink_bytes_equal"]
    bench.details["flink_note"] = run["flink_note"]
    say(f"{run['flink_bytes_equal']}: {run['flink_note']}")


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "columnar": columnar,
    "transform": transform,
    "growth": growth,
    "thin_slices": thin_slices,
    "flink": flink,
}
# Sizes of `--quick`.
_QUICK = {
    "events": 20_000,
    "contest_events": 20_000,
    "rows": 20_000,
    "thin_events": 20_000,
    "thin_shards": 100,
    "repetitions": 1,
    "thin_repetitions": 1,
}


def main() -> None:
    """Runs the chosen sections; the last line is the JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", choices=SECTIONS, action="append")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--contest_events", type=int, default=3_000_000)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--thin_events", type=int, default=10_000_000)
    parser.add_argument("--thin_shards", type=int, default=10_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--thin_repetitions", type=int, default=2)
    parser.add_argument("--flink_job_server_jar", type=Path)
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    if args.quick:
        vars(args).update(_QUICK)
    bench = Bench(args)
    bench.details["machine"] = run_module("machine")
    for name in args.only or SECTIONS:
        say(f"-- {name}")
        SECTIONS[name](bench)
    print(json.dumps(bench.results | bench.details))


if __name__ == "__main__":
    try:
        main()
    except JobFailed as error:
        sys.exit(f"error: {error}")
