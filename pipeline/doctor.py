"""Say in words what this machine can run, and what to install for the rest.

Out: a `Report` of typed facts, printed by `run_doctor`, which returns exit
code 1 when one of the six packages cannot be imported. Native libraries can
kill the interpreter, so the imports happen in a child process: whatever goes
wrong there becomes one line here, never a stack trace.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from pipeline.doctor_runners import RunnerFound, find_runners

GIB = 1024**3


@dataclass(frozen=True)
class Package:
    """A distribution and the statement by which the project imports it."""

    name: str
    statement: str


PACKAGES = (
    Package("tensorflow", "import tensorflow"),
    Package("tensorflow-recommenders", "from models.keras_setup import tfrs"),
    Package("apache-beam", "import apache_beam"),
    Package("scann", "from models.keras_setup import scann"),
    Package("tensorflow-transform", "import tensorflow_transform"),
    Package("pytest", "import pytest"),
)

# What `export --onnx` needs beside them.
_ONNX = ("tf2onnx", "onnx")


@dataclass(frozen=True)
class PackageFound:
    """Whether a package imports.

    Attributes:
        version: the installed version, or None if it is not installed.
        error: the reason in one line, or None if the import worked.
    """

    name: str
    version: str | None
    error: str | None


@dataclass(frozen=True)
class TensorFlowSees:
    """What TensorFlow reports: devices by kind, and file system schemes."""

    devices: dict[str, int] = field(default_factory=dict)
    schemes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything `doctor` found out; sizes in bytes."""

    python: str
    platform: str
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    packages: tuple[PackageFound, ...]
    accelerators: str
    onnx: str
    runners: tuple[RunnerFound, ...]

    @property
    def exit_code(self) -> int:
        """Return 1 if a package cannot be imported, else 0."""
        return int(any(found.error for found in self.packages))


# Each answer is one line, written as soon as it is known: the first package
# without an answer is the one that killed the process.
_CHILD = """
import json, sys
def answer(**fields):
    print("\\n@" + json.dumps(fields), flush=True)
for line in sys.argv[1:]:
    name, statement = line.split("=", 1)
    try:
        exec(statement, {})
    except BaseException as error:
        text = str(error).strip().splitlines() or ["no message"]
        answer(name=name, error=type(error).__name__ + ": " + text[0])
    else:
        answer(name=name, error=None)
tensorflow = sys.modules.get("tensorflow")
if tensorflow is not None:
    devices = tensorflow.config.list_physical_devices()
    answer(devices=[d.device_type for d in devices],
           schemes=tensorflow.io.gfile.get_registered_schemes())
"""


