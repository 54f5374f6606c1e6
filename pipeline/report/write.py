"""Writes the report: all sections of a work directory, or of two."""

import re
from collections.abc import Callable, Iterator, Sequence

from apache_beam.io.filesystems import FileSystems

from pipeline.console import say
from pipeline.pages.blocks import Block, Missing, Section
from pipeline.pages.page import check_path, write_page
from pipeline.report import (
    card,
    data,
    features,
    provenance,
    ranking,
    retrieval,
    samples,
    training,
)
from pipeline.report.work_folder import Side, WorkFolder
from schemas.artifacts import digest, join
from schemas.errors import UsageError, WatchnextError

REPORT_FILE = "report.html"
_TEMPLATE = "report.html"
_MARK = re.compile(rb'<meta name="watchnext-artifacts" content="(\w+)">')
# The mark is among the first lines.
_HEAD_BYTES = 1 << 10

_SECTIONS: Sequence[
    tuple[str, str, Callable[[Sequence[Side]], Iterator[Block]]]
] = (
    ("overview", "At a glance", card.overview),
    ("card", "Model card", card.model_card),
    ("data", "Data", data.data),
    ("vocabularies", "Vocabularies", data.vocabularies),
    ("features", "Features", features.features),
    ("training", "Training", training.training),
    ("retrieval", "Retrieval", retrieval.retrieval),
    ("index", "Index", retrieval.index),
    ("ranking", "Ranking", ranking.ranking),
    ("samples", "Sample recommendations", samples.recommendations),
    ("configuration", "Configuration", provenance.configuration),
    ("artifacts", "Artifacts", provenance.artifacts),
)


def write_report(
    workdir: str, output: str | None = None, against: str | None = None
) -> str:
    """Writes the page.

    Args:
      workdir: of the run.
      output: file; default is `report.html` in the work directory.
      against: of another run, to be shown beside it.

    Returns:
      Where it was written.

    Raises:
      UsageError: there is no such work directory, or the file cannot be
        written.
    """
    path = output or join(workdir, REPORT_FILE)
    check_path(path)
    sides = _sides(workdir, against)
    sections = [
        Section(name, title, _blocks(build, sides))
        for name, title, build in _SECTIONS
    ]
    write_page(
        path,
        _TEMPLATE,
        {"sides": sides, "sections": sections, "mark": _mark(sides)},
    )
    return path


def keep_report(workdir: str) -> None:
    """Writes the work directory's own page unless it is of these artifacts."""
    path = join(workdir, REPORT_FILE)
    if _mark_in(path) == _mark(_sides(workdir, None)):
        say(f"report: there already, {path}")
    else:
        say(f"report: {write_report(workdir)}")


def _sides(workdir: str, against: str | None) -> list[Side]:
    if against is None:
        return [Side("this run", WorkFolder(workdir))]
    folders = [WorkFolder(workdir), WorkFolder(against)]
    names = [path.rstrip("/").rpartition("/")[2] for path in (workdir, against)]
    if names[0] == names[1]:
        names = [workdir, against]
    if names[0] == names[1]:
        raise UsageError(
            f"--against must name another work directory, got {against} twice."
        )
    return [Side(n, f) for n, f in zip(names, folders, strict=True)]


def _blocks(
    build: Callable[[Sequence[Side]], Iterator[Block]], sides: Sequence[Side]
) -> list[Block]:
    """A section's blocks; what cannot be read is said in its place."""
    blocks: list[Block] = []
    try:
        # One by one: those before the error stay.
        for block in build(sides):
            blocks.append(block)
    except WatchnextError as error:
        blocks.append(Missing(str(error)))
    return blocks


def _mark(sides: Sequence[Side]) -> str:
    """Digest of the keys of all that the page shows."""
    return digest(
        [
            {name: stage.key for name, stage in side.folder.stages.items()}
            for side in sides
        ]
    )


def _mark_in(path: str) -> str | None:
    """The digest in a page that was written before."""
    if not FileSystems.exists(path):
        return None
    with FileSystems.open(path, compression_type="uncompressed") as stream:
        found = _MARK.search(stream.read(_HEAD_BYTES))
    return found.group(1).decode() if found else None
