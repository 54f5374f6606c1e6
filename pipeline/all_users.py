"""A ranked list for every user of the log, as a stage: wiring only.

The lists are made anew when the log, the SavedModel or the moment changed; a
run that was ended in the middle goes on with the shards that are left.
"""

import dataclasses
import datetime
import time

from beam_jobs.runners import pipeline_options
from beam_jobs.user_requests import end_of_log_us, request_columns
from models.serving import RECOMMENDER, RETRIEVAL
from models.serving_requests import retrieval_inputs
from pipeline.console import say
from pipeline.model_stages import ModelStages
from pipeline.run import Run, Sections
from schemas.artifacts import Artifact, ArtifactStore, ArtifactWriter, join
from schemas.errors import UsageError

STAGE = "recommendations"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def recommend_to_all(
    run: Run, output: str | None = None, as_of_us: int | None = None
) -> Artifact:
    """Writes one row a user, or finds what is there already.

    Args:
      run: with Beam's flags.
      output: folder in whose `recommendations` the version goes; default is
        the work directory.
      as_of_us: the moment of all requests; default is right after the log's
        end.

    Raises:
      UsageError: nothing was exported for this configuration and input.
    """
    stages = ModelStages(run)
    data, export, config = stages.data, stages.export(), run.config
    model = RECOMMENDER if stages.has_ranking else RETRIEVAL
    inputs = tuple(i for i in stages.raw_inputs if i.axis != "candidate")
    if model == RETRIEVAL:
        inputs = retrieval_inputs(inputs)
    tables = list(request_columns(data.schema, inputs))
    files = {table: data.events.files(f"{table}-") for table in tables}
    time_us = end_of_log_us(files) if as_of_us is None else as_of_us
    fingerprints = {
        "events": data.events.fingerprint(
            "schema.json", *(f"{table}-" for table in tables)
        ),
        "export": export.fingerprint(f"{model}/"),
    }
    sections: Sections = {
        "beam": config.beam,
        "retrieval_examples": config.retrieval_examples,
        "ranking_examples": config.ranking_examples,
        "as_of_us": str(time_us),
    }

    def write(writer: ArtifactWriter) -> None:
        from beam_jobs import recommendations

        started = time.monotonic()
        done = recommendations.run(
            files=files,
            schema=data.schema,
            inputs=inputs,
            model=join(export.path, model, "1"),
            time_us=time_us,
            metadata={
                "model": model,
                "export": export.key,
                "events": fingerprints["events"],
                "as_of_us": str(time_us),
            },
            output=writer.path,
            max_events_per_user=config.beam.max_events_per_user,
            options=pipeline_options(run.beam_flags),
        )
        seconds = time.monotonic() - started
        writer.counts |= done.counts
        writer.run |= dataclasses.asdict(done) | {"job_seconds": seconds}
        say(
            f"{STAGE}: {done.computed_users:,} requests answered, "
            f"{done.computed_users / seconds:,.1f} requests/s"
        )
        if kept := done.shards - done.computed_shards:
            say(f"{STAGE}: {kept} of {done.shards} shards were there already")

    into = run.building(STAGE)
    if output is not None:
        into = dataclasses.replace(into, store=ArtifactStore(output))
    written = into.stage(STAGE, sections, fingerprints, write, resumable=True)
    say(f"one Parquet row a user: {join(written.path, f'{STAGE}-*.parquet')}")
    return written


def parse_moment(text: str) -> int:
    """Reads the value of `--as-of`: a date or a time, UTC unless it says so.

    Returns:
      UTC microseconds.

    Raises:
      UsageError: it is neither.
    """
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--as-of {text!r} is no time; expected YYYY-MM-DD or "
            "YYYY-MM-DDTHH:MM:SS, for example 2026-01-05T18:30:00."
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // datetime.timedelta(microseconds=1)
