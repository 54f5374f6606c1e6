"""One vocabulary per ID space: the terms that have an embedding, in order.

Ids are 1 .. V by falling count (ties by term): line i of `<space>.txt`,
counted from 1, is id i. Id 0 is out of vocabulary. The order is a contract:
a log-uniform sampler of negatives reads an id as a rank.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems

from schemas.errors import ArtifactError
from schemas.features import OUT_OF_VOCABULARY_ID

# A lookup table reads its file by lines and drops carriage returns, so a
# term with either would become another term.
FORBIDDEN_CHARACTERS = ("\n", "\r")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The terms of a space and how often each occurred in training.

    Attributes:
      space: name of the ID space.
      terms: string [V], no null, no empty and no repeated term.
      counts: int64 [V], falling; equal counts are ordered by term.
    """

    space: str
    terms: pa.StringArray
    counts: np.ndarray

    def __post_init__(self) -> None:
        if len(self.terms) != len(self.counts):
            raise ValueError(
                f"Vocabulary {self.space!r} has {len(self.terms)} terms and "
                f"{len(self.counts)} counts; expected as many."
            )

    @classmethod
    def of_terms(
        cls, space: str, terms: Sequence[str], counts: Sequence[int]
    ) -> "Vocabulary":
        """A vocabulary of given terms, already in order."""
        return cls(
            space, pa.array(terms, pa.string()), np.array(counts, np.int64)
        )

    @property
    def size(self) -> int:
        """V: the number of terms; ids are 1 .. V."""
        return len(self.terms)

    def ids(self, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Ids of strings, int64 [n]; 0 for unknown and null."""
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        rows = pc.index_in(values.cast(pa.string()), value_set=self.terms)
        known = pc.fill_null(pc.add(rows, 1), OUT_OF_VOCABULARY_ID)
        return np.asarray(known, np.int64)

    @classmethod
    def read(cls, path_txt: str, path_counts: str) -> "Vocabulary":
        """Reads both files; the space is the file's name without `.txt`.

        Raises:
          ArtifactError: a file cannot be read, the files do not match, or
            the order is not the contract's.
        """
        space = path_txt.rsplit("/", 1)[-1].removesuffix(".txt")
        terms = _lines(path_txt)
        try:
            counts = np.array([int(c) for c in _lines(path_counts)], np.int64)
        except ValueError as error:
            raise ArtifactError(f"{path_counts}: {error}.") from error
        if len(terms) != len(counts):
            raise ArtifactError(
                f"{path_txt} has {len(terms)} lines, {path_counts} has "
                f"{len(counts)}; run `vocabularies` again."
            )
        if np.any(np.diff(counts) > 0):
            raise ArtifactError(
                f"{path_counts}: counts must not rise; run `vocabularies` "
                "again."
            )
        return cls(space, pa.array(terms, pa.string()), counts)

    def write(self, path_txt: str, path_counts: str) -> None:
        """Writes both files, one term (or count) a line."""
        _write(path_txt, self.terms.to_pylist())
        _write(path_counts, [str(c) for c in self.counts.tolist()])


def vocabulary_files(folder: str, space: str) -> tuple[str, str]:
    """Paths of a space's terms and counts below a vocabularies folder."""
    return (
        FileSystems.join(folder, f"{space}.txt"),
        FileSystems.join(folder, f"{space}.counts.txt"),
    )


def read_vocabulary(folder: str, space: str) -> Vocabulary:
    """Reads one space from a vocabularies folder; see `Vocabulary.read`."""
    return Vocabulary.read(*vocabulary_files(folder, space))


def _lines(path: str) -> list[str]:
    try:
        with FileSystems.open(path, compression_type="uncompressed") as stream:
            text = stream.read().decode()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
    # Not `splitlines`: it also breaks at U+2028 and others inside a term.
    return text.removesuffix("\n").split("\n") if text else []


def _write(path: str, lines: Sequence[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    with FileSystems.create(path, compression_type="uncompressed") as stream:
        stream.write(text.encode())
