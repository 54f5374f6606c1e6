"""Engines outside this process; each fixture skips and says what is missing.

`prism` and `boot` are programs to be built, the worker pool is Beam's own,
the Flink job server a jar that Beam downloads where it is to be had.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from beam_jobs.engine_programs import (
    find_boot,
    find_prism,
    how_to_get_boot,
    how_to_get_prism,
)

CHECKOUT = Path(__file__).resolve().parents[2]
FLINK_JAR_VARIABLE = "WATCHNEXT_FLINK_JOB_SERVER_JAR"
# Prism 2.77 hands over the worker's id in quotes, which no shell removes.
_BOOT_SCRIPT = """#!/bin/sh
cd '{folder}' || exit 1  # Where it leaves pipeline_options.json.
for argument; do
    shift
    set -- "$@" "$(printf %s "$argument" | tr -d "'")"
done
exec '{boot}' --semi_persist_dir='{folder}' "$@"
"""


def worker_environment() -> dict[str, str]:
    """What a worker's process needs: this Python first, and our packages."""
    return os.environ | {
        "PATH": os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "PYTHONPATH": str(CHECKOUT),
    }


@pytest.fixture(scope="session")
def prism() -> str:
    """Path of the Prism binary."""
    found = find_prism()
    if found is None:
        pytest.skip(f"no binary `prism`; build it: {how_to_get_prism()}")
    return found


@pytest.fixture(scope="session")
def boot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a program that starts Beam's boot, the worker's launcher."""
    found = find_boot()
    if found is None:
        pytest.skip(f"no binary of Beam's boot; build it: {how_to_get_boot()}")
    folder = tmp_path_factory.mktemp("boot")
    script = folder / "boot"
    script.write_text(_BOOT_SCRIPT.format(boot=found, folder=folder))
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="session")
def worker_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of Beam's worker pool: a process that starts processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("worker_pool") / "log"
    with log.open("w") as stream:
        pool = subprocess.Popen(
            [
                *(sys.executable, "-m"),
                "apache_beam.runners.worker.worker_pool_main",
                f"--service_port={port}",
            ],
            env=worker_environment(),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_open(port, pool, log)
        yield f"localhost:{port}"
    finally:
        # Interrupted, not terminated: it then ends its workers first.
        pool.send_signal(signal.SIGINT)
        try:
            pool.wait(timeout=30)
        except subprocess.TimeoutExpired:  # Started where nobody interrupts.
            pool.kill()
            pool.wait()


@pytest.fixture(scope="session")
def flink_job_server() -> str:
    """Path of Beam's Flink job server; needs Java to run it."""
    from apache_beam.options.pipeline_options import (
        FlinkRunnerOptions,
        PipelineOptions,
    )
    from apache_beam.runners.portability.flink_runner import FlinkJarJobServer
    from apache_beam.utils.subprocess_server import JavaJarServer

    if shutil.which("java") is None:
        pytest.skip("no `java` on PATH; Flink's job server needs Java 11")
    if given := os.environ.get(FLINK_JAR_VARIABLE):
        if not os.path.exists(given):
            pytest.skip(f"{FLINK_JAR_VARIABLE} names {given}, which is missing")
        return given
    options = PipelineOptions([]).view_as(FlinkRunnerOptions)
    url = FlinkJarJobServer(options).path_to_jar()
    jar = Path(JavaJarServer.JAR_CACHE) / url.rsplit("/", 1)[-1]
    if jar.exists():
        return str(jar)
    jar.parent.mkdir(parents=True, exist_ok=True)
    part = jar.with_suffix(".part")
    try:
        urllib.request.urlretrieve(url, part)
    except OSError as error:
        # A 404, or no network.
        pytest.skip(
            f"Beam's {jar.name} cannot be downloaded ({error}); put it into "
            f"{jar.parent} or set {FLINK_JAR_VARIABLE}"
        )
    part.replace(jar)
    return str(jar)


def _wait_until_open(
    port: int, process: "subprocess.Popen[bytes]", log: Path
) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
            return
        except OSError:
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, f"the worker pool did not start:\n{log.read_text()}"
            time.sleep(0.05)
