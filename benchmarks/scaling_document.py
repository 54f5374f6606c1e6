"""From measured runs to the text of docs/scaling.md.

The words are in `scaling_template.md`; every number is filled in here, from
the measurements and from the assumptions below, which the text states.
"""

import dataclasses
import math
import re
import statistics
import string
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

JOBS = (
    "events",
    "split",
    "vocabularies",
    "transform",
    "retrieval_examples",
    "ranking_examples",
)
# All tables by user; what follows reads files that are bucketed already.
LARGEST_GROUPING = "events"
TEMPLATE = Path(__file__).with_name("scaling_template.md")

# What the arithmetic assumes; none of it was measured.
EVENTS = 100_000_000_000
HOURS = 4
VCPUS_PER_WORKER = 4
# A vCPU is a hyper-thread: half a core; the figures here are of whole cores.
VCPUS_PER_CORE = 2
SHARD_BYTES = 64 << 20
# A row group of our files.
READ_BATCH_ROWS = 131_072

Run = Mapping[str, Any]
_ITEM = re.compile(r"(- |\d+\. )")
# Tables, headings, code: lines that stay as they are.
_VERBATIM = ("|", "#", "    ", "```")


@dataclasses.dataclass(frozen=True)
class Law:
    """cost = start + per_million x millions of events, by least squares.

    Attributes:
      residuals: (measured - law) / measured of each run, in their order.
    """

    start: float
    per_million: float
    residuals: tuple[float, ...]

    @classmethod
    def fit(cls, runs: Sequence[Run], name: str) -> "Law":
        millions = [run["events"] / 1e6 for run in runs]
        costs = [float(run[name]) for run in runs]
        line = statistics.linear_regression(millions, costs)
        return cls(
            line.intercept,
            line.slope,
            tuple(
                (cost - line.intercept - line.slope * m) / cost
                for m, cost in zip(millions, costs, strict=True)
            ),
        )

    def at(self, events: int) -> float:
        """The cost of so many events."""
        return self.start + self.per_million * events / 1e6


def document(measured: Mapping[str, Any]) -> str:
    """The text, from what `scaling.measure` returned."""
    runs: Mapping[str, Sequence[Run]] = measured["runs"]
    laws = {
        job: {
            name: Law.fit(runs[job], name)
            for name in ("cpu_s", "seconds", "peak_rss_gib", "shuffled_bytes")
        }
        for job in JOBS
    }
    template = string.Template(TEMPLATE.read_text())
    text = template.substitute(
        _machine(measured["machine"])
        | {"sizes": _words([f"{n:,}" for n in measured["sizes"]])}
        | {"config": measured["config"], "config_sha256": measured["sha256"]}
        | {"jobs": "\n".join(_job(job, runs[job], laws[job]) for job in JOBS)}
        | _extrapolated(laws, measured)
    )
    return "\n".join(_filled(text))


