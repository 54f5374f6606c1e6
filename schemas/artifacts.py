"""Versioned stage folders: manifest, run record, commit marker.

A work directory holds one folder per stage, and in it one folder per version:

    work/vocabularies/20260105T101500Z-3f9c0b1a/
        <data files>  manifest.json  run.json  metrics.json  COMPLETED

`manifest.json` has only what determines the bytes (config section, seed,
inputs' fingerprints, counts, sha256 per file and records of each TFRecord
file); `run.json` has the rest.
`COMPLETED` is written last: it is the commit point, because object stores
have no atomic rename (a local folder is renamed into place as well).
"""

import contextlib
import dataclasses
import datetime
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from apache_beam.io.filesystems import FileSystems

from schemas.errors import ArtifactError, UsageError
from schemas.records import RecordCounter

# Part of every key: what stages wrote before a change of the request or of the
# files is made again, not misread.
SCHEMA_VERSION = 3
MARKER, MANIFEST, RUN, METRICS = (
    "COMPLETED",
    "manifest.json",
    "run.json",
    "metrics.json",
)
# In a folder whose files a second run may go on with; has the version's key.
UNFINISHED = "UNFINISHED"
_CHUNK = 1 << 22
_TFRECORD = ".tfrecord"


def join(path: str, *names: str) -> str:
    """Joins path parts for local folders and object stores alike."""
    return FileSystems.join(path, *names)


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def stage_key(
    stage: str, config: Mapping[str, Any], seed: int, inputs: Mapping[str, str]
) -> str:
    """Fingerprint of everything a stage's bytes follow from."""
    return digest(
        {
            "schema_version": SCHEMA_VERSION,
            "stage": stage,
            "config": config,
            "seed": seed,
            "inputs": dict(inputs),
        }
    )


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A completed version of a stage, opened for reading."""

    path: str
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str) -> "Artifact":
        """Opens a version by its folder; the caller has seen its marker."""
        return cls(path, _read_json(join(path, MANIFEST)))

    @property
    def stage(self) -> str:
        return str(self.manifest["stage"])

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def counts(self) -> Mapping[str, int]:
        return dict(self.manifest["counts"])

    @property
    def metrics(self) -> dict[str, float]:
        return dict(_read_json(join(self.path, METRICS)))

    def file(self, name: str) -> str:
        """Full path of a data file; names use '/' below the folder."""
        if name not in self.manifest["files"]:
            raise ArtifactError(
                f"{self.path} has no file {name!r}; it has "
                f"{', '.join(sorted(self.manifest['files'])[:8])} ..."
            )
        return join(self.path, *name.split("/"))

    def files(self, prefix: str = "") -> list[str]:
        """Full paths of the data files whose name starts so, sorted."""
        return [self.file(n) for n in self.names(prefix)]

    def names(self, prefix: str = "") -> list[str]:
        return sorted(n for n in self.manifest["files"] if n.startswith(prefix))

    def records(self, prefix: str = "") -> dict[str, int]:
        """Full path -> number of records of such TFRecord files, sorted."""
        files = self.manifest["files"]
        return {
            self.file(name): int(files[name]["records"])
            for name in self.names(prefix)
            if name.endswith(_TFRECORD)
        }

    def fingerprint(self, *prefixes: str) -> str:
        """sha256 over the content of the files whose name starts so.

        It depends on the bytes alone, so a stage that reads only some parts
        of its input (training days, say) is not touched by the others.
        """
        names = sorted({n for p in prefixes or ("",) for n in self.names(p)})
        if not names:
            raise ArtifactError(
                f"{self.path} has no file that starts with one of {prefixes}."
            )
        files = self.manifest["files"]
        return digest([[n, files[n]["sha256"]] for n in names])

    def verify(self) -> None:
        """Reads every file and compares size and sha256; checks the key.

        Raises:
          ArtifactError: naming the file and both sides; or that manifest and
            marker are of different versions.
        """
        self._check_key()
        for name, expected in self.manifest["files"].items():
            path = join(self.path, *name.split("/"))
            if not FileSystems.exists(path):
                raise ArtifactError(f"{path} is missing; run the stage again.")
            found = _describe_file(path)
            if found["sha256"] != expected["sha256"]:
                raise ArtifactError(
                    f"{path} is corrupt: the manifest says "
                    f"{expected['bytes']} bytes, sha256 "
                    f"{expected['sha256'][:12]}, the file has "
                    f"{found['bytes']} bytes, sha256 "
                    f"{found['sha256'][:12]}. Delete the folder "
                    f"{self.path} and run the stage again."
                )

    def _check_key(self) -> None:
        """Manifest and marker must have the key of what the manifest says."""
        said = self.manifest
        follows = digest(
            {
                "schema_version": said["schema_version"],
                **{n: said[n] for n in ("stage", "config", "seed", "inputs")},
            }
        )
        marker = _read_text(join(self.path, MARKER)).strip()
        if not follows == self.key == marker:
            raise ArtifactError(
                f"{self.path} is put together from different versions: its "
                f"{MARKER} says {marker[:12]}, its {MANIFEST} {self.key[:12]}, "
                f"whose content has the key {follows[:12]}. Delete the folder "
                "and run the stage again, or copy a whole one."
            )


@dataclasses.dataclass
class ArtifactWriter:
    """A version being written; `path` is the folder to fill."""

    path: str
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    run: dict[str, Any] = dataclasses.field(default_factory=dict)

    def file(self, name: str) -> str:
        return join(self.path, *name.split("/"))


class ArtifactStore:
    """The stage folders below one work directory."""

    def __init__(self, workdir: str) -> None:
        self.workdir = workdir

    def versions(self, stage: str) -> list[Artifact]:
        """Completed versions, oldest first; incomplete ones are no version."""
        pattern = join(self.workdir, stage, "*", MARKER)
        found = FileSystems.match([pattern])[0].metadata_list
        markers = sorted(m.path for m in found)
        folders = [str(PurePosixPath(m).parent) for m in markers]
        if "://" in self.workdir:  # PurePosixPath folds the double slash.
            folders = [m.rsplit("/", 1)[0] for m in markers]
        return [
            Artifact.open(f)
            for f in folders
            if not PurePosixPath(f).name.startswith(".")
        ]

    def find(self, stage: str, key: str) -> Artifact | None:
        """The newest version with this key, verified; None if there is none."""
        for artifact in reversed(self.versions(stage)):
            if artifact.key == key:
                artifact.verify()
                return artifact
        return None

    def latest(self, stage: str, command: str) -> Artifact:
        """The newest version of a stage, verified.

        Raises:
          UsageError: there is none; names the command that makes it.
        """
        versions = self.versions(stage)
        if not versions:
            raise UsageError(
                f"{self.workdir} has no completed {stage!r}; run "
                f"`watchnext {command} --workdir {self.workdir}` first."
            )
        versions[-1].verify()
        return versions[-1]

    def unfinished(self, stage: str, key: str) -> str | None:
        """The folder of a resumable version that was begun and not ended."""
        pattern = join(self.workdir, stage, "*", UNFINISHED)
        for found in FileSystems.match([pattern])[0].metadata_list:
            if _read_text(found.path) == key:
                return str(found.path).rpartition("/")[0]
        return None

    @contextlib.contextmanager
    def write(
        self,
        stage: str,
        config: Mapping[str, Any],
        seed: int,
        inputs: Mapping[str, str],
        resumable: bool = False,
    ) -> Iterator[ArtifactWriter]:
        """Opens a new version; committed when the block ends without error.

        Whatever fails inside leaves no version behind. A resumable one leaves
        its folder: the next writing of the same key finds the files in it.

        Raises:
          ArtifactError: no space left on the device.
        """
        key = stage_key(stage, config, seed, inputs)
        started = datetime.datetime.now(datetime.UTC)
        # Unique to the microsecond and random: two runs never share a folder.
        name = f"{started:%Y%m%dT%H%M%S%fZ}-{key[:8]}-{uuid.uuid4().hex[:4]}"
        remote = "://" in self.workdir
        folder = self.unfinished(stage, key) if resumable else None
        begun = folder is not None
        if folder is None:
            hidden = name if remote else f".{name}"
            folder = join(self.workdir, stage, hidden)
        final = folder if remote else join(self.workdir, stage, name)
        writer = ArtifactWriter(folder)
        try:
            if not begun:
                FileSystems.mkdirs(folder)
            if resumable and not begun:
                _write_text(join(folder, UNFINISHED), key)
            yield writer
            files = _describe_tree(folder)
            files.pop(UNFINISHED, None)
            manifest = {
                "schema_version": SCHEMA_VERSION,
                "stage": stage,
                "key": key,
                "config": config,
                "seed": seed,
                "inputs": dict(inputs),
                "counts": writer.counts,
                "files": files,
            }
            ended = datetime.datetime.now(datetime.UTC)
            writer.run |= {
                "started": started.isoformat(),
                "seconds": (ended - started).total_seconds(),
            }
            _write_text(join(folder, MANIFEST), _pretty(manifest))
            _write_text(join(folder, RUN), _pretty(writer.run))
            _write_text(join(folder, METRICS), _pretty(writer.metrics))
            _write_text(join(folder, MARKER), key + "\n")
            if not remote:
                FileSystems.rename([folder], [final])
            if resumable:
                FileSystems.delete([join(final, UNFINISHED)])
        except BaseException as error:
            if not resumable:
                _discard(folder)
            # A Beam worker's OSError reaches us as text only.
            if os.strerror(errno.ENOSPC) in str(error):
                kept = "whole files were" if resumable else "nothing was"
                raise ArtifactError(
                    f"No space left while writing {stage!r} below "
                    f"{self.workdir}; {kept} kept. Free some space or "
                    "choose another folder."
                ) from error
            raise


def _discard(folder: str) -> None:
    if "://" in folder:
        with contextlib.suppress(Exception):
            FileSystems.delete([folder])
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _describe_tree(folder: str) -> dict[str, dict[str, Any]]:
    """Name -> what the manifest says of every file below a folder."""
    prefix = folder.rstrip("/") + "/"
    found = FileSystems.match([prefix + "**"])[0].metadata_list
    paths = sorted(m.path for m in found)
    return {p.removeprefix(prefix): _describe_file(p) for p in paths}


def _describe_file(path: str) -> dict[str, Any]:
    """sha256 and size of a file, and the records of a TFRecord file."""
    state, size, records = hashlib.sha256(), 0, RecordCounter()
    with FileSystems.open(path, compression_type="uncompressed") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
            size += len(chunk)
            if path.endswith(_TFRECORD):
                records.add(chunk)
    found: dict[str, Any] = {"sha256": state.hexdigest(), "bytes": size}
    if path.endswith(_TFRECORD):
        found["records"] = records.count
    return found


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _write_text(path: str, text: str) -> None:
    with FileSystems.create(path, compression_type="uncompressed") as stream:
        stream.write(text.encode())


def _read_text(path: str) -> str:
    with FileSystems.open(path, compression_type="uncompressed") as stream:
        return str(stream.read().decode())


def _read_json(path: str) -> Any:
    try:
        return json.loads(_read_text(path))
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from error
