"""Bytes that wait on disk instead of in an in-process runner's memory.

Beam's in-process runner holds everything between two steps in memory, so a
shuffle would need as much of it as the log has rows. Within one machine the
elements can be places in a file instead; on a cluster the runner itself has
somewhere to put them, and the bytes travel.
"""

import os
import uuid

# Path, offset and length of some bytes.
Spilled = tuple[str, int, int]


class SpillFile:
    """A file to which one bundle appends; made when first needed."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, uuid.uuid4().hex)
        self._end = 0

    def put(self, data: bytes) -> Spilled:
        """Appends bytes; returns where they are."""
        with open(self._path, "ab") as file:
            file.write(data)
        place = (self._path, self._end, len(data))
        self._end += len(data)
        return place


def load(data: bytes | Spilled) -> bytes:
    """The bytes themselves, from wherever they are."""
    if isinstance(data, bytes):
        return data
    path, offset, length = data
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)
