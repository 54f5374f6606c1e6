"""Analyse and transform rows by the project's TFT graph, file to file.

The graph is what `preprocessing.make_preprocessing_fn` builds for these nine
quantities: one pass of Beam chooses the knots, a second applies the saved
graph, as the example jobs do.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata.dataset_metadata import DatasetMetadata
from tfx_bsl.tfxio import tensor_adapter, tensor_representation_util

from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.histories import string_objects
from beam_jobs.preprocessing import ROW_KEY, make_preprocessing_fn
from beam_jobs.runners import pipeline_options, run_pipeline
from beam_jobs.transform import record_batch
from beam_jobs.transform_graph import TransformGraph
from beam_jobs.video_table import VideoTable
from benchmarks.logs import Log, read_log
from benchmarks.row_columns import (
    COLUMNS,
    INPUT_COLUMNS,
    MAX_CANDIDATES,
    NUM_QUANTILES,
    ROWS_FILE,
)
from schemas.config import Config, NormalizationConfig
from schemas.features import FeatureSet, feature_set
from schemas.requests import RawInput

_BATCH_REQUESTS = 1024
Raw = dict[str, np.ndarray]


def transform_rows(path: Path, output: Path) -> None:
    """Writes `<row group>.arrow`: a column [4] per quantity, rows in order.

    Args:
      path: the folder that `transform_rows.make_rows` filled.
      output: an existing folder; `transform_fn/` is written there too.
    """
    log, options = read_log(path), pipeline_options()
    features = _features(log)
    graph = str(output / "transform_fn")
    groups = range(pq.read_metadata(path / ROWS_FILE).num_row_groups)
    with run_pipeline(options) as job:
        batches = (
            job.pipeline
            | "Groups" >> beam.Create(groups)
            | "Requests" >> beam.ParDo(ReadRequests(path))
        )
        _analyze(batches, log, features, output, graph)
    with run_pipeline(options) as job:
        _ = (
            job.pipeline
            | "Groups" >> beam.Create(groups)
            | "Transform" >> beam.ParDo(Transform(path, graph, output))
        )


class ReadRequests(beam.DoFn):
    """From the number of a row group to record batches of raw requests."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def process(self, group: int) -> Iterator[pa.RecordBatch]:
        raw, keys, _ = read_requests(self._path, group)
        for start in range(0, len(keys), _BATCH_REQUESTS):
            rows = slice(start, start + _BATCH_REQUESTS)
            yield record_batch(
                {name: values[rows] for name, values in raw.items()},
                keys[rows],
                _inputs(),
            )


class Transform(beam.DoFn):
    """From the number of a row group to its file of features."""

    def __init__(self, path: Path, graph: str, output: Path) -> None:
        self._path, self._output = path, output
        self._graph = TransformGraph(graph, COLUMNS)

    def process(self, group: int) -> None:
        raw, _, present = read_requests(self._path, group)
        features = self._graph(raw)
        table = pa.table(
            {
                name: pa.FixedSizeListArray.from_arrays(
                    pa.array(features[name][present].reshape(-1)), 4
                )
                for name in COLUMNS
            }
        )
        with pa.ipc.new_file(
            self._output / f"{group:05d}.arrow", table.schema
        ) as writer:
            writer.write_table(table)


def read_requests(path: Path, group: int) -> tuple[Raw, np.ndarray, np.ndarray]:
    """The raw requests of a row group.

    Returns:
      raw inputs [B, C] and request_time_us [B], keys int64 [B], and which
      slots hold a row, bool [B, C].
    """
    rows = pq.ParquetFile(path / ROWS_FILE).read_row_group(group)
    columns = {n: rows.column(n).combine_chunks() for n in rows.column_names}
    slots = columns["slot"].to_numpy()
    starts = np.flatnonzero(slots == 0)
    request = np.cumsum(slots == 0) - 1
    shape = (len(starts), MAX_CANDIDATES)

    def packed(values: np.ndarray, absent: object) -> np.ndarray:
        dense = np.full(shape, absent, values.dtype)
        dense[request, slots] = values
        return dense

    raw = {
        name: packed(columns[name].to_numpy(zero_copy_only=False), np.nan)
        for name in INPUT_COLUMNS
    }
    raw["candidate_video_id"] = packed(string_objects(columns["video_id"]), b"")
    raw["request_time_us"] = columns["request_time_us"].to_numpy()[starts]
    present = packed(np.ones(len(slots), bool), False)
    return raw, columns["request_key"].to_numpy()[starts], present


def _inputs() -> tuple[RawInput, ...]:
    candidates = [
        RawInput(name, "float32", "candidate", MAX_CANDIDATES)
        for name in INPUT_COLUMNS
    ]
    return (
        RawInput("request_time_us", "int64", "request"),
        RawInput("candidate_video_id", "string", "candidate", MAX_CANDIDATES),
        *candidates,
    )


def _features(log: Log) -> FeatureSet:
    config = Config()
    found = feature_set(
        log.schema, config.retrieval_examples, config.ranking_examples
    )
    return FeatureSet(tuple(f for f in found if f.name in COLUMNS))


def _analyze(
    batches: beam.PCollection,
    log: Log,
    features: FeatureSet,
    output: Path,
    graph: str,
) -> None:
    """Chooses the knots and saves the graph."""
    config = Config()
    videos = VideoTable.build(
        VideoCatalogue.read(log.files("videos"), log.schema),
        str(output / "videos.txt"),
        log.schema,
        features,
        {},
        config.ranking_examples.max_list,
    )
    preprocessing_fn = make_preprocessing_fn(
        features,
        "",
        videos,
        NormalizationConfig(num_quantiles=NUM_QUANTILES),
        config.seed,
        0.0,
    )
    specs = {
        i.name: tf.io.FixedLenFeature(i.shape, tf.dtypes.as_dtype(i.dtype))
        for i in _inputs()
    }
    specs[ROW_KEY] = tf.io.FixedLenFeature([], tf.int64)
    empty = record_batch(
        {i.name: np.empty((0, *i.shape), i.numpy_dtype) for i in _inputs()},
        np.empty(0, np.int64),
        _inputs(),
    )
    adapter = tensor_adapter.TensorAdapterConfig(
        empty.schema,
        tensor_representation_util.InferTensorRepresentationsFromSchema(
            DatasetMetadata.from_feature_spec(specs).schema
        ),
    )
    with tft_beam.Context(
        temp_dir=str(output / "tft"), force_tf_compat_v1=False
    ):
        transform_fn = (batches, adapter) | "Analyze" >> (
            tft_beam.AnalyzeDataset(preprocessing_fn)
        )
        _ = transform_fn | "Write" >> tft_beam.WriteTransformFn(graph)


def main() -> None:
    """Transforms; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    transform_rows(args.path, args.output)
    rows = pq.read_metadata(args.path / ROWS_FILE).num_rows
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
