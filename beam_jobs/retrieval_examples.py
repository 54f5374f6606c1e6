"""Next-watch examples: a user's state, and the video watched next.

Paper, sections 3.3 and 3.4: a fixed number of examples per user so that users
count equally; the label is the next watch with the context rolled back to
before it (not a held-out random watch); the example age tells the model when
in the training window the watch took place.

Training: up to N labels per user, chosen and ordered by a stable hash, so that
neither shards nor runs matter. Evaluation: one case a user.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.example_files import (
    Column,
    ExampleWriter,
    Ragged,
    without_padding,
)
from beam_jobs.histories import RawRequests, TimeIndex, string_objects
from beam_jobs.runners import count, run_pipeline
from beam_jobs.transform_graph import TransformGraph
from beam_jobs.user_shards import GroupByUserShard, UserShard, num_shards_of
from beam_jobs.watch_rows import PartName, completed_rows
from schemas.config import (
    BeamConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.events import EventSchema
from schemas.examples import FILE_PATTERN, ExampleKey, retrieval_keys
from schemas.features import Feature, FeatureSet, feature_set
from schemas.hashing import hash_strings, mix
from schemas.requests import RawInput, raw_inputs
from schemas.split import SplitBounds
from schemas.vocabularies import Vocabulary, read_vocabulary

Transform = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
# Rows transformed at once: 4,096 x 50 strings are some 10 MB.
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

    Returns:
      counts per part: `<part>_examples`, `<part>_users`,
      `<part>_labels_out_of_vocabulary` (no training example; a miss in
      evaluation), and the user cap's.
    """
    features = feature_set(schema, retrieval, ranking)
    query = features.select("query")
    if isinstance(transform, str):
        transform = TransformGraph(transform, outputs=[f.name for f in query])
    sources: dict[str, dict[str, Sequence[str]]] = {}
    for part, tables in split_files.items():
        for table in ("watches", "searches"):
            if schema.has(table):
                sources.setdefault(table, {})[part] = tables[table]
    if schema.has("users"):
        sources["users"] = {"all": users_files}
    num_shards = num_shards_of(sources, beam_config.num_shards)
    builder = ExampleBuilder(
        transform=transform,
        inputs=tuple(
            raw
            for raw in raw_inputs(schema, retrieval, ranking)
            if not raw.ranking_only
        ),
        features=query,
        bounds=bounds,
        config=retrieval,
        seed=seed,
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
                )
            )
        )
    return job.counts


@dataclasses.dataclass(frozen=True)
class Labels:
    """Chosen training labels of a shard, in the order they are written.

    Attributes:
      rows: int64 [E], rows of the shard's watches.
      ids: int64 [E], 1 .. V.
      weights: float32 [E].
      out_of_vocabulary: watches left out because their video has no id.
    """

    rows: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    out_of_vocabulary: int


@dataclasses.dataclass(frozen=True)
class Cases:
    """Evaluation cases of a shard, one a user, in the order of users.

    Attributes:
      users, times_us: int64 [E]; the case is the user just before the time.
      labels: ids of the completed watches of the part, in time order; 0 is
        out of vocabulary.
      seen: distinct ids watched before, ascending.
    """

    users: np.ndarray
    times_us: np.ndarray
    labels: Ragged
    seen: Ragged


def choose_labels(
    shard: UserShard,
    ids: np.ndarray,
    bounds: SplitBounds,
    config: RetrievalExamplesConfig,
    seed: int,
) -> Labels:
    """Chooses up to N training labels of each user.

    A label is a completed, dated watch of the training part that ended in it,
    of a video in the vocabulary. Of more than N, those with the smallest hash
    of (seed, user, video, time) are taken: a draw without replacement that
    nothing but the watches themselves decides.

    Args:
      shard: the users' events.
      ids: int64 [n], the vocabulary id of each watch's video.
      bounds: of the split.
      config: N (`examples_per_user`) and the weights.
      seed: of the draw.

    Returns:
      Labels in the order of that hash: the file is a shuffled one.
    """
    rows = completed_rows(shard, "train", bounds.train_end_us)
    known = rows[ids[rows] > 0]
    users = shard.user_codes["watches"][known]
    draw = mix(
        seed,
        hash_strings(shard.user_ids)[users],
        hash_strings(shard.arrow("watches", "video_id").take(known)),
        shard.times_us("watches")[known],
    )
    order = np.lexsort((draw, users))
    first = np.searchsorted(users[order], users[order], side="left")
    limit = config.examples_per_user or known.size
    chosen = order[np.arange(order.size) - first < limit]
    chosen = chosen[np.argsort(draw[chosen], kind="stable")]
    emitted = np.bincount(users[chosen], minlength=len(shard.user_ids))
    weights = np.ones(chosen.size, np.float32)
    if config.equal_user_weights and config.examples_per_user:
        share = config.examples_per_user / emitted[users[chosen]]
        weights = share.astype(np.float32)
    labels = known[chosen]
    return Labels(labels, ids[labels], weights, rows.size - known.size)