def _job(job: str, runs: Sequence[Run], laws: Mapping[str, Law]) -> str:
    """Heading, table and laws of a job."""
    lines = [
        f"### {job}",
        "",
        "| events | runs | CPU s | wall s | peak GiB | shuffled MB |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for events in sorted({run["events"] for run in runs}):
        same = [run for run in runs if run["events"] == events]

        def middle(name: str, same: Sequence[Run] = same) -> float:
            return statistics.median(run[name] for run in same)

        lines.append(
            f"| {events:,} | {len(same)} | {middle('cpu_s'):.1f} "
            f"| {middle('seconds'):.1f} | {middle('peak_rss_gib'):.2f} "
            f"| {middle('shuffled_bytes') / 1e6:.1f} |"
        )
    lines.append("")
    for name, text, scale, digits in (
        ("cpu_s", "CPU seconds", 1.0, 2),
        ("seconds", "wall seconds", 1.0, 2),
        ("peak_rss_gib", "peak GiB", 1.0, 3),
        ("shuffled_bytes", "shuffled MB", 1e-6, 1),
    ):
        law = laws[name]
        residuals = ", ".join(
            f"{round(100 * r, 1) + 0.0:+.1f}" for r in law.residuals
        )
        lines.append(
            f"- {text} = {law.start * scale:.{digits}f} "
            f"{'-' if law.per_million < 0 else '+'} "
            f"{abs(law.per_million) * scale:.{digits}f} M "
            f"(residuals in %: {residuals})"
        )
    return "\n".join([*lines, ""])


def _extrapolated(
    laws: Mapping[str, Mapping[str, Law]], measured: Mapping[str, Any]
) -> dict[str, str]:
    """Every number of the section on 100 billion events."""
    millions = EVENTS / 1e6
    cpu_per_million = sum(laws[job]["cpu_s"].per_million for job in JOBS)
    cpu_hours = cpu_per_million * millions / 3600
    vcpu_hours = cpu_hours * VCPUS_PER_CORE
    worker_hours = vcpu_hours / VCPUS_PER_WORKER
    workers = math.ceil(worker_hours / HOURS)
    shuffled = sum(laws[job]["shuffled_bytes"].at(EVENTS) for job in JOBS)
    grouped = laws[LARGEST_GROUPING]["shuffled_bytes"].at(EVENTS)
    shards = math.ceil(grouped / SHARD_BYTES)
    one_pass = measured["one_pass_shards"]
    groups = min(one_pass, math.ceil(math.sqrt(shards)))
    per_worker = 2 * shuffled / (workers * HOURS * 3600)
    shares = [
        f"| {job} | {laws[job]['cpu_s'].per_million:.2f} "
        f"| {laws[job]['cpu_s'].per_million * millions / 3600:,.0f} "
        f"| {laws[job]['shuffled_bytes'].at(EVENTS) / 1e12:.2f} |"
        for job in JOBS
    ]
    return {
        "shares": "\n".join(shares),
        "millions": f"{millions:,.0f}",
        "hours": str(HOURS),
        "vcpus_per_worker": str(VCPUS_PER_WORKER),
        "vcpus_per_core": str(VCPUS_PER_CORE),
        "cpu_per_million": f"{cpu_per_million:.2f}",
        "cpu_hours": f"{cpu_hours:,.0f}",
        "vcpu_hours": f"{vcpu_hours:,.0f}",
        "worker_hours": f"{worker_hours:,.0f}",
        "workers": f"{workers:,}",
        "shuffled_tb": f"{shuffled / 1e12:.2f}",
        "shuffled_twice_tb": f"{2 * shuffled / 1e12:.2f}",
        "per_worker_mb_s": f"{per_worker / 1e6:.1f}",
        "largest": LARGEST_GROUPING,
        "grouped_tb": f"{grouped / 1e12:.2f}",
        "shard_mib": str(SHARD_BYTES >> 20),
        "shards": f"{shards:,}",
        "events_per_shard": f"{EVENTS / shards:,.0f}",
        "batch_rows": f"{READ_BATCH_ROWS:,}",
        "slice_rows": f"{READ_BATCH_ROWS / shards:,.1f}",
        "min_slice_rows": f"{measured['slice_rows']:,}",
        "one_pass_shards": str(one_pass),
        "groups": str(groups),
        "width": f"{math.ceil(shards / groups):,}",
        "first_slice_rows": f"{READ_BATCH_ROWS / groups:,.0f}",
        "element_mib": str(measured["element_bytes"] >> 20),
        "grouped_twice_tb": f"{2 * grouped / 1e12:.2f}",
        "row_bytes": f"{grouped / EVENTS:.0f}",
    }


def _filled(text: str) -> Iterator[str]:
    """Fills paragraphs and list items to the width; all else as it is."""
    waiting: list[str] = []
    verbatim = False
    for line in [*text.splitlines(), ""]:
        verbatim ^= line.startswith("```")
        is_text = not (verbatim or line.startswith(_VERBATIM) or not line)
        if waiting and (not is_text or _ITEM.match(line)):
            item = _ITEM.match(waiting[0])
            yield textwrap.fill(
                " ".join(waiting),
                80,
                subsequent_indent=" " * len(item[0]) if item else "",
                break_long_words=False,
                break_on_hyphens=False,
            )
            waiting = []
        if is_text:
            waiting.append(line.strip())
        else:
            yield line


def _machine(machine: Mapping[str, Any]) -> dict[str, str]:
    versions = machine["versions"]
    return {
        "cores": str(machine["cores"]),
        "memory_gib": str(machine["memory_gib"]),
        "architecture": machine["machine"],
        "gemm_gflops": str(machine["gemm_gflops"]),
        "copy_gb_per_s": str(machine["copy_gb_per_s"]),
        "load_average": str(machine["load_average"]),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }


def _words(texts: Sequence[str]) -> str:
    if len(texts) < 2:
        return "".join(texts)
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
