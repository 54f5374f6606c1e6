"""Runs a module of this folder in a process of its own and measures it.

Peak memory and CPU time are then the job's own. This module and those that
use it import nothing but the standard library, and on purpose: Linux counts
the memory of the process that starts another as the first memory of that
other one, so the starter has to be small.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Measured = dict[str, Any]


class JobFailed(Exception):
    """A measured process ended with an error; the text is its last output."""


def run_module(
    module: str,
    *args: object,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Measured:
    """Runs `python -m benchmarks.<module> <args>`.

    Returns:
      The JSON object of the module's last line, and `process_seconds`,
      `process_cpu_s` and `process_peak_rss_gib` with the process's start-up.

    Raises:
      JobFailed: the process failed; with the end of its error output.
    """
    command = [python, "-m", f"benchmarks.{module}", *map(str, args)]
    settings = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TF_USE_LEGACY_KERAS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **(environment or {}),
    }
    started = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None  # A pipe was asked for.
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise JobFailed(
            f"{' '.join(command[2:])} ended with {process.returncode}:\n"
            f"{output[-4000:]}"
        )
    return {
        **_last_object(output),
        "process_seconds": seconds,
        "process_cpu_s": usage.ru_utime + usage.ru_stime,
        "process_peak_rss_gib": usage.ru_maxrss / 2**20,
    }


def _last_object(output: str) -> Measured:
    """The last line that is a JSON object; libraries may print after it."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            found: Measured = json.loads(line)
            return found
    raise JobFailed(f"No JSON object in the output:\n{output[-4000:]}")


def total_cpu_s() -> float:
    """User and system time of this process and its children so far."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(
            resource.getrusage,
            (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN),
        )
    )


def say(text: str) -> None:
    """Progress, on the error stream: the last line of output is JSON."""
    print(text, file=sys.stderr, flush=True)


def median(runs: Sequence[Measured], name: str) -> float:
    """The median of a figure over repetitions; the lower of two."""
    values = sorted(float(run[name]) for run in runs)
    return values[(len(values) - 1) // 2]
