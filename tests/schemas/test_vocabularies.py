"""Ids, files and what is refused."""

import numpy as np
import pyarrow as pa
import pytest

from schemas.errors import ArtifactError
from schemas.vocabularies import (
    Vocabulary,
    read_vocabulary,
    vocabulary_files,
)


def test_ids_are_lines_counted_from_one() -> None:
    vocabulary = Vocabulary.of_terms("video", ["b", "a", "é"], [5, 2, 2])
    ids = vocabulary.ids(pa.array(["é", "a", None, "b", "zz", ""]))
    assert ids.dtype == np.int64
    assert ids.tolist() == [3, 2, 0, 1, 0, 0]
    assert vocabulary.size == 3


def test_written_and_read_back(tmp_path) -> None:
    # U+2028 and U+0085 end a line for `str.splitlines`, not for a file.
    terms = ["new york", "a\u2028b", " padded ", "x\u0085"]
    written = Vocabulary.of_terms("token", terms, [9, 3, 3, 1])
    written.write(*vocabulary_files(str(tmp_path), "token"))
    assert (tmp_path / "token.txt").read_bytes().count(b"\n") == 4
    read = read_vocabulary(str(tmp_path), "token")
    assert read.space == "token"
    assert read.terms.to_pylist() == terms
    assert read.counts.tolist() == [9, 3, 3, 1]


def test_empty_vocabulary_keeps_no_term(tmp_path) -> None:
    Vocabulary.of_terms("topic", [], []).write(
        *vocabulary_files(str(tmp_path), "topic")
    )
    read = read_vocabulary(str(tmp_path), "topic")
    assert read.size == 0
    assert read.ids(pa.array(["", "a"])).tolist() == [0, 0]


def test_files_that_do_not_fit_are_refused(tmp_path) -> None:
    (tmp_path / "s.txt").write_text("a\nb\n")
    (tmp_path / "s.counts.txt").write_text("2\n")
    with pytest.raises(ArtifactError, match=r"2 lines, .* has 1"):
        read_vocabulary(str(tmp_path), "s")
    (tmp_path / "s.counts.txt").write_text("2\n3\n")
    with pytest.raises(ArtifactError, match="must not rise"):
        read_vocabulary(str(tmp_path), "s")
    (tmp_path / "s.counts.txt").write_text("2\nx\n")
    with pytest.raises(ArtifactError, match=r"s\.counts\.txt"):
        read_vocabulary(str(tmp_path), "s")
    with pytest.raises(ArtifactError, match=r"t\.txt cannot be read"):
        read_vocabulary(str(tmp_path), "t")
