import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from schemas.artifacts import ArtifactStore, digest, stage_key
from schemas.errors import ArtifactError, UsageError

CONFIG, INPUTS = {"n": 3}, {"events": "abc"}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "work"))


def _write(store: ArtifactStore, files: dict[str, str]) -> str:
    with store.write("split", CONFIG, 1, INPUTS) as writer:
        for name, text in files.items():
            path = Path(writer.file(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        writer.counts["rows"] = 2
        writer.metrics["split.rows"] = 2.0
    return stage_key("split", CONFIG, 1, INPUTS)


def test_a_version_is_found_by_what_its_bytes_follow_from(store) -> None:
    key = _write(store, {"train/a.txt": "x", "test/a.txt": "y"})
    found = store.find("split", key)
    assert found is not None
    assert found.counts == {"rows": 2}
    assert found.metrics == {"split.rows": 2.0}
    assert Path(found.file("train/a.txt")).read_text() == "x"
    for other in (
        stage_key("split", {"n": 4}, 1, INPUTS),
        stage_key("split", CONFIG, 2, INPUTS),
        stage_key("split", CONFIG, 1, {"events": "abd"}),
    ):
        assert other != key
        assert store.find("split", other) is None


def test_a_part_fingerprint_sees_its_files_and_no_others(store) -> None:
    key = _write(store, {"train/a.txt": "x", "test/a.txt": "y"})
    first = store.find("split", key)
    _write(store, {"train/a.txt": "x", "test/a.txt": "garbage"})
    second = store.find("split", key)
    assert first.path != second.path
    assert first.fingerprint("train/") == second.fingerprint("train/")
    assert first.fingerprint("test/") != second.fingerprint("test/")
    # By hand: sha256 of the list of (name, sha256 of content).
    content = hashlib.sha256(b"x").hexdigest()
    assert first.fingerprint("train/") == digest([["train/a.txt", content]])
    with pytest.raises(ArtifactError, match="no file that starts"):
        first.fingerprint("valid/")


@pytest.mark.parametrize("damage", ["changed", "truncated", "gone"])
def test_damage_is_refused_naming_the_file(store, damage) -> None:
    key = _write(store, {"a.txt": "content"})
    path = Path(store.find("split", key).file("a.txt"))
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("cOntent" if damage == "changed" else "cont")
    with pytest.raises(ArtifactError, match=r"a\.txt is (corrupt|missing)"):
        store.find("split", key)
    with pytest.raises(ArtifactError, match=r"a\.txt"):
        store.latest("split", "prepare")


def test_without_the_marker_there_is_no_version(store) -> None:
    key = _write(store, {"a.txt": "x"})
    Path(store.find("split", key).path, "COMPLETED").unlink()
    assert store.find("split", key) is None


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (RuntimeError("broken"), RuntimeError, "broken"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            ArtifactError,
            "No space left",
        ),
        # As a Beam runner hands it on.
        (
            RuntimeError("OSError: [Errno 28] No space left on device"),
            ArtifactError,
            "No space left",
        ),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
    ],
)
def test_a_failed_write_leaves_nothing(store, error, raised, text) -> None:
    with (
        pytest.raises(raised, match=text),
        store.write("split", CONFIG, 1, INPUTS) as writer,
    ):
        Path(writer.file("a.txt")).write_text("half")
        raise error
    assert list(Path(store.workdir, "split").iterdir()) == []


def test_a_missing_stage_names_the_command_that_makes_it(store) -> None:
    with pytest.raises(UsageError, match="watchnext prepare --workdir"):
        store.latest("vocabularies", "prepare")


def test_the_newest_version_wins(store) -> None:
    _write(store, {"a.txt": "old"})
    _write(store, {"a.txt": "new"})
    latest = store.latest("split", "prepare")
    assert Path(latest.file("a.txt")).read_text() == "new"


def test_the_manifest_counts_the_records_of_tfrecord_files(store) -> None:
    def record(data: str) -> str:
        return f"{chr(len(data))}{chr(0) * 7}crc1{data}crc2"

    two, none = record("abc") + record(""), ""
    files = {"train-1.tfrecord": none, "train-0.tfrecord": two, "a.txt": "x"}
    found = store.find("split", _write(store, files))
    expected = {"train-0.tfrecord": 2, "train-1.tfrecord": 0}
    paths = {found.file(name): n for name, n in expected.items()}
    assert list(found.records().items()) == list(paths.items())
    assert found.records("valid-") == {}


def test_a_resumable_version_goes_on_where_it_was_ended(store) -> None:
    def write(inputs, name: str, fails: bool = False) -> list[str]:
        with store.write("lists", CONFIG, 1, inputs, resumable=True) as writer:
            before = sorted(p.name for p in Path(writer.path).iterdir())
            Path(writer.file(name)).write_text(name)
            if fails:
                raise KeyboardInterrupt
        return before

    for name in ("a", "b"):
        with pytest.raises(KeyboardInterrupt):
            write(INPUTS, name, fails=True)
    key = stage_key("lists", CONFIG, 1, INPUTS)
    assert store.find("lists", key) is None
    left = store.unfinished("lists", key)
    assert left is not None
    # Of other inputs: a folder of its own.
    assert write({"events": "other"}, "c") == ["UNFINISHED"]
    assert write(INPUTS, "d") == ["UNFINISHED", "a", "b"]
    found = store.find("lists", key)
    assert found.names() == ["a", "b", "d"]
    assert not Path(found.path, "UNFINISHED").exists()
    assert not Path(left).exists()
    assert store.unfinished("lists", key) is None
    # The next one begins anew.
    assert write(INPUTS, "e") == ["UNFINISHED"]


@pytest.mark.parametrize("foreign", ["COMPLETED", "manifest.json"])
def test_a_folder_with_another_versions_marker_or_manifest_is_refused(
    store: ArtifactStore, tmp_path: Path, foreign: str
) -> None:
    """Files of one run, marker or manifest of another: each valid alone."""
    key = _write(store, {"a.txt": "x"})
    other = ArtifactStore(str(tmp_path / "other"))
    with other.write("split", CONFIG, 2, INPUTS) as writer:
        Path(writer.file("a.txt")).write_text("x")
    ours, theirs = (Path(s.versions("split")[0].path) for s in (store, other))
    shutil.copy(theirs / foreign, ours / foreign)
    with pytest.raises(ArtifactError, match="put together from different"):
        store.latest("split", "prepare")
    if foreign == "COMPLETED":
        with pytest.raises(ArtifactError, match="put together from different"):
            store.find("split", key)


def test_a_manifest_with_a_changed_key_is_refused(store: ArtifactStore) -> None:
    """Whoever writes our key into a foreign manifest and marker is told."""
    with store.write("split", CONFIG, 2, INPUTS) as writer:
        Path(writer.file("a.txt")).write_text("x")
    folder = Path(store.versions("split")[0].path)
    key = stage_key("split", CONFIG, 1, INPUTS)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "key": key}))
    (folder / "COMPLETED").write_text(key + "\n")
    with pytest.raises(ArtifactError, match="put together from different"):
        store.find("split", key)
