"""A ranked list for every user of a log, by an exported SavedModel.

In go event files and the SavedModel; out comes one Parquet file per shard of
users, one row a user. A file appears when its shard is done and not before,
so a run that was killed leaves whole files: the next one keeps them and does
the other shards. No shuffle: a worker reads, answers and writes a shard.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent import futures

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.output_files import remove_temporary, write_parquet
from beam_jobs.recommendation_model import (
    BATCH_SIZE,
    RecommendationModel,
    ShardLists,
    ShardRequests,
)
from beam_jobs.runners import count, run_pipeline
from beam_jobs.stored_requests import stored_schema, to_table
from beam_jobs.user_requests import UserRequests, has_watched, request_columns
from beam_jobs.user_shards import GroupByUserShard, UserShard, num_shards_of
from schemas.artifacts import join
from schemas.buckets import bucket_name
from schemas.events import EventSchema
from schemas.requests import RawInput

TABLE = "recommendations"
_PREFIX = "watchnext."
_USERS, _NEW = "users", "users_without_history"
# Dense requests held at once, while those of a shard are packed.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run left and did.

    Attributes:
      counts: `users` and `users_without_history`, of all shards.
      shards: how many there are.
      computed_shards, computed_users: by this run; the rest was there.
      counters: of the Beam job; empty if there was nothing to do.
    """

    counts: dict[str, int]
    shards: int
    computed_shards: int
    computed_users: int
    counters: dict[str, int]


def run(
    *,
    files: Mapping[str, Sequence[str]],
    schema: EventSchema,
    inputs: Sequence[RawInput],
    model: str,
    time_us: int,
    metadata: Mapping[str, str],
    output: str,
    max_events_per_user: int,
    options: PipelineOptions,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Writes `recommendations-SSSSS-of-NNNNN.parquet`, one file a shard.

    Users are all that are in some table, with events or without. Equal input
    gives equal bytes on any runner and number of workers of one kind of CPU.

    Args:
      files: event table -> Parquet files; `videos` is not read.
      schema: what the log has.
      inputs: of the model's request.
      model: folder of the SavedModel's version.
      time_us: of the requests; what happened before is known.
      metadata: goes into each file, as `watchnext.<key>`. A file that is
        there with another one is of other inputs: it is written anew.
      output: folder to write into; files of an earlier run are kept.
      max_events_per_user: of a table, the most recent ones.
      options: of Beam.
      batch_size: requests a call of the model; the bytes follow from it.

    Raises:
      InputError: unreadable events.
      ArtifactError: the model does not fit the log.
    """
    columns = request_columns(schema, inputs)
    sources = {table: {"all": files[table]} for table in columns}
    num_shards = num_shards_of(sources, None)
    metadata = dict(metadata) | {"batch_size": str(batch_size)}
    written_to = _Files(output, num_shards, metadata)
    done = written_to.finished()
    remaining = [s for s in range(num_shards) if s not in done]
    counters: dict[str, int] = {}
    if remaining:
        grouped = GroupByUserShard(
            sources, schema, num_shards, max_events_per_user, columns, remaining
        )
        handler = RecommendationModel(model, inputs, batch_size)
        with run_pipeline(options) as job:
            _ = (
                job.pipeline
                | "Shards" >> grouped
                | "Requests"
                >> beam.Map(shard_requests, inputs=inputs, time_us=time_us)
                | "Recommend" >> RunInference(handler, model_identifier=model)
                | "Write" >> beam.Map(_write, files=written_to)
            )
        counters = job.counts
    # Of a killed run; all that is written by this one is there.
    remove_temporary(output)
    done = written_to.finished()
    return Outcome(
        {
            name: sum(of[name] for of in done.values())
            for name in (_USERS, _NEW)
        },
        num_shards,
        len(remaining),
        sum(done[shard][_USERS] for shard in remaining),
        counters,
    )


def shard_requests(
    shard: UserShard, inputs: Sequence[RawInput], time_us: int
) -> ShardRequests:
    """The requests of all users of a shard."""
    requests = UserRequests(shard, inputs, time_us)
    tables, without = [stored_schema(inputs).empty_table()], 0
    for start in range(0, len(shard.user_ids), _CHUNK):
        stop = min(start + _CHUNK, len(shard.user_ids))
        request = requests(np.arange(start, stop))
        without += int((~has_watched(request)).sum())
        tables.append(to_table(request, inputs))
    rows = pa.concat_tables(tables).combine_chunks()
    return ShardRequests(shard.shard, shard.user_ids, rows, without)


@dataclasses.dataclass(frozen=True)
class _Files:
    """The output files of a run: one a shard, with what it is made of."""

    folder: str
    num_shards: int
    metadata: dict[str, str]

    def path(self, shard: int) -> str:
        return join(self.folder, bucket_name(TABLE, shard, self.num_shards))

    def finished(self) -> dict[int, dict[str, int]]:
        """Shard -> counts, of the files that are there, whole, and ours."""
        pattern = join(self.folder, f"{TABLE}-*")
        matched = FileSystems.match([pattern])[0].metadata_list
        there = {m.path for m in matched}
        shards = [s for s in range(self.num_shards) if self.path(s) in there]
        # Far away a footer takes tens of milliseconds.
        with futures.ThreadPoolExecutor(32) as pool:
            found = zip(shards, pool.map(self._counts, shards), strict=True)
            return {shard: own for shard, own in found if own is not None}

    def _counts(self, shard: int) -> dict[str, int] | None:
        try:
            with FileSystems.open(
                self.path(shard), compression_type="uncompressed"
            ) as stream:
                schema = pq.read_schema(pa.PythonFile(stream, mode="r"))
        except (pa.ArrowException, OSError):
            return None  # Cut off: a machine that went down, not a process.
        texts = {
            key.decode().removeprefix(_PREFIX): value.decode()
            for key, value in (schema.metadata or {}).items()
        }
        if not self.metadata.items() <= texts.items():
            return None
        return {name: int(texts[name]) for name in (_USERS, _NEW)}


def _write(lists: ShardLists, files: _Files) -> None:
    counts = {_USERS: lists.rows.num_rows, _NEW: lists.without_history}
    texts = files.metadata | {name: str(n) for name, n in counts.items()}
    rows = lists.rows.replace_schema_metadata(
        {_PREFIX + name: text for name, text in texts.items()}
    )
    write_parquet(files.path(lists.shard), rows)
    for name, n in counts.items():
        count(name, n)
