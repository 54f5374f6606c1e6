"""`watchnext serve` as a process of its own, on ports that are free."""

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

_START_S, _END_S = 180, 30


class ServerProcess:
    """A running server; a context that ends it.

    Args:
      workdir: of a run whose models are published.

    Raises:
      RuntimeError: it ended before it served; with what it said.
    """

    def __init__(self, workdir: Path) -> None:
        self.said: list[str] = []
        command = [sys.executable, "-m", "pipeline.cli", "serve"]
        self._process = subprocess.Popen(
            [*command, "--workdir", workdir, "--port=0", "--grpc-port=0"],
            cwd=Path(__file__).resolve().parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._serving = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._serving.wait(_START_S) or self._process.poll() is not None:
            self.stop()
            raise RuntimeError("\n".join(["The server ended:", *self.said]))
        said = "\n".join(self.said)
        self.rest_port = _number(r"http://127\.0\.0\.1:(\d+)/", said)
        self.grpc_port = _number(r"gRPC: +127\.0\.0\.1:(\d+)", said)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; returns its exit code."""
        self._process.send_signal(by)
        code = self._process.wait(_END_S)
        self._reader.join()
        return code

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_running:
            self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None  # A pipe was asked for.
        for line in self._process.stdout:
            self.said.append(line.rstrip())
            if line.startswith("gRPC:"):
                self._serving.set()
        self._serving.set()


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"The server did not say {pattern}:\n{text}")
    return int(found[1])
