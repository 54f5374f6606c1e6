"""Training examples of a window, from the stored examples of its days.

What a day's files leave open is decided here, as `retrieval_examples` decides
it: which labels are in the vocabulary and had ended when the window ends,
which N of a user's are drawn, their weights and ages, and the transform. The
files are those of a run over the window's events, byte for byte.
"""

from collections.abc import Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.daily_examples import LABELS, label_inputs, retrieval_path
from beam_jobs.events import read_tables
from beam_jobs.histories import string_objects
from beam_jobs.query_features import Transform
from beam_jobs.retrieval_examples import (
    ExampleBuilder,
    example_path,
    write_training,
)
from beam_jobs.retrieval_labels import Labels, draw_labels
from beam_jobs.runners import run_pipeline
from beam_jobs.stored_requests import from_table, stored_schema
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import EventSchema
from schemas.features import FeatureSet, feature_set
from schemas.requests import RawInput
from schemas.split import SplitBounds
from schemas.vocabularies import Vocabulary, read_vocabulary


def run(
    *,
    days: Mapping[str, str],
    bounds: SplitBounds,
    vocabularies: str,
    transform: Transform | str,
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
      bounds: the window, [log_start_us, train_end_us).
      vocabularies: folder of the vocabularies stage.
      transform: folder `transform_fn`, or a picklable callable like it.
      schema, retrieval, ranking: as of the days.
      num_shards: as of the days.
      output: an existing folder.
      options: of the runner.

    Returns:
      The counts `train_*` of `retrieval_examples.run`.

    Raises:
      InputError: a file of the days is missing or does not fit.
    """
    # The seed of the draw is in the stored priorities.
    builder = ExampleBuilder.of(
        transform, schema, retrieval, ranking, bounds, seed=0
    )
    write = _WriteShard(
        days=dict(days),
        builder=builder,
        stored=label_inputs(schema, retrieval, ranking),
        features=feature_set(schema, retrieval, ranking),
        vocabularies=vocabularies,
        num_shards=num_shards,
        output=output,
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
    """Writes the training examples of a user shard."""

    def __init__(
        self,
        *,
        days: dict[str, str],
        builder: ExampleBuilder,
        stored: tuple[RawInput, ...],
        features: FeatureSet,
        vocabularies: str,
        num_shards: int,
        output: str,
    ) -> None:
        self._days, self._builder, self._stored = days, builder, stored
        self._features, self._vocabularies = features, vocabularies
        self._num_shards, self._output = num_shards, output

    def setup(self) -> None:
        self._videos: Vocabulary = read_vocabulary(self._vocabularies, "video")

    def process(self, shard: int) -> None:
        paths = [
            retrieval_path(folder, day, shard, self._num_shards)
            for day, folder in self._days.items()
        ]
        by_day = [read_tables([path], LABELS) for path in paths]
        rows = pa.concat_tables([LABELS.empty_table(), *by_day])
        labels = self._choose(rows.combine_chunks())
        counts = [day.num_rows for day in by_day]
        requests = self._read_requests(paths, counts, labels.rows)
        chosen = rows.take(pa.array(labels.rows)).combine_chunks()
        times_us = chosen.column("label_time_us").to_numpy()

        def request(some: slice) -> dict[str, np.ndarray]:
            length = len(times_us[some])
            stored = requests.slice(some.start, length)
            return from_table(stored, self._stored) | {
                "request_time_us": times_us[some]
            }

        write_training(
            example_path(self._output, "train", shard, self._num_shards),
            self._features,
            self._builder,
            self._builder.of_requests(
                string_objects(chosen.column("user_id").combine_chunks()),
                times_us,
                request,
            ),
            labels,
        )

    def _choose(self, rows: pa.Table) -> Labels:
        """The labels of the window, as `choose_labels` of its events."""
        ended = rows.column("label_end_us").to_numpy()
        ended = np.flatnonzero(ended <= self._builder.bounds.train_end_us)
        ids = self._videos.ids(rows.column("label_video_id"))
        known = ended[ids[ended] > 0]
        users = _ranks(rows.column("user_id"))[known]
        priority = rows.column("priority").to_numpy()[known]
        times_us = rows.column("label_time_us").to_numpy()[known]
        chosen, weights = draw_labels(
            users, times_us, priority, self._builder.config
        )
        labels = known[chosen]
        return Labels(labels, ids[labels], weights, ended.size - known.size)

    def _read_requests(
        self, paths: Sequence[str], counts: Sequence[int], rows: np.ndarray
    ) -> pa.Table:
        """The stored requests of rows numbered over all days, in that order."""
        columns = stored_schema(self._stored)
        found, start = [columns.empty_table()], 0
        order = np.argsort(rows)
        ascending = rows[order]
        for path, number in zip(paths, counts, strict=True):
            low, high = np.searchsorted(ascending, (start, start + number))
            if low < high:
                wanted = pa.array(ascending[low:high] - start)
                found.append(read_tables([path], columns).take(wanted))
            start += number
        back = np.empty_like(order)
        back[order] = np.arange(order.size)
        table = pa.concat_tables(found).combine_chunks()
        return table.take(pa.array(back)).combine_chunks()


def _ranks(values: pa.ChunkedArray) -> np.ndarray:
    """Rank of each string (by UTF-8 bytes) among the distinct ones."""
    distinct = pc.unique(values)
    distinct = distinct.take(pc.array_sort_indices(distinct))
    found = pc.index_in(values.combine_chunks(), value_set=distinct)
    return found.to_numpy().astype(np.int64)
