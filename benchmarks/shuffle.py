"""Counts the bytes that an in-process job shuffles.

The FnApiRunner hands every grouping (GroupByKey, Reshuffle, the second half
of a combine) its encoded elements; a distributed runner would send and store
the very same bytes.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from apache_beam.runners.portability.fn_api_runner import execution

_METHOD = "append"


class ShuffledBytes:
    """What has been shuffled so far."""

    def __init__(self) -> None:
        self.total = 0


@contextlib.contextmanager
def counted_shuffle() -> Iterator[ShuffledBytes]:
    """Counts the bytes given to groupings by jobs inside the block."""
    counted, buffer = ShuffledBytes(), execution.GroupingBuffer
    append = buffer.append

    def counting(self: Any, elements_data: bytes) -> None:
        counted.total += len(elements_data)
        append(self, elements_data)

    setattr(buffer, _METHOD, counting)
    try:
        yield counted
    finally:
        setattr(buffer, _METHOD, append)
