"""The transform: one TFT graph from raw requests to features.

In go the training days and the vocabularies, out comes `transform_fn/`, whose
graph the example jobs apply (`TransformGraph`) and the SavedModels carry.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_transform.beam as tft_beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from tensorflow_transform.tf_metadata.dataset_metadata import DatasetMetadata
from tfx_bsl.tfxio import tensor_adapter, tensor_representation_util

from beam_jobs import lagged_statistics
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.events import count_rows
from beam_jobs.histories import RawRequests
from beam_jobs.preprocessing import ROW_KEY, make_preprocessing_fn
from beam_jobs.ranking_requests import RankingRequests
from beam_jobs.reproducible_model import make_reproducible
from beam_jobs.runners import count, run_pipeline
from beam_jobs.transform_graph import TransformGraph
from beam_jobs.user_shards import GroupByUserShard, UserShard, num_shards_of
from beam_jobs.video_table import VideoTable
from beam_jobs.watch_rows import completed_rows
from schemas.artifacts import join
from schemas.config import (
    BeamConfig,
    NormalizationConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.events import EventSchema
from schemas.features import FIXED_SPACES, FeatureSet, feature_set
from schemas.hashing import hash_strings, mix, uniform
from schemas.requests import RawInput, raw_inputs
from schemas.vocabularies import read_vocabulary

__all__ = ["FOLDER", "TransformGraph", "run"]

FOLDER = "transform_fn"
_CHUNK = 1024


def run(
    *,
    files: Mapping[str, Sequence[str]],
    vocabulary_folder: str,
    output: str,
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
    normalization: NormalizationConfig,
    shards: BeamConfig,
    seed: int,
    train_end_us: int,
    utc_offset_hours: float,
    options: PipelineOptions,
) -> dict[str, int]:
    """Analyses the training requests and saves the transform graph.

    The sample that fixes the knots is chosen in two steps, both by stable
    hashes: requests, so that about `sample_size` candidates are expected of
    them, before their histories are built; then at most `sample_size` rows.
    Where there are fewer rows than that, all of them are analysed.

    Args:
      files: event table -> Parquet files, of the training part for watches,
        searches and impressions; users and videos as they are.
      vocabulary_folder: has `<space>.txt` and its counts for each space.
      output: folder in which `transform_fn/` is written.
      schema: what the log has.
      retrieval, ranking: lengths of lists, and which features there are.
      normalization: of continuous features.
      shards: number of user shards and their bounds.
      seed: of the sample.
      train_end_us: of the split; a watch that ends later is no label.
      utc_offset_hours: local time.
      options: of Beam.

    Returns:
      Counters: requests_analyzed, candidates_analyzed.

    Raises:
      InputError, ArtifactError: unreadable events or vocabularies.
    """
    features = feature_set(schema, retrieval, ranking)
    inputs = raw_inputs(schema, retrieval, ranking)
    catalogue = VideoCatalogue.read(files["videos"], schema)
    scratch = join(output, "tmp-transform")
    FileSystems.mkdirs(scratch)
    try:
        statistics_path = None
        if schema.has("impressions") and ranking.lagged_statistics:
            statistics_path = join(scratch, lagged_statistics.FILE)
            lagged_statistics.run(
                files["impressions"], statistics_path, utc_offset_hours, options
            )
        requests = _BuildRequests(
            inputs=inputs,
            max_candidates=ranking.max_candidates,
            statistics_path=statistics_path,
            video_files=files["videos"],
            schema=schema,
            train_end_us=train_end_us,
            utc_offset_hours=utc_offset_hours,
            share=_share(files, schema, normalization.sample_size),
            seed=seed,
        )
        preprocessing_fn = make_preprocessing_fn(
            features,
            vocabulary_folder,
            _video_table(
                catalogue,
                join(scratch, "videos.txt"),
                schema,
                features,
                vocabulary_folder,
                ranking.max_list,
            ),
            normalization,
            seed,
            utc_offset_hours,
        )
        with run_pipeline(options) as job:
            batches = _batches(
                job.pipeline, files, schema, shards, requests, features
            )
            _analyze(
                batches, preprocessing_fn, inputs, scratch, join(output, FOLDER)
            )
        make_reproducible(join(output, FOLDER, "transform_fn"))
        return job.counts
    finally:
        FileSystems.delete([scratch])


def _video_table(
    catalogue: VideoCatalogue,
    path: str,
    schema: EventSchema,
    features: FeatureSet,
    vocabulary_folder: str,
    max_list: int,
) -> VideoTable:
    vocabularies = {
        space: read_vocabulary(vocabulary_folder, space)
        for space in features.spaces("request", "candidate")
        if space not in FIXED_SPACES
    }
    return VideoTable.build(
        catalogue, path, schema, features, vocabularies, max_list
    )


def _batches(
    pipeline: beam.Pipeline,
    files: Mapping[str, Sequence[str]],
    schema: EventSchema,
    shards: BeamConfig,
    requests: "_BuildRequests",
    features: FeatureSet,
) -> beam.PCollection:
    """The raw requests to analyse, as record batches."""
    if not any(f.kind == "continuous" for f in features):
        # Nothing to learn from the rows: the graph is all lookups.
        return pipeline | "No rows" >> beam.Create([], reshuffle=False)
    tables = [t for t in schema.columns if t != "videos"]
    sources = {
        table: {"all" if table == "users" else "train": files[table]}
        for table in tables
    }
    grouped = pipeline | "Shards" >> GroupByUserShard(
        sources,
        schema,
        num_shards_of(sources, shards.num_shards),
        shards.max_events_per_user,
    )
    return grouped | "Requests" >> beam.ParDo(requests)


def _analyze(
    batches: beam.PCollection,
    preprocessing_fn: Callable[..., dict[str, tf.Tensor]],
    inputs: Sequence[RawInput],
    scratch: str,
    path: str,
) -> None:
    specs = {i.name: tf.io.FixedLenFeature(i.shape, _dtype(i)) for i in inputs}
    specs[ROW_KEY] = tf.io.FixedLenFeature([], tf.int64)
    metadata = DatasetMetadata.from_feature_spec(specs)
    config = tensor_adapter.TensorAdapterConfig(
        _arrow_schema(inputs),
        tensor_representation_util.InferTensorRepresentationsFromSchema(
            metadata.schema
        ),
    )
    with tft_beam.Context(
        temp_dir=join(scratch, "tft"), force_tf_compat_v1=False
    ):
        transform_fn = (batches, config) | "Analyze" >> (
            tft_beam.AnalyzeDataset(preprocessing_fn)
        )
        _ = transform_fn | "Write" >> tft_beam.WriteTransformFn(path)


class _BuildRequests(beam.DoFn):
    """From a user shard to record batches of raw requests with row keys.

    The requests of the ranking model where the log has impressions, else the
    retrieval requests at the times of its labels, the completed watches.
    """

    def __init__(
        self,
        *,
        inputs: Sequence[RawInput],
        max_candidates: int,
        statistics_path: str | None,
        video_files: Sequence[str],
        schema: EventSchema,
        train_end_us: int,
        utc_offset_hours: float,
        share: float,
        seed: int,
    ) -> None:
        self._inputs = inputs
        self._max_candidates = max_candidates
        self._statistics_path = statistics_path
        self._video_files = video_files
        self._schema = schema
        self._train_end_us = train_end_us
        self._utc_offset_hours = utc_offset_hours
        self._share = share
        self._seed = seed

    def setup(self) -> None:
        self._statistics = None
        if self._statistics_path is not None:
            catalogue = VideoCatalogue.read(self._video_files, self._schema)
            self._statistics = lagged_statistics.LaggedStatistics.read(
                self._statistics_path, catalogue
            )

    def process(self, shard: UserShard) -> Iterator[pa.RecordBatch]:
        ranking = self._schema.has("impressions")
        build = self._ranking if ranking else self._retrieval
        for raw, row_key in build(shard):
            count("requests_analyzed", len(row_key))
            yield record_batch(raw, row_key, self._inputs)

    def _ranking(
        self, shard: UserShard
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        requests = RankingRequests(
            shard,
            self._inputs,
            ("train",),
            self._max_candidates,
            self._statistics,
            self._utc_offset_hours,
            self._share,
            self._seed,
        )
        for start in range(0, len(requests), _CHUNK):
            batch = requests.batch(start, start + _CHUNK)
            count("candidates_analyzed", batch.candidate_count.sum())
            yield batch.raw, batch.row_key

    def _retrieval(
        self, shard: UserShard
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        users = shard.user_codes["watches"]
        keys = mix(
            0,
            hash_strings(shard.user_ids)[users],
            hash_strings(shard.arrow("watches", "video_id")),
            shard.times_us("watches"),
        )
        labels = completed_rows(shard, "train", self._train_end_us)
        chosen = uniform(self._seed, keys[labels]) < self._share
        rows = labels[chosen]
        histories = RawRequests(shard, self._inputs)
        for start in range(0, len(rows), _CHUNK):
            some = rows[start : start + _CHUNK]
            times_us = shard.times_us("watches")[some]
            yield (
                histories(users[some], times_us),
                keys[some].astype(np.int64),
            )


def record_batch(
    raw: Mapping[str, np.ndarray],
    row_key: np.ndarray,
    inputs: Sequence[RawInput],
) -> pa.RecordBatch:
    """Raw requests [n, ...] as Arrow lists, as TFT takes them."""
    arrays = []
    for field in _arrow_schema(inputs):
        values = row_key if field.name == ROW_KEY else raw[field.name]
        width = int(np.prod(values.shape[1:], dtype=np.int64))
        offsets = pa.array(np.arange(len(values) + 1) * width, pa.int64())
        flat = pa.array(values.reshape(-1), field.type.value_type)
        arrays.append(pa.LargeListArray.from_arrays(offsets, flat))
    return pa.RecordBatch.from_arrays(arrays, schema=_arrow_schema(inputs))


def _arrow_schema(inputs: Sequence[RawInput]) -> pa.Schema:
    kinds = {
        "string": pa.large_binary(),
        "int64": pa.int64(),
        "float32": pa.float32(),
    }
    columns = [(i.name, pa.large_list(kinds[i.dtype])) for i in inputs]
    return pa.schema([*columns, (ROW_KEY, pa.large_list(pa.int64()))])


def _dtype(raw: RawInput) -> tf.DType:
    return tf.dtypes.as_dtype(raw.dtype)


def _share(
    files: Mapping[str, Sequence[str]], schema: EventSchema, sample_size: int
) -> float:
    """Share of the requests that are expected to have `sample_size` rows."""
    table = "impressions" if schema.has("impressions") else "watches"
    return min(1.0, sample_size / max(count_rows(files[table]), 1))
