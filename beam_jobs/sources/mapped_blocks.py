"""A block of raw records, and texts that are UTF-8 whatever the bytes were.

What is not UTF-8 in a log becomes U+FFFD, and the record is marked: it is a
dead letter, never an error of a whole file.
"""

import codecs
import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

NOT_UTF8 = "the record is not UTF-8"
# A noncharacter, which no text should hold; where one does, it is marked.
_MARK = "\ufdd0"
_MARKED = re.compile(f"{_MARK}(--|[0-9a-f]{{2}})")
_RESTORED = {"--": _MARK, "00": "\x00"}
_TO_MARK = re.compile("[\x00\udc80-\udcff]")


@dataclasses.dataclass(frozen=True)
class Block:
    """Some records of a file.

    Attributes:
      frame: n records.
      numbers: int64 [n], each record's number in the file, from 1.
      malformed: records that are no row, as (number, reason, text).
      garbled: bool [n], or None: records with bytes that are not UTF-8.
      lines: object [n], or None: the records as they stand in the file.
    """

    frame: pl.DataFrame
    numbers: np.ndarray
    malformed: Sequence[tuple[int, str, str]] = ()
    garbled: np.ndarray | None = None
    lines: np.ndarray | None = None

    @property
    def num_records(self) -> int:
        return len(self.numbers) + len(self.malformed)


class MarkingStream(io.RawIOBase):
    """A binary stream as UTF-8 without NUL, for Arrow's CSV reader.

    It hands over a row that does not fit only as text, and fails where it is
    none; after a NUL it overlooks delimiters, for its vector instructions
    end there. So wrong bytes and NULs are marked; `unmark` restores them.
    (It also wants a value `closed`, which Beam's own streams of compressed
    files have as a method.)
    """

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self.marked = False
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        ended = False
        while not self._waiting and not ended:
            data = self._stream.read(len(buffer))
            ended = not data
            self._waiting = self._marked(data, ended)
        size = min(len(buffer), len(self._waiting))
        buffer[:size] = self._waiting[:size]
        self._waiting = self._waiting[size:]
        return size

    def _marked(self, data: bytes, ended: bool) -> bytes:
        plain = data.isascii() and b"\x00" not in data
        if plain and not self._decoder.getstate()[0]:
            return data
        text = self._decoder.decode(data, ended)
        if _MARK not in text and "\x00" not in text:
            with contextlib.suppress(UnicodeEncodeError):
                return text.encode()
        marked = _TO_MARK.sub(
            lambda found: f"{_MARK}{ord(found[0]) & 0xFF:02x}",
            text.replace(_MARK, f"{_MARK}--"),
        )
        self.marked = True
        return marked.encode()


def unmark(text: str) -> tuple[str, bool]:
    """The text with U+FFFD for each wrong byte, and whether there was one."""
    restored = _MARKED.sub(lambda mark: _RESTORED.get(mark[1], "\ufffd"), text)
    return restored, any(m not in _RESTORED for m in _MARKED.findall(text))


def checked_texts(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Any]:
    """Replaces what is not UTF-8 in a batch, for Arrow does not look.

    Returns:
      The batch, and bool [n] (or None): the rows with a wrong byte.

    Raises:
      ArrowInvalid: a wrong byte within nested values, or corrupt offsets.
    """
    garbled = None
    for number, name in enumerate(batch.schema.names):
        values = batch.column(number)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        try:
            values.validate(full=True)
            continue
        except pa.ArrowInvalid:
            lists = pa.types.is_list(values.type)
            flat = values.flatten() if lists else values
            if not pa.types.is_string(flat.type):
                raise
        texts, wrong = _decoded(flat)
        if lists:
            sizes = np.fromiter(
                (len(v) if v.is_valid else 0 for v in values), np.int64
            )
            owner = np.repeat(np.arange(len(values)), sizes)
            wrong = np.bincount(owner[wrong], minlength=len(values)) > 0
            ends = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
            texts = pa.ListArray.from_arrays(
                pa.array(ends), texts, mask=values.is_null()
            )
        batch = batch.set_column(number, name, texts)
        garbled = wrong if garbled is None else garbled | wrong
    return batch, garbled


def _decoded(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    raw = values.view(pa.binary()).to_pylist()
    wrong = np.zeros(len(raw), bool)
    texts: list[str | None] = []
    for number, cell in enumerate(raw):
        try:
            texts.append(None if cell is None else cell.decode())
        except UnicodeDecodeError:
            wrong[number] = True
            texts.append(cell.decode(errors="replace"))
    return pa.array(texts, pa.string()), wrong
