"""Ranking examples: the impressions of each request, as TFRecords.

In go the split events and the transform graph, out comes one tf.Example per
request (`schemas.examples.ranking_keys`): features as they were known at the
request's time, and per candidate what happened (paper, section 4).
"""

from collections.abc import Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import lagged_statistics
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.example_files import Column, ExampleWriter, without_padding
from beam_jobs.lagged_statistics import LaggedStatistics
from beam_jobs.ranking_requests import RankingBatch, RankingRequests
from beam_jobs.runners import count, run_pipeline
from beam_jobs.transform_graph import TransformGraph
from beam_jobs.user_shards import GroupByUserShard, UserShard, num_shards_of
from schemas.artifacts import join
from schemas.config import (
    BeamConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.events import EventSchema
from schemas.examples import FILE_PATTERN, ranking_keys, ranking_observations
from schemas.features import FeatureSet, feature_set
from schemas.requests import raw_inputs

_CHUNK = 1024


def run(
    *,
    files: Mapping[str, Mapping[str, Sequence[str]]],
    users: Sequence[str],
    videos: Sequence[str],
    transform_path: str,
    output: str,
    parts: Sequence[str],
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
    shards: BeamConfig,
    utc_offset_hours: float,
    options: PipelineOptions,
) -> dict[str, int]:
    """Writes `<part>-*.tfrecord` for each part, and `statistics.parquet`.

    Context is all that is in `files` and strictly before the request; lagged
    statistics are those of the days strictly before its day.

    Args:
      files: timed event table -> part (train, valid, test) -> Parquet files.
        The training job passes train and valid, the test job all three.
      users, videos: files of these tables; `users` may be empty.
      transform_path: the folder `transform_fn`.
      output: folder to write into.
      parts: whose impressions become examples.
      schema: what the log has.
      retrieval, ranking: lengths of lists, and which features there are.
      shards: number of user shards (hence of files) and their bounds.
      utc_offset_hours: local time.
      options: of Beam.

    Returns:
      Counters `<part>_requests`, `<part>_examples`, `<part>_candidates`.

    Raises:
      InputError: unreadable events.
      ValueError: a part whose impressions are not in `files`.
    """
    unknown = sorted(set(parts) - set(files["impressions"]))
    if unknown:
        raise ValueError(
            f"Examples of {unknown} need their impressions; received those "
            f"of {sorted(files['impressions'])}. Pass these files too."
        )
    statistics_path = None
    if ranking.lagged_statistics:
        statistics_path = join(output, lagged_statistics.FILE)
        lagged_statistics.run(
            [f for p in files["impressions"].values() for f in p],
            statistics_path,
            utc_offset_hours,
            options,
        )
    sources = {t: dict(p) for t, p in files.items() if schema.has(t)}
    if schema.has("users"):
        sources["users"] = {"all": users}
    num_shards = num_shards_of(sources, shards.num_shards)
    write = _WriteExamples(
        parts=parts,
        output=output,
        num_shards=num_shards,
        transform_path=transform_path,
        statistics_path=statistics_path,
        videos=videos,
        schema=schema,
        retrieval=retrieval,
        ranking=ranking,
        utc_offset_hours=utc_offset_hours,
    )
    with run_pipeline(options) as job:
        _ = (
            job.pipeline
            | "Shards"
            >> GroupByUserShard(
                sources, schema, num_shards, shards.max_events_per_user
            )
            | "Write" >> beam.ParDo(write)
        )
    return job.counts


class _WriteExamples(beam.DoFn):
    """Writes the examples of one user shard, a file per part."""

    def __init__(
        self,
        *,
        parts: Sequence[str],
        output: str,
        num_shards: int,
        transform_path: str,
        statistics_path: str | None,
        videos: Sequence[str],
        schema: EventSchema,
        retrieval: RetrievalExamplesConfig,
        ranking: RankingExamplesConfig,
        utc_offset_hours: float,
    ) -> None:
        self._parts = parts
        self._output = output
        self._num_shards = num_shards
        self._statistics_path = statistics_path
        self._videos = videos
        self._schema = schema
        self._max_candidates = ranking.max_candidates
        self._utc_offset_hours = utc_offset_hours
        self._features = feature_set(schema, retrieval, ranking)
        self._inputs = raw_inputs(schema, retrieval, ranking)
        self._keys = ranking_keys(
            self._features, schema, ranking.max_candidates
        )
        self._transform = TransformGraph(
            transform_path, [f.name for f in self._features]
        )

    def setup(self) -> None:
        self._statistics = None
        if self._statistics_path is not None:
            catalogue = VideoCatalogue.read(self._videos, self._schema)
            self._statistics = LaggedStatistics.read(
                self._statistics_path, catalogue
            )

    def process(self, shard: UserShard) -> Iterator[None]:
        labels = label_values(shard, self._schema)
        for part in self._parts:
            name = FILE_PATTERN.format(
                part=part, shard=shard.shard, shards=self._num_shards
            )
            requests = RankingRequests(
                shard,
                self._inputs,
                (part,),
                self._max_candidates,
                self._statistics,
                self._utc_offset_hours,
            )
            with ExampleWriter(join(self._output, name), self._keys) as writer:
                for start in range(0, len(requests), _CHUNK):
                    batch = requests.batch(start, start + _CHUNK)
                    writer.write(self._columns(batch, labels))
                    count(f"{part}_candidates", batch.candidate_count.sum())
            count(f"{part}_examples", len(requests))
            count(f"{part}_requests", requests.num_requests)
        yield from ()

    def _columns(
        self, batch: RankingBatch, labels: Mapping[str, np.ndarray]
    ) -> dict[str, Column]:
        return example_columns(
            self._transform(batch.raw),
            self._features,
            batch.raw,
            batch.user_id,
            batch.request_key,
            batch.candidate_count,
            {name: column[batch.rows] for name, column in labels.items()},
        )


def example_columns(
    transformed: Mapping[str, np.ndarray],
    features: FeatureSet,
    raw: Mapping[str, np.ndarray],
    user_id: np.ndarray,
    request_key: np.ndarray,
    candidate_count: np.ndarray,
    labels: Mapping[str, np.ndarray],
) -> dict[str, Column]:
    """The columns of E examples, as `schemas.examples.ranking_keys` says.

    Args:
      transformed: features of `raw`.
      features: all of the log's.
      raw: raw requests, [E, ...].
      user_id, request_key, candidate_count: [E].
      labels: float32 [E, C] by name.
    """
    no_position = np.zeros(raw["candidate_video_id"].shape, np.int64)
    return feature_columns(transformed, features) | {
        "user_id": user_id,
        "request_time_us": raw["request_time_us"],
        "request_key": request_key,
        "candidate_count": candidate_count,
        "position": raw.get("candidate_position", no_position),
        **labels,
    }


def feature_columns(
    transformed: Mapping[str, np.ndarray], features: FeatureSet
) -> dict[str, Column]:
    """Transformed features as stored: bags of a request lose their padding."""
    return {
        f.name: without_padding(transformed[f.name])
        if f.kind == "bag" and f.scope != "candidate"
        else transformed[f.name]
        for f in features
    }


def label_values(
    shard: UserShard, schema: EventSchema
) -> dict[str, np.ndarray]:
    """Label columns float32 [n + 1]; NaN where null, and as the last row."""
    labels = {}
    for name in ranking_observations(schema):
        column = name if name not in schema.labels else f"labels.{name}"
        values = shard.arrow("impressions", column).cast("float64")
        labels[name] = np.append(
            values.to_numpy(zero_copy_only=False), np.nan
        ).astype(np.float32)
    return labels
