"""Next-watch examples: a user's state, and the video watched next.

Paper, sections 3.3 and 3.4: a fixed number of examples per user so that users
count equally; the label is the next watch with the context rolled back to
before it (not a held-out random watch); the example age tells the model when
in the training window the watch took place.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.example_files import (
    Column,
    Distinct,
    FilesBehind,
    Ragged,
    Repeated,
    write_chunks,
)
from beam_jobs.histories import string_objects
from beam_jobs.query_features import QueryFeatures, Transform, direct_features
from beam_jobs.retrieval_labels import (
    Cases,
    Labels,
    choose_cases,
    choose_labels,
)
from beam_jobs.runners import count, run_pipeline
from beam_jobs.transform_graph import TransformGraph
from beam_jobs.user_shards import GroupByUserShard, UserShard, num_shards_of
from beam_jobs.watch_rows import PartName
from schemas.config import (
    BeamConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.events import EventSchema
from schemas.examples import FILE_PATTERN, retrieval_keys
from schemas.features import Feature, FeatureSet, feature_set
from schemas.requests import RawInput, retrieval_inputs
from schemas.split import SplitBounds
from schemas.vocabularies import Vocabulary, read_vocabulary

# Examples made at once: 4,096 x 50 ids are 1.6 MB.
CHUNK_ROWS = 4096


def run(
    split_files: Mapping[PartName, Mapping[str, Sequence[str]]],
    users_files: Sequence[str],
    bounds: SplitBounds,
    vocabularies: str,
    transform: Transform | str,
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
    beam_config: BeamConfig,
    seed: int,
    output: str,
    options: PipelineOptions,
    parts: Sequence[PartName] = ("train", "valid"),
    since_us: int | None = None,
) -> dict[str, int]:
    """Writes `<part>-*.tfrecord` for the given parts, one file per shard.

    Args:
      split_files: part -> timed table -> files. For validation cases give
        training and validation, for test cases all three: earlier parts are
        the context.
      users_files: of the events stage; unused if the log has no users table.
      bounds: of the split.
      vocabularies: folder of the vocabularies stage.
      transform: folder `transform_fn`, or a picklable callable like it.
      schema, retrieval, ranking, beam_config: as in the configuration.
      seed: decides which watches become labels.
      output: an existing folder.
      options: of the runner.
      parts: which files to write.
      since_us: training labels from this moment on only; N of each user are
        drawn from these. Ages and contexts stay those of the whole window.

    Returns:
      counts per part: `<part>_examples`, `<part>_users`,
      `<part>_labels_out_of_vocabulary` (no training example; a miss in
      evaluation), and the user cap's.
    """
    features = feature_set(schema, retrieval, ranking)
    sources: dict[str, dict[str, Sequence[str]]] = {}
    for part, tables in split_files.items():
        for table in ("watches", "searches"):
            if schema.has(table):
                sources.setdefault(table, {})[part] = tables[table]
    if schema.has("users"):
        sources["users"] = {"all": users_files}
    num_shards = num_shards_of(sources, beam_config.num_shards)
    builder = ExampleBuilder.of(
        transform, schema, retrieval, ranking, bounds, seed
    )
    with run_pipeline(options) as job:
        _ = (
            job.pipeline
            | "Group"
            >> GroupByUserShard(
                sources,
                schema,
                num_shards,
                beam_config.max_events_per_user,
            )
            | "Write"
            >> beam.ParDo(
                _WriteShard(
                    builder,
                    features,
                    vocabularies,
                    output,
                    num_shards,
                    tuple(parts),
                    since_us,
                )
            )
        )
    return job.counts


@dataclasses.dataclass(frozen=True)
class Moments:
    """Users just before a time, in the order they are written.

    Attributes:
      user_ids: object [U] of bytes, distinct.
      users: int64 [E], positions in `user_ids`.
      times_us: int64 [E].
      features: slice of the E -> the query features of these.
    """

    user_ids: np.ndarray
    users: np.ndarray
    times_us: np.ndarray
    features: Callable[[slice], dict[str, Column]]

    @classmethod
    def of_shard(
        cls,
        shard: UserShard,
        users: np.ndarray,
        times_us: np.ndarray,
        features: QueryFeatures,
    ) -> "Moments":
        """Moments whose features are rebuilt from the users' events."""
        return cls(
            string_objects(shard.user_ids),
            users,
            times_us,
            lambda rows: features(users[rows], times_us[rows]),
        )

    def holding_out(
        self, watches: np.ndarray, end_us: int, features: QueryFeatures
    ) -> "Moments":
        """The same, with all that the users did up to `end_us` but one watch.

        Args:
          watches: int64 [E], rows of the shard's watches.
          end_us: the end of what is known.
          features: of the shard.
        """
        ends_us = np.full_like(self.times_us, end_us)
        return dataclasses.replace(
            self,
            features=lambda rows: features(
                self.users[rows], ends_us[rows], watches[rows]
            ),
        )


