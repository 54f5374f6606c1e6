"""Counts the bytes that an in-process job shuffles.

The FnApiRunner hands every grouping (GroupByKey, Reshuffle, the second half
of a combine) its encoded elements. The jobs' own shuffle leaves its slices in
a file meanwhile and sends their places; on a cluster the slices themselves
would travel. Both are counted.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from apache_beam.runners.portability.fn_api_runner import execution

from beam_jobs import spill


class ShuffledBytes:
    """What has been shuffled so far."""

    def __init__(self) -> None:
        self.total = 0


@contextlib.contextmanager
def counted_shuffle() -> Iterator[ShuffledBytes]:
    """Counts the bytes given to groupings by jobs inside the block."""
    counted = ShuffledBytes()
    with contextlib.ExitStack() as stack:
        for owner, method in (
            (execution.GroupingBuffer, "append"),
            (spill.SpillFile, "put"),
        ):
            original = getattr(owner, method)
            setattr(owner, method, _counting(original, counted))
            stack.callback(setattr, owner, method, original)
        yield counted


def _counting(
    method: Callable[[Any, bytes], Any], counted: ShuffledBytes
) -> Callable[[Any, bytes], Any]:
    def call(self: Any, data: bytes) -> Any:
        counted.total += len(data)
        return method(self, data)

    return call
