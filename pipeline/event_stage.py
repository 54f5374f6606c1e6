"""The first stage: events of the simulated platform, or of outside logs."""

import dataclasses

import yaml
from apache_beam.io.filesystems import FileSystems

from beam_jobs.runners import pipeline_options
from pipeline.config import load_mapping_file, read_yaml
from pipeline.console import say
from pipeline.run import Run, Sections
from schemas.artifacts import Artifact, ArtifactWriter, digest
from schemas.config import SourceConfig
from schemas.errors import InputError, UsageError


def simulate(run: Run) -> Artifact:
    """Simulates a platform's logs and writes them as events."""

    def write(writer: ArtifactWriter) -> None:
        from beam_jobs.event_files import write_simulated
        from beam_jobs.sources.simulated import simulate as play

        logs = play(run.config.simulator, run.config.seed)
        writer.counts |= write_simulated(
            logs.tables, logs.truth, writer.path, run.config.beam.num_shards
        )

    return run.building("events").stage("events", _simulated(run), {}, write)


def find_simulated(run: Run) -> Artifact | None:
    """The events that `simulate` wrote for this configuration, if any."""
    return run.find("events", _simulated(run), {})


def _simulated(run: Run) -> Sections:
    return {"simulator": run.config.simulator, "beam": run.config.beam}


def ingest(
    run: Run, mapping: str | None = None, input_dir: str | None = None
) -> Artifact:
    """Maps outside logs to events.

    Args:
      run: the run.
      mapping: a file or a shipped name; default is the configuration's.
      input_dir: folder of the logs, in place of the mapping's root.
    """
    from beam_jobs.sources.mapping import load_mapping

    name = mapping or run.config.source.mapping
    if name is None:
        raise UsageError("ingest needs --mapping FILE or source.mapping.")
    # The work directory remembers where its events are from.
    source = SourceConfig(kind="mapped", mapping=name)
    config = run.config.model_copy(update={"source": source})
    run = dataclasses.replace(run, config=config)
    found = load_mapping_file(name, input_dir)
    loaded = load_mapping(found.content)

    def write(writer: ArtifactWriter) -> None:
        from beam_jobs.sources import mapped

        writer.counts |= mapped.run(
            loaded,
            found.root,
            writer.path,
            run.config.beam.num_shards,
            run.config.beam.max_bad_share,
            pipeline_options(run.beam_flags),
        )

    sections: Sections = {
        "mapping": yaml.safe_dump(found.content, sort_keys=True),
        "beam": run.config.beam,
    }
    inputs = {"logs": _listing(found.root)}
    return run.building("events").stage("events", sections, inputs, write)


def make_events(run: Run, input_dir: str | None = None) -> Artifact:
    """Simulates or ingests, as the configuration's `source` says.

    A configuration that names no mapping, or one without a `root`, goes on
    with events that `watchnext ingest` left in the work directory.
    """
    if run.config.source.kind == "mapped":
        return _ingested(run, input_dir) or ingest(run, input_dir=input_dir)
    there = run.store.versions("events")
    if there and "mapping" in there[-1].manifest["config"]:
        say(f"events: those ingested, {there[-1].path}")
        return run.store.latest("events", "ingest")
    return simulate(run)


def _ingested(run: Run, input_dir: str | None) -> Artifact | None:
    """What `ingest --input DIR` left, where nothing else says the folder.

    Only if mapping and settings still are those that made it.
    """
    name = run.config.source.mapping
    if input_dir is not None or name is None:
        return None
    content = read_yaml(name, "mappings/")
    if content.pop("root", None):
        return None
    made_by = {
        "mapping": yaml.safe_dump(content, sort_keys=True),
        "beam": run.config.beam.model_dump(mode="json"),
    }
    for version in reversed(run.store.versions("events")):
        if version.manifest["config"] == made_by:
            say(f"events: those ingested, {version.path}")
            return version
    return None


def _listing(root: str) -> str:
    """Fingerprint of a folder's file names, sizes and times of change.

    Hashing the content would read outside logs twice.
    """
    pattern = FileSystems.join(root, "**")
    found = FileSystems.match([pattern])[0].metadata_list
    if not found:
        raise InputError(
            f"{root} has no files; give the folder of the logs with "
            "--input DIR."
        )
    return digest(
        sorted(
            [f.path, f.size_in_bytes, f.last_updated_in_seconds] for f in found
        )
    )
