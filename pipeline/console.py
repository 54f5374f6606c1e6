"""What a person sees: lines, tables and progress."""

import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from models.retrieval_slices import BUCKETS

# Severity, code and time of C++ log lines, and absl's remark before them.
_ALWAYS_SAID = re.compile(
    r"WARNING: All log messages before absl|I0000 |W0000 "
    r"|E0000 .*(cuInit|cuda_platform)|To enable the following instructions"
)


def console() -> Console:
    """Standard output; colours and widths only where it is a terminal."""
    # Elsewhere (a file, a log) tables need not fit a window.
    width = None if sys.stdout.isatty() else 140
    return Console(width=width, highlight=False, soft_wrap=True)


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow without the lines it always writes.

    Its C++ says, whatever the log level, that it found no GPU and has oneDNN;
    a user would take that for an error. All else is passed on.
    """
    with tempfile.TemporaryFile() as said:
        kept = os.dup(2)
        try:
            os.dup2(said.fileno(), 2)
            import models.keras_setup

            models.keras_setup.tf.config.list_physical_devices()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                if not _ALWAYS_SAID.match(line):
                    print(line, file=sys.stderr)


def say(line: str) -> None:
    """Prints one line at once."""
    console().print(line, markup=False)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Prints rows under a title; the first column left, the others right."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def number(value: float | None) -> str:
    """Four digits after the point; counts whole; a dash for no value."""
    if value is None or math.isnan(value):
        return "-"
    whole = abs(value) >= 1000 or (abs(value) > 1 and value == round(value))
    return f"{value:,.0f}" if whole else f"{value:.4f}"


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Prints the evaluation: retrieval beside its baselines, then ranking.

    A choice of the metrics, to be read at a glance; `metrics.json` has all.
    """
    sides = _sides(metrics)
    names = [
        key.removeprefix("retrieval.")
        for key in metrics
        if key.startswith("retrieval.") and key.count(".") == 1
    ]
    if names:
        print_table(
            "Retrieval on the test interval",
            ["metric", *sides],
            _rows(metrics, _at_a_glance(names), sides),
        )
    _print_slices(metrics, sides)
    _print_ranking(metrics)


def _print_ranking(metrics: Mapping[str, float]) -> None:
    """Prints ranking beside its baselines, without slices."""
    names = [
        key.removeprefix("ranking.")
        for key in metrics
        if key.startswith("ranking.")
        and not key.startswith("ranking.by_")
        and not key.endswith(("_low", "_high"))
    ]
    if not names:
        return
    sides = {
        key.split(".")[1].replace("_", " "): key.partition("ranking.")[0]
        for key in metrics
        if key.startswith("baselines.") and ".ranking." in key
    }
    rows = [
        [
            name,
            number(metrics[f"ranking.{name}"]),
            _interval(metrics, f"ranking.{name}"),
            *(
                number(metrics.get(f"{prefix}ranking.{name}"))
                for prefix in sides.values()
            ),
        ]
        for name in names
    ]
    columns = ["metric", "watchnext", "95 % interval", *sides]
    if all(row[2] == "-" for row in rows):
        columns.pop(2)
        rows = [row[:2] + row[3:] for row in rows]
    print_table("Ranking on the test interval", columns, rows)


def _interval(metrics: Mapping[str, float], name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "-" if low is None else f"{number(low)} to {number(high)}"


def _print_slices(
    metrics: Mapping[str, float], sides: Mapping[str, str]
) -> None:
    """Prints the hit rate at the largest k of each bucket, if there are any."""
    by_k = [k for k in metrics if k.startswith("retrieval.by_") and "_at_" in k]
    if not by_k:
        return
    rate = max(by_k, key=_natural).rpartition(".")[2]
    rows = []
    for bucket in BUCKETS:
        (row,) = _rows(metrics, [f"{bucket}.{rate}"], sides)
        size = metrics.get(
            f"retrieval.{bucket}.cases",
            metrics.get(f"retrieval.{bucket}.labels"),
        )
        if size is not None:
            name = bucket.partition(".")[2].replace("_", " ")
            rows.append([name, f"{size:,.0f}", *row[1:]])
    print_table(
        f"Its {rate}, by videos seen by the user and by a video's age",
        ["bucket", "number", *sides],
        rows,
    )


def _rows(
    metrics: Mapping[str, float], names: Sequence[str], sides: Mapping[str, str]
) -> list[list[str]]:
    rows = []
    for name in names:
        values = [metrics.get(prefix + name) for prefix in sides.values()]
        whole = name == "cases"
        rows.append(
            [name] + [f"{v:,.0f}" if whole and v else number(v) for v in values]
        )
    return rows


def _sides(metrics: Mapping[str, float]) -> dict[str, str]:
    """Column title -> prefix of its metrics' names: ours, then the others'."""
    sides = {"watchnext": "retrieval."}
    through = "retrieval.through_index."
    if any(key.startswith(through) for key in metrics):
        sides["its index"] = through
    baselines = (
        key.split(".")[1]
        for key in metrics
        if key.startswith("baselines.") and ".ranking." not in key
    )
    for name in dict.fromkeys(baselines):
        sides[name.replace("_", " ")] = f"baselines.{name}."
    return sides


def _at_a_glance(names: Sequence[str]) -> list[str]:
    """All hit rates; of the other metrics, seen kept, one k each."""
    by_metric: dict[str, list[str]] = {}
    for name in sorted(names, key=_natural):
        if name.startswith("hit_rate") or not name.endswith("_seen_removed"):
            by_metric.setdefault(name.partition("_at_")[0], []).append(name)
    shown: list[str] = []
    for metric, own in by_metric.items():
        # Recall tells most of the long list, the others of its beginning.
        one = own[-1:] if metric == "recall" else own[:1]
        shown += own if metric == "hit_rate" else one
    return shown


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts `at_50` before `at_100`."""
    parts = re.split(r"(\d+)", name)
    return [("", int(p)) if p.isdecimal() else (p, 0) for p in parts]
