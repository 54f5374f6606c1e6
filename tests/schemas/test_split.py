"""The split's bounds on disk."""

import pytest

from schemas.errors import ArtifactError
from schemas.split import SplitBounds


def test_written_and_read_back(tmp_path) -> None:
    bounds = SplitBounds("time", 1, 2, 3, 5.5)
    path = tmp_path / "split.json"
    path.write_text(bounds.to_json())
    assert SplitBounds.read(str(path)) == bounds


def test_another_file_is_refused(tmp_path) -> None:
    path = tmp_path / "split.json"
    for text in ("{}", "no json"):
        path.write_text(text)
        with pytest.raises(ArtifactError, match=r"split\.json cannot be read"):
            SplitBounds.read(str(path))
