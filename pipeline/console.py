"""What a person sees: lines, tables and progress."""

import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

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
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Prints the evaluation: retrieval beside its baselines, then ranking."""
    sides = [("watchnext", "retrieval.")] + [
        (name.replace("_", " "), f"baselines.{name}.")
        for name in _baselines(metrics)
    ]
    names = sorted(
        (
            key.removeprefix("retrieval.")
            for key in metrics
            if key.startswith("retrieval.")
        ),
        key=_natural,
    )
    if names:
        print_table(
            "Retrieval on the test interval",
            ["metric", *(side for side, _ in sides)],
            [
                [name, *(number(metrics.get(p + name)) for _, p in sides)]
                for name in names
            ],
        )
    ranking = [k for k in metrics if k.startswith("ranking.")]
    if ranking:
        print_table(
            "Ranking on the test interval",
            ["metric", "watchnext", "click model"],
            [
                [
                    key.removeprefix("ranking."),
                    number(metrics[key]),
                    number(metrics.get(f"baselines.click_model.{key}")),
                ]
                for key in ranking
            ],
        )


def _natural(name: str) -> list[tuple[str, int]]:
    """Sorts `at_50` before `at_100`."""
    parts = re.split(r"(\d+)", name)
    return [("", int(p)) if p.isdecimal() else (p, 0) for p in parts]


def _baselines(metrics: Mapping[str, float]) -> list[str]:
    names = (
        key.split(".")[1]
        for key in metrics
        if key.startswith("baselines.") and ".ranking." not in key
    )
    return list(dict.fromkeys(names))
