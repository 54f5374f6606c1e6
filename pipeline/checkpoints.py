"""Checkpoints of one run that a process killed at any moment leaves whole.

A checkpoint is TensorFlow's files `step-N.index` and `step-N.data-*`, then
`step-N.json`, its manifest: where the run is, and the size of each file. The
manifest is one small file, written last and in one piece (a rename on a disk,
one object on an object store): what has none does not count. A file cut short
is known by its size, a changed byte by TensorFlow's own checksum of each tensor
or the manifest's; all is read before anything is restored.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.keras_setup import tf
from schemas.artifacts import digest
from schemas.errors import ArtifactError

_KEPT = 2
_FILE = re.compile(r"step-(\d+)[._]")
# Of a manifest or a tensor; TensorFlow gives its own errors, or Python's.
_UNREADABLE = (tf.errors.OpError, RuntimeError, ValueError, KeyError, TypeError)


class Checkpoints:
    """The checkpoints in a folder; only the chief writes.

    Args:
      folder: theirs alone; every worker must see the same one.
      tracked: what is saved and restored.
    """

    def __init__(self, folder: str, tracked: tf.train.Checkpoint) -> None:
        self._folder, self._tracked = folder, tracked

    def save(
        self, step: int, state: Mapping[str, Any], needs: Sequence[int] = ()
    ) -> None:
        """Writes a checkpoint, then removes what is no longer needed.

        The last two are kept, and those that they need. Saving a step once
        more replaces only its state, as its weights are the same.

        Args:
          step: steps done; names the checkpoint.
          state: where the run is; JSON.
          needs: steps whose checkpoints must live as long as this one.
        """
        tf.io.gfile.makedirs(self._folder)
        if not tf.io.gfile.exists(self._manifest_path(step)):
            self._tracked.write(self._prefix(step))
        manifest = {
            "state": state,
            "needs": [need for need in needs if need != step],
            "files": {name: self._size(name) for name in self._files(step)},
        }
        path = self._manifest_path(step)
        with tf.io.gfile.GFile(f"{path}_new", "w") as stream:
            stream.write(json.dumps([manifest, digest(manifest)]))
        tf.io.gfile.rename(f"{path}_new", path, overwrite=True)
        self._remove_all_but(self._steps()[:_KEPT])

    def newest(self, say: Callable[[str], None]) -> int | None:
        """Finds the last good checkpoint; for the chief, before it trains.

        Newer ones that are not good are removed, as is what a killed process
        left behind.

        Args:
          say: is told which ones are not good, and why.

        Returns:
          Its step; None where there is none.
        """
        reasons, good = [], -1
        for step in self._steps():
            fault = self._fault(step)
            if fault is None:
                good = step
                break
            reasons.append(f"Checkpoint step-{step} is not used: {fault}.")
        then = f"Resuming from step-{good}." if good >= 0 else "Starting anew."
        for reason in reasons:
            say(f"{reason} {then}")
        self._remove_all_but([s for s in self._steps() if s <= good])
        return good if good >= 0 else None

    def restore(self, step: int) -> Any:
        """Gives what is tracked the values of a checkpoint.

        Returns:
          The state that was saved with it.

        Raises:
          ArtifactError: it is not there, or cannot be read.
        """
        try:
            self._tracked.read(self._prefix(step)).assert_consumed()
            return self._manifest(step)["state"]
        except _UNREADABLE as error:
            raise ArtifactError(
                f"Checkpoint step-{step} of the first worker cannot be read "
                f"in {self._folder}: {_first_line(error)}. All workers need "
                "the same work directory: a shared folder or a bucket."
            ) from error

    def _fault(self, step: int) -> str | None:
        """Says why a checkpoint cannot be resumed from."""
        fault = self._own_fault(step)
        if fault is not None:
            return fault
        for need in self._needs(step):
            fault = self._own_fault(need)
            if fault is not None:
                return f"step-{need}, the best so far, is needed, but {fault}"
        return None

    def _own_fault(self, step: int) -> str | None:
        if not tf.io.gfile.exists(self._manifest_path(step)):
            return "it was not written to its end"
        try:
            for name, size in self._manifest(step)["files"].items():
                found = self._size(name)
                if found != size:
                    return f"{name} has {found:,} bytes of {size:,}"
            reader = tf.train.load_checkpoint(self._prefix(step))
            for name in reader.get_variable_to_shape_map():
                reader.get_tensor(name)  # Compares its checksum.
        except _UNREADABLE as error:
            return _first_line(error)
        return None

    def _remove_all_but(self, steps: Sequence[int]) -> None:
        """Removes files of other steps; manifests first, as they vouch."""
        kept = set(steps).union(*(self._needs(step) for step in steps))
        names = [n for n in self._listed() if _step(n) not in kept]
        for name in sorted(names, key=lambda n: not n.endswith(".json")):
            path = self._path(name)
            if tf.io.gfile.isdir(path):
                tf.io.gfile.rmtree(path)
            else:
                tf.io.gfile.remove(path)

    def _needs(self, step: int) -> list[int]:
        try:
            return [int(need) for need in self._manifest(step)["needs"]]
        except _UNREADABLE:
            return []

    def _steps(self) -> list[int]:
        """Steps with any file, the newest first."""
        return sorted({_step(name) for name in self._listed()}, reverse=True)

    def _listed(self) -> list[str]:
        if not tf.io.gfile.isdir(self._folder):
            return []
        # An object store ends the name of a folder with a slash.
        names = [n.rstrip("/") for n in tf.io.gfile.listdir(self._folder)]
        return [n for n in names if _step(n) >= 0]

    def _files(self, step: int) -> list[str]:
        starts = (f"step-{step}.index", f"step-{step}.data-")
        return sorted(n for n in self._listed() if n.startswith(starts))

    def _size(self, name: str) -> int:
        """Bytes of a file; 0 where it is missing."""
        path = self._path(name)
        if not tf.io.gfile.exists(path):
            return 0
        return int(tf.io.gfile.stat(path).length)

    def _manifest(self, step: int) -> Any:
        with tf.io.gfile.GFile(self._manifest_path(step)) as stream:
            manifest, checksum = json.loads(stream.read())
        if digest(manifest) != checksum:
            raise ValueError(f"step-{step}.json does not match its checksum")
        return manifest

    def _manifest_path(self, step: int) -> str:
        return self._path(f"step-{step}.json")

    def _prefix(self, step: int) -> str:
        return self._path(f"step-{step}")

    def _path(self, name: str) -> str:
        return str(tf.io.gfile.join(self._folder, name))


def _step(name: str) -> int:
    match = _FILE.match(name)
    return int(match[1]) if match else -1


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "message", error)) or type(error).__name__
    return text.splitlines()[0]