@dataclasses.dataclass(frozen=True)
class ExampleBuilder:
    """Turns chosen moments into columns of examples."""

    transform: Transform
    inputs: tuple[RawInput, ...]
    features: tuple[Feature, ...]
    bounds: SplitBounds
    config: RetrievalExamplesConfig
    seed: int

    @classmethod
    def of(
        cls,
        transform: Transform | str,
        schema: EventSchema,
        retrieval: RetrievalExamplesConfig,
        ranking: RankingExamplesConfig,
        bounds: SplitBounds,
        seed: int,
    ) -> "ExampleBuilder":
        """The builder of a log; arguments as of `run`."""
        query = feature_set(schema, retrieval, ranking).select("query")
        if isinstance(transform, str):
            names = [f.name for f in query]
            transform = TransformGraph(transform, names, CHUNK_ROWS)
        inputs = retrieval_inputs(schema, retrieval, ranking)
        return cls(transform, inputs, query, bounds, retrieval, seed)

    def query_features(self, shard: UserShard) -> QueryFeatures:
        """The features of the users of a shard, at any time."""
        return QueryFeatures(shard, self.inputs, self.features, self.transform)

    def of_requests(
        self,
        user_ids: np.ndarray,
        times_us: np.ndarray,
        request: Callable[[slice], dict[str, np.ndarray]],
    ) -> Moments:
        """Moments whose raw requests are there already."""
        distinct, users = np.unique(user_ids, return_inverse=True)
        return Moments(
            distinct,
            users,
            times_us,
            lambda rows: {
                **direct_features(self.transform(request(rows)), self.features)
            },
        )

    def training(
        self, moments: Moments, ids: np.ndarray, weights: np.ndarray
    ) -> Iterator[dict[str, Column]]:
        """Chunks of training examples.

        Args:
          moments: just before each label's watch began.
          ids: int64 [E], the labels.
          weights: float32 [E].
        """
        window = self.bounds.train_end_us - self.bounds.log_start_us
        age = (self.bounds.train_end_us - moments.times_us) / window
        labels, weighted = Repeated.of(ids), Repeated.of(weights)
        for rows, columns in self._chunks(moments):
            columns["label"] = labels.slice(rows)
            columns["example_weight"] = weighted.slice(rows)
            if self.config.example_age:
                columns["example_age"] = age[rows].astype(np.float32)
            yield columns

    def evaluation(
        self, moments: Moments, cases: Cases
    ) -> Iterator[dict[str, Column]]:
        """Chunks of evaluation cases, at the moments of these."""
        for rows, columns in self._chunks(moments):
            columns["labels"] = _slice(cases.labels, rows)
            columns["seen"] = _slice(cases.seen, rows)
            yield columns

    def _chunks(
        self, moments: Moments
    ) -> Iterator[tuple[slice, dict[str, Column]]]:
        user_ids = Repeated(Distinct(moments.user_ids), moments.users)
        for start in range(0, moments.times_us.size, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            yield (
                rows,
                {
                    "user_id": user_ids.slice(rows),
                    "event_time_us": moments.times_us[rows],
                    **moments.features(rows),
                },
            )


class _WriteShard(beam.DoFn):
    """Writes one file per part of each shard."""

    def __init__(
        self,
        builder: ExampleBuilder,
        features: FeatureSet,
        vocabularies: str,
        output: str,
        num_shards: int,
        parts: tuple[PartName, ...],
        since_us: int | None,
    ) -> None:
        self._builder, self._features = builder, features
        self._vocabularies, self._output = vocabularies, output
        self._num_shards, self._parts = num_shards, parts
        self._since_us = since_us

    def setup(self) -> None:
        self._videos: Vocabulary = read_vocabulary(self._vocabularies, "video")
        self._files = FilesBehind()

    def process(self, shard: UserShard) -> None:
        ids = self._videos.ids(shard.arrow("watches", "video_id"))
        features = self._builder.query_features(shard)
        self._files.wait()
        for part in self._parts:
            if part == "train":
                self._write_training(shard, ids, features)
            else:
                self._write_cases(shard, ids, features, part)

    def finish_bundle(self) -> None:
        self._files.wait()

    def teardown(self) -> None:
        self._files.close()

    def _write_training(
        self, shard: UserShard, ids: np.ndarray, features: QueryFeatures
    ) -> None:
        builder = self._builder
        labels = choose_labels(
            shard,
            ids,
            builder.bounds,
            builder.config,
            builder.seed,
            self._since_us,
        )
        users = shard.user_codes["watches"][labels.rows]
        times_us = shard.times_us("watches")[labels.rows]
        moments = Moments.of_shard(shard, users, times_us, features)
        if builder.config.label == "held_out_watch":
            moments = moments.holding_out(
                labels.rows, builder.bounds.train_end_us, features
            )
        write_training(
            example_path(self._output, "train", shard.shard, self._num_shards),
            self._features,
            builder,
            moments,
            labels,
            self._files.write,
        )

    def _write_cases(
        self,
        shard: UserShard,
        ids: np.ndarray,
        features: QueryFeatures,
        part: PartName,
    ) -> None:
        cases = choose_cases(shard, ids, part)
        moments = Moments.of_shard(shard, cases.users, cases.times_us, features)
        keys = retrieval_keys(self._features, "evaluation", example_age=False)
        path = example_path(self._output, part, shard.shard, self._num_shards)
        self._files.write(path, keys, self._builder.evaluation(moments, cases))
        unknown = int(np.sum(cases.labels.values == 0))
        count(f"{part}_examples", cases.users.size)
        count(f"{part}_users", cases.users.size)
        count(f"{part}_labels", cases.labels.values.size)
        count(f"{part}_labels_out_of_vocabulary", unknown)


def example_path(folder: str, part: str, shard: int, shards: int) -> str:
    """Path of a shard's examples of a part."""
    name = FILE_PATTERN.format(part=part, shard=shard, shards=shards)
    return str(FileSystems.join(folder, name))


def write_training(
    path: str,
    features: FeatureSet,
    builder: ExampleBuilder,
    moments: Moments,
    labels: Labels,
    write: Callable[..., None] = write_chunks,
) -> None:
    """Writes and counts the training examples of a shard.

    Args:
      path: of the TFRecord file.
      features: all of the log's.
      builder: makes the columns.
      moments: of the labels, in their order.
      labels: chosen ones.
      write: like `write_chunks`; may return before it is done.
    """
    age = builder.config.example_age
    keys = retrieval_keys(features, "train", example_age=age)
    write(path, keys, builder.training(moments, labels.ids, labels.weights))
    count("train_examples", labels.ids.size)
    count("train_users", np.unique(moments.users).size)
    count("train_labels_out_of_vocabulary", labels.out_of_vocabulary)


def _slice(lists: Ragged, rows: slice) -> Ragged:
    splits = lists.row_splits[rows.start : rows.stop + 1]
    return Ragged(lists.values[splits[0] : splits[-1]], splits - splits[0])
