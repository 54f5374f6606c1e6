"""Files that appear whole or not at all, written by retried workers.

A file is written under another name in the same folder, then renamed. The
name starts with `tmp-`, so a reader's prefix (`train-`) never matches what a
killed worker left behind.
"""

import contextlib
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

_TEMPORARY = "tmp-"


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """Yields a temporary path; renamed to `path` if the block succeeds."""
    folder, name = FileSystems.split(path)
    temporary = FileSystems.join(
        folder, f"{_TEMPORARY}{uuid.uuid4().hex}-{name}"
    )
    try:
        yield temporary
        FileSystems.rename([temporary], [path])
    except BaseException:
        with contextlib.suppress(Exception):
            FileSystems.delete([temporary])
        raise


def remove_temporary(folder: str) -> None:
    """Deletes what killed writers left; nobody may be writing."""
    pattern = FileSystems.join(folder, f"{_TEMPORARY}*")
    found = FileSystems.match([pattern])[0].metadata_list
    if found:
        FileSystems.delete([m.path for m in found])


def make_folder(path: str) -> None:
    """Creates a folder and its parents; nothing happens if it is there."""
    if not FileSystems.exists(path):
        FileSystems.mkdirs(path)


def write_parquet(path: str, rows: pa.Table) -> None:
    """Writes one Parquet file; equal rows give equal bytes."""
    with (
        whole_file(path) as temporary,
        FileSystems.create(
            temporary, compression_type="uncompressed"
        ) as stream,
    ):
        pq.write_table(rows, stream, compression="zstd")


def write_bytes(path: str, data: bytes) -> None:
    """Writes one small file."""
    with (
        whole_file(path) as temporary,
        FileSystems.create(
            temporary, compression_type="uncompressed"
        ) as stream,
    ):
        stream.write(data)
