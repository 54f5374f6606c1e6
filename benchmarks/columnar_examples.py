"""Retrieval examples by our job, measured in this process."""

import dataclasses
from pathlib import Path

from beam_jobs import retrieval_examples
from beam_jobs.runners import pipeline_options
from benchmarks.contest import run_contestant
from benchmarks.given import PARTS, Given


def write_examples(
    given: Given, output: Path, num_shards: int | None = None
) -> dict[str, int]:
    """Writes `<part>-*.tfrecord`, as `watchnext prepare` does.

    Args:
      given: the inputs.
      output: an existing folder.
      num_shards: in place of the configuration's default.

    Returns:
      The job's counts.
    """
    config = given.config
    shards = config.beam
    if num_shards is not None:
        shards = shards.model_copy(update={"num_shards": num_shards})
    # The job reads these two of the timed tables.
    log = dataclasses.replace(
        given.log,
        rows={t: given.log.rows[t] for t in ("watches", "searches")},
    )
    return retrieval_examples.run(
        log.split_files(*PARTS),
        log.files("users"),
        log.bounds,
        given.graph,
        f"{given.graph}/transform_fn",
        log.schema,
        config.retrieval_examples,
        config.ranking_examples,
        shards,
        config.seed,
        str(output),
        pipeline_options(),
    )


if __name__ == "__main__":
    run_contestant(write_examples)
