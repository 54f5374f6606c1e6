"""What a Beam worker installs: the source distribution, in an empty venv."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.run import PREPARED
from schemas.artifacts import ArtifactStore

CHECKOUT = Path(__file__).resolve().parents[1]
CONFIG = """
simulator: {num_users: 100, num_videos: 150, num_channels: 20, num_topics: 5,
            num_days: 8, requests_per_user_day: 0.4}
beam: {num_shards: 2}
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a venv with the lock and our sdist, and nothing else.

    The packages come from the package index (0.9 GB, cached by pip).
    """
    folder = tmp_path_factory.mktemp("distribution")
    source = folder / "source"
    unwanted = shutil.ignore_patterns(".*", "work", "build", "*.egg-info")
    shutil.copytree(CHECKOUT, source, ignore=unwanted)
    # Building rewrites sys.argv, so it is read first.
    build = (
        "import sys; from setuptools import build_meta; out = sys.argv[1];"
        "build_meta.build_sdist(out)"
    )
    _run([sys.executable, "-c", build, str(folder)], cwd=source)
    (sdist,) = folder.glob("*.tar.gz")
    _run([sys.executable, "-m", "venv", "venv"], cwd=folder)
    bin_folder = folder / "venv" / "bin"
    pip = [str(bin_folder / "python"), "-m", "pip", "install", "--quiet"]
    pip.append("--disable-pip-version-check")
    _run([*pip, "-r", str(source / "requirements.lock")], cwd=folder)
    # The lock has the build back end; without isolation nothing newer comes.
    own = ["--no-deps", "--no-build-isolation", str(sdist)]
    _run([*pip, *own], cwd=folder)
    _run([str(bin_folder / "python"), "-m", "pip", "check"], cwd=folder)
    shutil.rmtree(source)
    return bin_folder


def _run(command: list[str], cwd: Path) -> str:
    """Runs outside the checkout, without its path; returns what was said."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_jobs_run_where_only_the_sdist_is_installed(
    installed: Path, tmp_path: Path
) -> None:
    """The whole `prepare`, all its DoFns, to the bytes that it writes here."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "small.yaml").write_text(CONFIG)
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    config = ["--config", str(tmp_path / "small.yaml")]
    where = "import beam_jobs; print(beam_jobs.__file__)"
    module = _run([str(installed / "python"), "-c", where], cwd=elsewhere)
    assert module.startswith(str(installed.parent))
    for command in ("simulate", "prepare"):
        assert main([command, *config, "--workdir", here]) == 0
        watchnext = [str(installed / "watchnext"), command, *config]
        _run([*watchnext, "--workdir", there], cwd=elsewhere)
    for stage in ("events", *PREPARED):
        expected, found = (
            ArtifactStore(work).versions(stage)[0].manifest
            for work in (here, there)
        )
        assert expected["files"] and found == expected, stage
