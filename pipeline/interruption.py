"""SIGTERM and Ctrl-C: a run saves first, then ends.

Clusters send SIGTERM before they take a machine away, and SIGKILL some 30
seconds later.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from schemas.errors import WatchnextError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(WatchnextError):
    """The run was told to stop; the exit code is a shell's, 128 + signal."""

    def __init__(self, message: str, number: int | None) -> None:
        super().__init__(message)
        # None: another worker was told, by what its machine is ended with.
        self.exit_code = 128 + (number or signal.SIGTERM)


class SignalWatch:
    """Notes SIGTERM and SIGINT, instead of ending the process at once.

    A second SIGINT does end it. Works in the main thread only, as Python asks
    for; elsewhere it notes nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._raises = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "SignalWatch":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            # None: it was set by C code, which Python cannot put back.
            signal.signal(
                number, signal.SIG_DFL if handler is None else handler
            )

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Within it a signal raises `Interrupted` wherever the program is.

        For long work that has nothing to save.
        """
        self._raises = True
        try:
            if self.received is not None:
                raise Interrupted("Interrupted.", self.received)
            yield
        finally:
            self._raises = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == number:
            raise KeyboardInterrupt
        self.received = number
        if self._raises:
            raise Interrupted("Interrupted.", number)
