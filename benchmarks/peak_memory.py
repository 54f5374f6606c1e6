"""The most memory a process takes for itself, without pages of mapped files.

Those are in its resident set too, but the system takes them back when it needs
them. Linux keeps no peak of the rest, so a thread looks every few
milliseconds.
"""

import threading
from pathlib import Path
from types import TracebackType

_EVERY_S = 0.02


class PeakMemory:
    """Looks while its block runs; `peak_bytes` is the most that it saw."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @staticmethod
    def bytes_now() -> int:
        """Anonymous resident memory of this process."""
        status = Path("/proc/self/status").read_text()
        line = next(x for x in status.splitlines() if x.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self.bytes_now())
            if self._over.wait(_EVERY_S):
                return
