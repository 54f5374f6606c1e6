"""Checkpoints: which count, which are kept, what damage is noticed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.keras_setup import tf
from pipeline.checkpoints import Checkpoints
from schemas.errors import ArtifactError


class Saved:
    """Checkpoints of one variable, which holds the step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.value = tf.Variable(tf.zeros([50, 3]))
        tracked = tf.train.Checkpoint(value=self.value)
        self.checkpoints = Checkpoints(str(folder), tracked)
        self.said: list[str] = []

    def save(self, step: int, *needs: int) -> None:
        self.value.assign(tf.fill([50, 3], float(step)))
        self.checkpoints.save(step, {"step": step}, needs)

    def newest(self) -> int | None:
        self.said = []
        return self.checkpoints.newest(self.said.append)

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}

    def file(self, kind: str) -> Path:
        (path,) = self.folder.glob(f"step-20.{kind}*")
        return path


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Two checkpoints, of steps 10 and 20."""
    found = Saved(tmp_path / "checkpoints")
    assert found.newest() is None
    found.save(10)
    found.save(20)
    return found


def test_the_newest_is_restored_with_its_state(saved: Saved) -> None:
    saved.value.assign(tf.zeros([50, 3]))
    assert saved.newest() == 20 and not saved.said
    assert saved.checkpoints.restore(20) == {"step": 20}
    np.testing.assert_array_equal(saved.value, np.full([50, 3], 20.0))


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["data", "index", "json"])
@pytest.mark.parametrize("damage", [halve, flip, Path.unlink])
def test_damage_is_said_and_the_one_before_taken(
    saved: Saved, kind: str, damage: Callable[[Path], None]
) -> None:
    damage(saved.file(kind))
    assert saved.newest() == 10
    (line,) = saved.said
    assert line.startswith("Checkpoint step-20 is not used: ")
    assert line.endswith(". Resuming from step-10.")
    assert {name.split(".")[0] for name in saved.names()} == {"step-10"}
    assert saved.checkpoints.restore(10) == {"step": 10}
    np.testing.assert_array_equal(saved.value, np.full([50, 3], 10.0))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_any_flipped_byte_is_noticed(saved: Saved) -> None:
    path = saved.file("data")
    data = path.read_bytes()
    # 600 bytes of floats, and the object graph; then the manifest.
    for place in np.random.default_rng(0).integers(0, len(data), size=20):
        path.write_bytes(flipped(data, place))
        assert saved.checkpoints._fault(20) is not None, place
    path.write_bytes(data)
    data = saved.file("json").read_bytes()
    for place in range(len(data)):
        saved.file("json").write_bytes(flipped(data, place))
        assert saved.checkpoints._fault(20) is not None, place


def test_without_a_good_one_the_run_starts_anew(saved: Saved) -> None:
    for path in saved.folder.glob("*.data*"):
        halve(path)
    assert saved.newest() is None
    assert len(saved.said) == 2
    assert all(line.endswith("Starting anew.") for line in saved.said)
    assert saved.names() == set()


def test_the_last_two_are_kept_and_what_they_need(saved: Saved) -> None:
    saved.save(30, 10)
    saved.save(40, 10)
    # 20 is neither among the last two nor needed.
    steps = {name.split(".")[0] for name in saved.names()}
    assert steps == {"step-10", "step-30", "step-40"}
    # 50 is the best itself; 40, still kept, needs 10.
    saved.save(50, 50)
    steps = {name.split(".")[0] for name in saved.names()}
    assert steps == {"step-10", "step-40", "step-50"}
    saved.save(60, 50)
    steps = {name.split(".")[0] for name in saved.names()}
    assert steps == {"step-50", "step-60"}


def test_one_whose_best_is_damaged_is_not_used(saved: Saved) -> None:
    saved.save(30, 10)
    halve(next(saved.folder.glob("step-10.data*")))
    assert saved.newest() == 20
    assert "step-10, the best so far, is needed" in saved.said[0]


def test_leftovers_of_a_killed_process_are_removed(saved: Saved) -> None:
    (saved.folder / "step-20.json_new").write_text("{")
    (saved.folder / "step-25_temp").mkdir()
    (saved.folder / "step-25_temp" / "part-0").write_text("half")
    (saved.folder / "notes.txt").write_text("mine")
    assert saved.newest() == 20
    assert "step-25 is not used: it was not written" in saved.said[0]
    assert "step-25_temp" not in saved.names()
    assert "notes.txt" in saved.names()


def test_a_step_saved_again_gets_its_new_state_only(saved: Saved) -> None:
    before = saved.file("data").stat().st_mtime_ns
    saved.checkpoints.save(20, {"step": 20, "epoch": 2})
    assert saved.file("data").stat().st_mtime_ns == before
    assert saved.checkpoints.restore(20) == {"step": 20, "epoch": 2}
    manifest, _ = json.loads(saved.file("json").read_text())
    assert set(manifest["files"]) == {
        "step-20.index",
        "step-20.data-00000-of-00001",
    }


def test_a_worker_without_the_chief_s_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the same work directory"):
        Saved(tmp_path / "elsewhere").checkpoints.restore(20)
