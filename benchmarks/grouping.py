"""The columnar shuffle alone: events of a log to whole user shards."""

import argparse
import json
import time

import apache_beam as beam

from beam_jobs.runners import count, pipeline_options, run_pipeline
from beam_jobs.user_shards import GroupByUserShard, UserShard, num_shards_of
from benchmarks.contest import peak_rss_gib
from benchmarks.given import PARTS, Given
from benchmarks.processes import total_cpu_s
from benchmarks.shuffle import counted_shuffle


def group_events(given: Given, num_shards: int | None) -> dict[str, int]:
    """Groups what retrieval examples read.

    Args:
      given: the log.
      num_shards: None for the number that the job would choose.

    Returns:
      `shards` and `rows` that came out, and the jobs' own counts.
    """
    log = given.log
    sources: dict[str, dict[str, list[str]]] = {
        table: {part: log.files(table, part) for part in PARTS}
        for table in ("watches", "searches")
    }
    sources["users"] = {"all": log.files("users")}
    with run_pipeline(pipeline_options()) as job:
        _ = (
            job.pipeline
            | "Group"
            >> GroupByUserShard(
                sources,
                log.schema,
                num_shards_of(sources, num_shards),
                given.config.beam.max_events_per_user,
            )
            | "Count" >> beam.Map(_count)
        )
    return job.counts


def _count(shard: UserShard) -> None:
    count("shards", 1)
    count("rows", sum(rows.num_rows for rows in shard.tables.values()))


def main() -> None:
    """Groups once; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", required=True)
    parser.add_argument("--graph", required=True)
    parser.add_argument("--num_shards", type=int)
    args = parser.parse_args()
    given = Given.read(args.log, args.graph)
    num_shards = args.num_shards or given.config.beam.num_shards
    cpu_s, started = total_cpu_s(), time.perf_counter()
    with counted_shuffle() as shuffled:
        counts = group_events(given, num_shards)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started,
                "cpu_s": total_cpu_s() - cpu_s,
                "peak_rss_gib": peak_rss_gib(),
                "shuffled_bytes": shuffled.total,
                "num_shards": counts["shards"],
                "events": given.num_events(),
                "counts": counts,
            }
        )
    )


if __name__ == "__main__":
    main()