def choose_cases(shard: UserShard, ids: np.ndarray, part: PartName) -> Cases:
    """One case per user with a completed, dated watch in the part.

    The case is just before the first of them; all of them are its labels.
    """
    rows = completed_rows(shard, part)
    users, times = shard.user_codes["watches"], shard.times_us("watches")
    owners, first, counts = np.unique(
        users[rows], return_index=True, return_counts=True
    )
    case_times = times[rows[first]]
    labels = Ragged(ids[rows], np.concatenate(([0], np.cumsum(counts))))
    start, end = TimeIndex(users, times).before(owners, case_times)
    return Cases(owners, case_times, labels, _seen(ids, start, end))


@dataclasses.dataclass(frozen=True)
class ExampleBuilder:
    """Turns chosen moments of a shard into columns of examples."""

    transform: Transform
    inputs: tuple[RawInput, ...]
    features: tuple[Feature, ...]
    bounds: SplitBounds
    config: RetrievalExamplesConfig
    seed: int

    def training(
        self, shard: UserShard, labels: Labels
    ) -> Iterator[dict[str, Column]]:
        """Chunks of training examples."""
        users = shard.user_codes["watches"][labels.rows]
        times = shard.times_us("watches")[labels.rows]
        window = self.bounds.train_end_us - self.bounds.log_start_us
        age = (self.bounds.train_end_us - times) / window
        for rows, columns in self._chunks(shard, users, times):
            columns["label"] = labels.ids[rows]
            columns["example_weight"] = labels.weights[rows]
            if self.config.example_age:
                columns["example_age"] = age[rows].astype(np.float32)
            yield columns

    def evaluation(
        self, shard: UserShard, cases: Cases
    ) -> Iterator[dict[str, Column]]:
        """Chunks of evaluation cases."""
        for rows, columns in self._chunks(shard, cases.users, cases.times_us):
            columns["labels"] = _slice(cases.labels, rows)
            columns["seen"] = _slice(cases.seen, rows)
            yield columns

    def _chunks(
        self, shard: UserShard, users: np.ndarray, times: np.ndarray
    ) -> Iterator[tuple[slice, dict[str, Column]]]:
        requests = RawRequests(shard, self.inputs)
        names = string_objects(shard.user_ids)
        for start in range(0, users.size, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            transformed = self.transform(requests(users[rows], times[rows]))
            columns: dict[str, Column] = {
                "user_id": names[users[rows]],
                "event_time_us": times[rows],
            }
            for feature in self.features:
                values = transformed[feature.name]
                bag = feature.kind == "bag"
                columns[feature.name] = (
                    without_padding(values) if bag else values
                )
            yield rows, columns


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
    ) -> None:
        self._builder, self._features = builder, features
        self._vocabularies, self._output = vocabularies, output
        self._num_shards, self._parts = num_shards, parts

    def setup(self) -> None:
        self._videos: Vocabulary = read_vocabulary(self._vocabularies, "video")

    def process(self, shard: UserShard) -> None:
        ids = self._videos.ids(shard.arrow("watches", "video_id"))
        for part in self._parts:
            if part == "train":
                self._write_training(shard, ids)
            else:
                self._write_cases(shard, ids, part)

    def _write_training(self, shard: UserShard, ids: np.ndarray) -> None:
        builder = self._builder
        labels = choose_labels(
            shard, ids, builder.bounds, builder.config, builder.seed
        )
        keys = retrieval_keys(
            self._features, "train", example_age=builder.config.example_age
        )
        self._write(shard, "train", keys, builder.training(shard, labels))
        users = np.unique(shard.user_codes["watches"][labels.rows])
        count("train_examples", labels.rows.size)
        count("train_users", users.size)
        count("train_labels_out_of_vocabulary", labels.out_of_vocabulary)

    def _write_cases(
        self, shard: UserShard, ids: np.ndarray, part: PartName
    ) -> None:
        cases = choose_cases(shard, ids, part)
        keys = retrieval_keys(self._features, "evaluation", example_age=False)
        chunks = self._builder.evaluation(shard, cases)
        self._write(shard, part, keys, chunks)
        unknown = int(np.sum(cases.labels.values == 0))
        count(f"{part}_examples", cases.users.size)
        count(f"{part}_users", cases.users.size)
        count(f"{part}_labels", cases.labels.values.size)
        count(f"{part}_labels_out_of_vocabulary", unknown)

    def _write(
        self,
        shard: UserShard,
        part: PartName,
        keys: Sequence[ExampleKey],
        chunks: Iterator[dict[str, Column]],
    ) -> None:
        name = FILE_PATTERN.format(
            part=part, shard=shard.shard, shards=self._num_shards
        )
        with ExampleWriter(FileSystems.join(self._output, name), keys) as file:
            for columns in chunks:
                file.write(columns)


def _seen(ids: np.ndarray, start: np.ndarray, end: np.ndarray) -> Ragged:
    """Distinct known ids of the rows start .. end - 1 of each case."""
    lengths = end - start
    case = np.repeat(np.arange(start.size), lengths)
    first = np.cumsum(lengths) - lengths
    rows = np.arange(case.size) - np.repeat(first - start, lengths)
    found = ids[rows]
    case, found = case[found > 0], found[found > 0]
    pairs = np.unique(np.stack([case, found], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=start.size)
    splits = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return Ragged(np.ascontiguousarray(pairs[:, 1]), splits)


def _slice(lists: Ragged, rows: slice) -> Ragged:
    splits = lists.row_splits[rows.start : rows.stop + 1]
    return Ragged(lists.values[splits[0] : splits[-1]], splits - splits[0])
