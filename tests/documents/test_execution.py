"""The commands and snippets of the pages, run in order, page by page.

A page finds what its reader has by then: the finished demo, `watchnext` on the
path, and logs in the folders that the pages name. `small.py` keeps it small.
Benchmarks have tests of their own; here their commands are only parsed.
"""

import contextlib
import datetime
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.documents.markdown import CHECKOUT, PAGES, Block, blocks, commands

pytestmark = pytest.mark.slow

RUN = [
    page
    for page in PAGES
    if any(b.is_run and "watchnext" in b.text for b in blocks(page))
    or any(b.is_run and b.language == "python" for b in blocks(page))
]
LIMIT_S = 900
# Tasks of `watchnext serve`, whose ports the pages name.
SERVER = "http://127.0.0.1:8501/v1/models/retrieval"


class World:
    """A folder to type commands in.

    Args:
      folder: where; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._bin = folder, folder / "bin"
        self._bin.mkdir(parents=True, exist_ok=True)
        ours = f'exec {sys.executable} -m tests.documents.small "$@"'
        self._script(folder / "watchnext", ours)
        self._script(self._bin / "watchnext", ours)
        self._script(self._bin / "python", f'exec {sys.executable} "$@"')

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "PYTHONPATH": f"{CHECKOUT}:{os.environ.get('PYTHONPATH', '')}",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }

    def run(self, block: Block) -> str:
        """Runs a block; returns what it prints."""
        shell = {
            "bash": ["bash", "-euo", "pipefail", "-c", block.text],
            "python": [sys.executable, "-c", block.text],
        }[block.language]
        done = subprocess.run(
            shell,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        said = f"{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, f"{block}: {said[-3000:]}"
        assert "Traceback" not in said, f"{block}: {said[-3000:]}"
        return done.stdout

    @contextlib.contextmanager
    def serving(self, command: str) -> Iterator[None]:
        """Runs `watchnext serve` meanwhile, as Ctrl-C would end it."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 8501))  # Or say that it is taken.
        server = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            end = time.monotonic() + 600
            while not _answers(SERVER):
                assert server.poll() is None, f"{command} has ended"
                assert time.monotonic() < end, f"{command} does not answer"
                time.sleep(0.5)
            yield
        finally:
            server.terminate()
            server.wait(timeout=60)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @staticmethod
    def _script(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return b"AVAILABLE" in response.read()
    except OSError:
        return False


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the demo has run, beside logs of one's own."""
    world = World(tmp_path_factory.mktemp("world"))
    (demo,) = [
        block
        for block in blocks(CHECKOUT / "README.md")
        if block.is_run and "demo" in block.text.split()
    ]
    assert "Recommended to user" in world.run(demo)
    days = {
        "logs": ("2025-12-01", 36),
        "logs/so-far": ("2025-12-01", 35),
        "logs/2026-01-05": ("2026-01-05", 1),
        "logs/to-2026-01-05": ("2025-12-01", 36),
    }
    for name, (first, number) in days.items():
        write_logs(world.folder / name, first, number)
    # The front page's mapping, by the name that another page gives it.
    (mapping,) = [
        b.text
        for b in blocks(CHECKOUT / "README.md")
        if b.value == "my-logs.yaml"
    ]
    world.write("mine.yaml", mapping)
    return world.folder


def write_logs(folder: Path, first_day: str, days: int) -> None:
    """Watches of 60 people and 80 videos, as the mapping of the pages reads.

    Each video is followed by the next one, so that there is much to learn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    midnight = datetime.datetime.fromisoformat(f"{first_day}T00:00:00+00:00")
    start_s, noise = int(midnight.timestamp()), np.random.default_rng(days)
    lines = ["user,video,started_at,seconds"]
    for user in range(60):
        video = int(noise.integers(80))
        for day in range(days):
            for hour in sorted(noise.choice(24, 3, replace=False).tolist()):
                at_s = start_s + 86400 * day + 3600 * hour + user
                lines.append(f"u{user},v{video},{at_s},{30 + 20 * (hour % 4)}")
                video = (video + 1) % 80
    (folder / "watches.csv").write_text("\n".join(lines) + "\n")
    ids = range(80)
    videos = {
        "video": [f"v{i}" for i in ids],
        "channel": [f"c{i // 10}" for i in ids],
        "length": [100.0 + i for i in ids],
    }
    pq.write_table(pa.table(videos), folder / "videos.parquet")


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_page(page: Path, finished_demo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "world"
    shutil.copytree(finished_demo, folder, symlinks=True)
    world, printed = World(folder), ""
    with contextlib.ExitStack() as meanwhile:
        started = ""
        for block in blocks(page):
            if block.mark == "file":
                world.write(block.value, block.text)
            elif block.mark == "printed":
                assert_printed(block, printed)
            if not block.is_run:
                continue
            command = background(block)
            if command not in ("", started):
                meanwhile.enter_context(world.serving(command))
                started = command
            if command != block.text.strip():
                printed = world.run(block)


def background(block: Block) -> str:
    """What must run beside a block, or is the block and does not end."""
    if block.mark == "background":
        return block.value
    (first, *_) = commands(block.text) if block.language == "bash" else [[""]]
    return block.text.strip() if first[1:2] == ["serve"] else ""


def assert_printed(block: Block, printed: str) -> None:
    """Each line was printed, whatever the seconds."""

    def without_times(text: str) -> list[str]:
        return re.sub(r"\d+\.\d s", "- s", text).splitlines()

    missing = set(without_times(block.text)) - set(without_times(printed))
    assert not missing, f"{block}: not in {printed}"
