"""Ranking examples of a window, from the stored requests of its days.

The files are those of `ranking_examples.run` over the window's events, byte
for byte: a request that went on after midnight becomes one again, and the
transform is applied.
"""

from collections.abc import Collection, Iterator, Mapping

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.daily_ranking import REQUESTS, ranking_path, stored_inputs
from beam_jobs.events import read_tables
from beam_jobs.example_files import Column, ExampleWriter
from beam_jobs.histories import string_objects
from beam_jobs.ranking_examples import example_columns
from beam_jobs.ranking_requests import lay_out
from beam_jobs.retrieval_examples import example_path
from beam_jobs.runners import count, run_pipeline
from beam_jobs.stored_requests import from_table, stored_schema
from beam_jobs.transform_graph import TransformGraph
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import EventSchema
from schemas.examples import ranking_keys, ranking_observations
from schemas.features import feature_set

_CHUNK = 1024


def run(
    *,
    days: Mapping[str, str],
    transform_path: str,
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
    num_shards: int,
    output: str,
    options: PipelineOptions,
) -> dict[str, int]:
    """Writes `train-*.tfrecord`, one file per shard.

    Args:
      days: ISO date -> folder of the version of `daily_examples` that has
        it, for each day of the window, ascending.
      transform_path: the folder `transform_fn`.
      schema, retrieval, ranking, num_shards: as of the days.
      output: an existing folder.
      options: of the runner.

    Returns:
      Counters `train_requests`, `train_examples`, `train_candidates`.

    Raises:
      InputError: a file of the days is missing or does not fit.
    """
    write = _WriteShard(
        dict(days),
        transform_path,
        schema,
        retrieval,
        ranking,
        num_shards,
        output,
    )
    with run_pipeline(options) as job:
        _ = (
            job.pipeline
            | "Shards" >> beam.Create(range(num_shards), reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | "Write" >> beam.ParDo(write)
        )
    return job.counts


class _WriteShard(beam.DoFn):
    """Writes the ranking examples of a user shard."""

    def __init__(
        self,
        days: dict[str, str],
        transform_path: str,
        schema: EventSchema,
        retrieval: RetrievalExamplesConfig,
        ranking: RankingExamplesConfig,
        num_shards: int,
        output: str,
    ) -> None:
        self._days, self._num_shards, self._output = days, num_shards, output
        self._inputs = stored_inputs(schema, retrieval, ranking)
        self._labels = ranking_observations(schema)
        self._max_candidates = ranking.max_candidates
        self._features = feature_set(schema, retrieval, ranking)
        self._keys = ranking_keys(
            self._features, schema, ranking.max_candidates
        )
        self._transform = TransformGraph(
            transform_path, [f.name for f in self._features]
        )

    def process(self, shard: int) -> None:
        kinds = pa.schema([*REQUESTS, *stored_schema(self._inputs)])
        paths = [
            ranking_path(folder, day, shard, self._num_shards)
            for day, folder in self._days.items()
        ]
        tables = [read_tables([path], kinds) for path in paths]
        rows = pa.concat_tables(tables).combine_chunks()
        path = example_path(self._output, "train", shard, self._num_shards)
        with ExampleWriter(path, self._keys) as writer:
            for columns in self._examples(rows):
                writer.write(columns)
        count("train_examples", writer.num_examples)

    def _examples(self, rows: pa.Table) -> Iterator[dict[str, Column]]:
        owner, layout, chunks = self._layout(rows)
        lists = {i.name for i in self._inputs if i.axis == "candidate"}
        whole = {n: rows.column(n).combine_chunks() for n in rows.column_names}
        columns = {
            name: column.flatten() if name in lists else column
            for name, column in whole.items()
        }
        count("train_requests", (chunks == 0).sum())
        for start in range(0, len(layout), _CHUNK):
            some = layout[start : start + _CHUNK]
            stored = _arranged(columns, lists, owner[some[:, 0]], some)
            raw = from_table(stored, self._inputs)
            labels = {name: raw.pop(f"labels.{name}") for name in self._labels}
            candidates = (some >= 0).sum(axis=1)
            count("train_candidates", candidates.sum())
            yield example_columns(
                self._transform(raw),
                self._features,
                raw,
                string_objects(stored.column("user_id").combine_chunks()),
                stored.column("request_key").to_numpy(),
                candidates,
                labels,
            )

    def _layout(
        self, rows: pa.Table
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Arranges all stored candidates anew.

        Returns:
          owner: int64 [n], the stored row of each candidate.
          layout, chunks: as of `lay_out`.
        """
        videos = rows.column("candidate_video_id").combine_chunks()
        lengths = videos.value_lengths().to_numpy()
        owner = np.repeat(np.arange(rows.num_rows), lengths)
        positions = np.zeros(owner.size, np.int64)
        if "candidate_position" in rows.column_names:
            listed = rows.column("candidate_position").combine_chunks()
            positions = listed.flatten().to_numpy()
        keys = rows.column("request_key").to_numpy().view(np.uint64)
        users = pc.rank(rows.column("user_id"), tiebreaker="dense").to_numpy()
        layout, chunks = lay_out(
            users[owner],
            rows.column("request_time_us").to_numpy()[owner],
            keys[owner],
            positions,
            pc.rank(videos.flatten(), tiebreaker="dense").to_numpy(),
            self._max_candidates,
        )
        return owner, layout, chunks


def _arranged(
    columns: Mapping[str, pa.Array],
    on_candidates: Collection[str],
    context: np.ndarray,
    layout: np.ndarray,
) -> pa.Table:
    """Stored rows of another layout: E contexts and their candidates.

    Args:
      columns: by row or, of `on_candidates`, by candidate.
      on_candidates: names of these.
      context: int64 [E], the row of each new one's context.
      layout: int64 [E, C] numbers of candidates, -1 padding.
    """
    used = layout >= 0
    offsets = np.concatenate(([0], np.cumsum(used.sum(axis=1))))
    offsets = pa.array(offsets, pa.int32())
    candidates, contexts = pa.array(layout[used]), pa.array(context)
    return pa.table(
        {
            name: pa.ListArray.from_arrays(offsets, column.take(candidates))
            if name in on_candidates
            else column.take(contexts)
            for name, column in columns.items()
        }
    )