def _ask_child(
    packages: Sequence[Package], search_path: Sequence[str]
) -> tuple[list[dict[str, object]], int]:
    """Run one child; return its answers and its exit status."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(search_path),
        "TF_USE_LEGACY_KERAS": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    # -P: a stranger's `models` folder in the current one is not ours.
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-c", _CHILD),
            *(f"{package.name}={package.statement}" for package in packages),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = done.stdout.splitlines()
    answers = [json.loads(line[1:]) for line in lines if line[:1] == "@"]
    return answers, done.returncode


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def try_imports(
    packages: Sequence[Package] = PACKAGES,
    search_path: Sequence[str] | None = None,
) -> tuple[tuple[PackageFound, ...], TensorFlowSees]:
    """Import each package in a child process.

    A package that kills the child is named, and the rest is tried in a new
    child.

    Args:
        packages: what to import, in this order.
        search_path: the child's import path; this process's unless given.

    Returns:
        One result a package, in order, and what TensorFlow saw.
    """
    path = sys.path if search_path is None else search_path
    errors: dict[str, str | None] = {}
    sees = TensorFlowSees()
    while waiting := [p for p in packages if p.name not in errors]:
        answers, status = _ask_child(
            waiting, [entry for entry in path if entry]
        )
        for answer in answers:
            if "devices" in answer:
                sees = _tensorflow_sees(answer)
            else:
                error = answer["error"]
                errors[str(answer["name"])] = (
                    None if error is None else str(error)
                )
        silent = [p for p in waiting if p.name not in errors]
        if silent:
            errors[silent[0].name] = _death(status)
    found = tuple(
        PackageFound(p.name, _installed_version(p.name), errors[p.name])
        for p in packages
    )
    return found, sees


def _tensorflow_sees(answer: dict[str, object]) -> TensorFlowSees:
    kinds, schemes = answer["devices"], answer["schemes"]
    if not isinstance(kinds, list) or not isinstance(schemes, list):
        raise TypeError(f"expected lists of names, got {answer}")
    return TensorFlowSees(
        {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        tuple(schemes),
    )


def _death(status: int) -> str:
    """Put the exit status of a child that fell silent into words."""
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    return f"the import ended the interpreter ({how})"


def accelerators_in_words(
    sees: TensorFlowSees, devices_dir: Path = Path("/dev")
) -> str:
    """Say which accelerators TensorFlow uses, and which lie idle.

    Args:
        sees: what TensorFlow reported.
        devices_dir: where the kernel shows NVIDIA cards and TPU chips.
    """
    used = [
        f"{sees.devices[kind]} {kind}{'s' if sees.devices[kind] > 1 else ''}"
        for kind in ("GPU", "TPU")
        if kind in sees.devices
    ]
    words = [" and ".join(used) or "none; TensorFlow computes on the CPU"]
    if "GPU" not in sees.devices and (devices_dir / "nvidia0").exists():
        words.append(
            "an NVIDIA card is here but unused: pip install"
            " 'tensorflow[and-cuda]', the [gpu] extra"
        )
    if "TPU" not in sees.devices and (devices_dir / "accel0").exists():
        words.append(
            "a TPU is here but unused: it needs the [tpu] extra and a TPU"
            " build of TensorFlow"
        )
    return "; ".join(words)


def onnx_in_words(names: Sequence[str] = _ONNX) -> str:
    """Say whether the networks can be exported as ONNX, and what is missing."""
    missing = [name for name in names if _installed_version(name) is None]
    if not missing:
        return "ready for `export --onnx`"
    return (
        f"no {' and no '.join(missing)}: `export --onnx` needs the [onnx]"
        " extra, pip install 'watchnext[onnx]'"
    )


def report(folder: Path | None = None) -> Report:
    """Examine this machine; takes some seconds, for TensorFlow is imported.

    Args:
        folder: whose disk is measured; the current one unless given.
    """
    packages, sees = try_imports()
    memory = psutil.virtual_memory()
    return Report(
        python=f"{platform.python_version()} ({sys.executable})",
        platform=f"{platform.platform()} on {platform.machine()}",
        # What this process may use, which in a container is less than all.
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
        disk_free_bytes=shutil.disk_usage(folder or Path.cwd()).free,
        packages=packages,
        accelerators=accelerators_in_words(sees),
        onnx=onnx_in_words(),
        runners=find_runners(reads_gs="gs" in sees.schemes),
    )


def print_report(found: Report, console: Console) -> None:
    """Print the report as three plain tables and one closing sentence."""
    machine = Table.grid(padding=(0, 2))
    machine.add_row("Python", found.python)
    machine.add_row("Platform", found.platform)
    machine.add_row("Cores", str(found.cores))
    machine.add_row(
        "Memory",
        f"{found.memory_bytes / GIB:.1f} GiB,"
        f" {found.memory_free_bytes / GIB:.1f} GiB free",
    )
    machine.add_row("Disk", f"{found.disk_free_bytes / GIB:.1f} GiB free here")
    machine.add_row("Accelerators", found.accelerators)
    machine.add_row("ONNX", found.onnx.replace("[", r"\["))

    packages = Table("Package", "Version", "Import", box=None, pad_edge=False)
    for package in found.packages:
        packages.add_row(
            package.name,
            package.version or "not installed",
            "[green]works[/]" if package.error is None else _red(package.error),
        )

    runners = Table("Beam runner", "Usable", "How", box=None, pad_edge=False)
    for runner in found.runners:
        usable = "[green]yes[/]" if runner.usable else "[yellow]no[/]"
        runners.add_row(runner.name, usable, runner.words)

    for table in (machine, packages, runners):
        console.print(table)
        console.print()
    broken = [p.name for p in found.packages if p.error is not None]
    if broken:
        console.print(
            f"[red]Cannot run:[/] {', '.join(broken)} cannot be imported."
            " Install the versions of requirements.lock."
        )
    else:
        console.print("All packages import; this machine is ready.")


def _red(text: str) -> str:
    # A bracket in a message must not be read as markup.
    return "[red]" + text.replace("[", r"\[") + "[/]"


def run_doctor(console: Console | None = None) -> int:
    """Examine the machine, print the findings and return the exit code."""
    found = report()
    print_report(found, console or Console(soft_wrap=False))
    return found.exit_code
