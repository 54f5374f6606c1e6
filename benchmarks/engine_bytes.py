"""Does `prepare` write the same bytes on Flink as in this process?

A small simulated log is prepared twice, once on each runner, and the
manifests of all stages are compared: they hold the sha256 of every file. The
tests marked `flink` decide this for more combinations.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from apache_beam import version
from apache_beam.utils.subprocess_server import JavaJarServer

_CONFIG = (
    "name: engine\n"
    "simulator: {num_users: 400, num_videos: 1000, num_channels: 80}\n"
)
_FLINK = (
    "--runner=FlinkRunner",
    "--environment_type=LOOPBACK",
    "--parallelism=2",
)


def find_jar() -> Path | None:
    """A Flink job server of our version in Beam's cache, if there is one."""
    cache = Path(JavaJarServer.JAR_CACHE)
    pattern = f"beam-runners-flink-*-job-server-{version.__version__}.jar"
    return max(cache.glob(pattern), default=None)


def compare(jar: Path | None) -> dict[str, object]:
    """Prepares on both runners.

    Returns:
      `flink_bytes_equal`: None where Flink cannot run; `flink_note` says why,
      or what differs.
    """
    if shutil.which("java") is None:
        return {"flink_bytes_equal": None, "flink_note": "no java on the path"}
    if jar is None:
        note = (
            f"no Flink job server {version.__version__} in Beam's cache; give "
            "one with --flink_job_server_jar"
        )
        return {"flink_bytes_equal": None, "flink_note": note}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "engine.yaml")
        config.write_text(_CONFIG)
        here, flink = Path(folder, "here"), Path(folder, "flink")
        _watchnext("simulate", config, here)
        shutil.copytree(here, flink)
        _watchnext("prepare", config, here)
        _watchnext(
            "prepare", config, flink, *_FLINK, f"--flink_job_server_jar={jar}"
        )
        ours, theirs = manifests(here), manifests(flink)
    differing = [
        stage
        for stage in sorted(ours.keys() | theirs.keys())
        if ours.get(stage) != theirs.get(stage)
    ]
    note = f"{len(ours)} manifests compared"
    if differing:
        note += f"; different: {', '.join(differing)}"
    return {"flink_bytes_equal": not differing, "flink_note": note}


def manifests(workdir: Path) -> dict[str, str]:
    """Stage -> text of its manifest; each stage has one version."""
    return {
        path.parents[1].name: path.read_text()
        for path in workdir.glob("*/*/manifest.json")
    }


def _watchnext(command: str, config: Path, workdir: Path, *flags: str) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.cli", command),
            f"--config={config}",
            f"--workdir={workdir}",
            *flags,
        ],
        check=True,
    )


def main() -> None:
    """Compares; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flink_job_server_jar", type=Path)
    args = parser.parse_args()
    print(json.dumps(compare(args.flink_job_server_jar or find_jar())))


if __name__ == "__main__":
    main()
