"""Which Beam runners can be started from this machine, in words.

Only looks: at PATH, at folders and at importable names. Nothing is started
but `java -version`.
"""

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from beam_jobs.engine_programs import (
    find_boot,
    find_prism,
    how_to_get_boot,
    how_to_get_prism,
)

# Where Beam keeps what it has downloaded: jars/ and prism/bin/.
BEAM_CACHE = Path.home() / ".apache_beam" / "cache"


@dataclass(frozen=True)
class RunnerFound:
    """Whether a Beam runner can be started from here, and how in words."""

    name: str
    usable: bool
    words: str


def find_runners(
    reads_gs: bool, beam_cache: Path = BEAM_CACHE
) -> tuple[RunnerFound, ...]:
    """Look for what each Beam runner needs besides Python; start nothing.

    Args:
        reads_gs: whether TensorFlow has a file system for gs:// paths.
        beam_cache: the folder of Beam's downloads.
    """
    local = RunnerFound("FnApiRunner", True, "in this process; the default")
    return (
        local,
        _find_prism(beam_cache),
        _find_flink(beam_cache),
        _find_dataflow(reads_gs),
    )


def _find_prism(beam_cache: Path) -> RunnerFound:
    name = "PrismRunner"
    if found := find_prism():
        return RunnerFound(name, True, f"{found}{_without_boot()}")
    cached = sorted((beam_cache / "prism" / "bin").glob("*prism*"))
    if cached:
        words = f"Beam's download {cached[-1]}{_without_boot()}"
        return RunnerFound(name, True, words)
    return RunnerFound(
        name,
        False,
        f"no `prism`; Beam downloads it when first asked, or"
        f" {how_to_get_prism()}",
    )


def _without_boot() -> str:
    if find_boot():
        return ", workers LOOPBACK, EXTERNAL and PROCESS"
    return (
        ", workers LOOPBACK and EXTERNAL; PROCESS needs Beam's boot:"
        f" {how_to_get_boot()}"
    )


def _find_flink(beam_cache: Path) -> RunnerFound:
    name = "FlinkRunner"
    java = _java_version()
    if java is None:
        return RunnerFound(
            name,
            False,
            "needs Java 11 or later on PATH (Debian, Ubuntu: apt install"
            " default-jre-headless)",
        )
    jars = sorted((beam_cache / "jars").glob("*flink*job-server*.jar"))
    if jars:
        return RunnerFound(name, True, f"{java}, job server {jars[-1]}")
    return RunnerFound(
        name,
        False,
        f"{java}, but no job server jar in {beam_cache / 'jars'}: Beam"
        " downloads it, or give --flink_job_server_jar",
    )


def _java_version() -> str | None:
    """Return the first line of `java -version`, or None without Java."""
    if shutil.which("java") is None:
        return None
    done = subprocess.run(
        ["java", "-version"], capture_output=True, text=True, check=False
    )
    # Java writes its version to standard error; environment variables that
    # it picked up come first, each announced with "Picked up".
    lines = [
        line
        for line in done.stderr.splitlines()
        if line and not line.startswith("Picked up")
    ]
    return lines[0] if done.returncode == 0 and lines else None


def _find_dataflow(reads_gs: bool) -> RunnerFound:
    name = "DataflowRunner"
    # `apitools` and Cloud Storage are what Beam's [gcp] extra adds first.
    if not all(map(_is_importable, ("apitools", "google.cloud.storage"))):
        return RunnerFound(name, False, "pip install 'watchnext[gcp]'")
    if not reads_gs:
        return RunnerFound(
            name, False, "TensorFlow has no file system for gs:// paths"
        )
    return RunnerFound(name, True, "with --project, --region and credentials")


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
