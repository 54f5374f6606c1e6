"""Counts terms on training days and keeps the most frequent of each ID space.

What is counted:
  video: completed watches of every source (paper, section 3.4: what users
    discover outside our recommendations must enter), plus clicked impressions
    that are not already among the watches: those without a watch of the same
    user and video in the 10 minutes from the click.
  token: unigrams and bigrams of all searches.
  other spaces: the values of each clicked impression, of its video and of its
    user; completed watches where the log has no impressions.
Undated watches are not counted, and a watch that ends after the training
interval is not completed in it. Counting is by Arrow per user shard; one small
table per (shard, space) goes to the merge.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.histories import TimeIndex, string_objects
from beam_jobs.runners import count, run_pipeline
from beam_jobs.tokens import query_tokens
from beam_jobs.user_shards import GroupByUserShard, UserShard, num_shards_of
from beam_jobs.watch_rows import completed_rows
from schemas.config import BeamConfig, VocabulariesConfig
from schemas.errors import InputError
from schemas.events import EventSchema
from schemas.features import FIXED_SPACES, FeatureSet, extra_space
from schemas.split import SplitBounds
from schemas.vocabularies import (
    FORBIDDEN_CHARACTERS,
    Vocabulary,
    read_vocabulary,
    vocabulary_files,
)

# A click is "already among the watches" if the user's watch of the video
# begins within this time.
CLICK_TO_WATCH_US = 600_000_000
# Bundles of a space are added up in so many groups first, then the groups: a
# single worker would have to take in a table of all videos per bundle.
FANOUT = 16
_COUNTS = pa.schema([("term", pa.string()), ("count", pa.int64())])


@dataclasses.dataclass(frozen=True)
class TermColumn:
    """A column whose values are terms of a space."""

    space: str
    table: str
    column: str


def run(
    train_files: Mapping[str, Sequence[str]],
    users_files: Sequence[str],
    videos_files: Sequence[str],
    bounds: SplitBounds,
    schema: EventSchema,
    features: FeatureSet,
    config: VocabulariesConfig,
    beam_config: BeamConfig,
    output: str,
    options: PipelineOptions,
) -> dict[str, int]:
    """Writes `<space>.txt` and `<space>.counts.txt` for each space.

    Args:
      train_files: timed table -> files of the split's training part.
      users_files, videos_files: of the events stage.
      bounds: of the split; gives the end of training.
      schema: what the log has.
      features: decides which spaces there are.
      config: sizes.
      beam_config: shards and the cap on heavy users.
      output: an existing folder.
      options: of the runner.

    Returns:
      counts: `<space>_terms` kept and `<space>_terms_refused` (terms with a
      line break) per space, and the user cap's.

    Raises:
      InputError: no training watch is completed, so there is no video.
    """
    spaces = vocabulary_spaces(features)
    sources = {t: {"train": files} for t, files in train_files.items()}
    if schema.has("users"):
        sources["users"] = {"all": users_files}
    with run_pipeline(options) as job:
        _ = (
            job.pipeline
            | "Group"
            >> GroupByUserShard(
                sources,
                schema,
                num_shards_of(sources, beam_config.num_shards),
                beam_config.max_events_per_user,
            )
            | "Count"
            >> beam.ParDo(_CountShard(videos_files, bounds, schema, spaces))
            | "EverySpace" >> _WithEverySpace(spaces)
            | "Merge"
            >> beam.CombinePerKey(MergeCounts()).with_hot_key_fanout(FANOUT)
            | "Write" >> beam.Map(_write, config=config, output=output)
        )
    # Of the file: an engine's counters may lack a bundle.
    if read_vocabulary(output, "video").size == 0:
        raise InputError(
            "No video to learn from: no training watch is completed and no "
            "impression clicked. Check the mapping's `completed` and the "
            "section `split`."
        )
    return job.counts


def vocabulary_spaces(features: FeatureSet) -> tuple[str, ...]:
    """Spaces with a vocabulary file."""
    spaces = features.spaces("query", "request", "candidate")
    return tuple(s for s in spaces if s not in FIXED_SPACES)


def term_columns(schema: EventSchema) -> tuple[TermColumn, ...]:
    """Columns counted by clicked impression (or watch), per space."""
    columns = [
        TermColumn("channel", "videos", "channel_id"),
        TermColumn("topic", "videos", "topics"),
        TermColumn("language", "videos", "language"),
        TermColumn("surface", "impressions", "surface"),
        TermColumn("candidate_source", "impressions", "candidate_source"),
    ]
    columns += [
        TermColumn(name, "users", name)
        for name in ("region", "device", "language", "gender", "logged_in")
    ]
    present = [c for c in columns if schema.has(c.table, c.column)]
    for table in ("users", "videos", "impressions"):
        if schema.has(table):
            present += [
                TermColumn(extra_space(extra), table, extra.name)
                for extra in schema.extras_of(table)
                if extra.kind in ("categorical", "categorical_list")
            ]
    return tuple(present)


def count_shard(
    shard: UserShard,
    catalogue: VideoCatalogue,
    bounds: SplitBounds,
    schema: EventSchema,
    spaces: Sequence[str],
) -> Iterator[tuple[str, pa.Table]]:
    """Yields (space, table of term and count) of one shard."""
    watched = completed_rows(shard, "train", bounds.train_end_us)
    terms: dict[str, list[pa.Array]] = {space: [] for space in spaces}
    terms["video"] = [shard.arrow("watches", "video_id").take(watched)]
    basis, rows = "watches", watched
    if schema.has("impressions"):
        clicked = shard.numpy("impressions", "clicked").astype(bool)
        basis, rows = "impressions", np.flatnonzero(clicked)
        unwatched = rows[_without_watch(shard, rows)]
        terms["video"].append(
            shard.arrow("impressions", "video_id").take(unwatched)
        )
    for space, values in _term_values(shard, catalogue, schema, basis, rows):
        if space in terms and space != "video":
            terms[space].append(values)
    for space, arrays in terms.items():
        yield space, _counted(arrays)
    if "token" in terms and schema.has("searches"):
        yield "token", _counted_tokens(shard.arrow("searches", "query"))


class MergeCounts(beam.CombineFn):
    """Adds up tables of term and count.

    Tables wait in the accumulator, to be added up some at a time; one that
    travels has been added up to a row a term.
    """

    _WAITING = 16

    def create_accumulator(self) -> list[pa.Table]:
        return []

    def add_input(
        self, accumulator: list[pa.Table], element: pa.Table
    ) -> list[pa.Table]:
        accumulator.append(element)
        if len(accumulator) > self._WAITING:
            return self.compact(accumulator)
        return accumulator

    def merge_accumulators(
        self, accumulators: Iterable[list[pa.Table]]
    ) -> list[pa.Table]:
        # Lazily: accumulators of many bundles are not in memory at once.
        merged: list[pa.Table] = []
        for tables in accumulators:
            for table in tables:
                merged = self.add_input(merged, table)
        return self.compact(merged)

    def compact(self, accumulator: list[pa.Table]) -> list[pa.Table]:
        return [add_up(accumulator)]

    def extract_output(self, accumulator: list[pa.Table]) -> pa.Table:
        return add_up(accumulator)


def add_up(tables: Sequence[pa.Table]) -> pa.Table:
    """Sums the counts of equal terms; rows in no order."""
    rows = pa.concat_tables([_COUNTS.empty_table(), *tables])
    sums = rows.group_by("term").aggregate([("count", "sum")])
    return sums.select(["term", "count_sum"]).rename_columns(_COUNTS.names)


def most_frequent(
    counts: pa.Table, max_size: int, min_count: int
) -> tuple[pa.Table, int]:
    """Sorts by falling count, ties by term; keeps at most `max_size`.

    Returns:
      The kept rows, and how many terms were refused for a line break.
    """
    refused = pc.match_substring_regex(
        counts.column("term"), "[" + "".join(FORBIDDEN_CHARACTERS) + "]"
    )
    good = counts.filter(
        pc.and_(
            pc.invert(refused),
            pc.greater_equal(counts.column("count"), min_count),
        )
    )
    order = pc.sort_indices(
        good, [("count", "descending"), ("term", "ascending")]
    )
    kept = good.take(order).slice(0, max_size)
    return kept, int(pc.sum(refused).as_py() or 0)


class _CountShard(beam.DoFn):
    def __init__(
        self,
        videos_files: Sequence[str],
        bounds: SplitBounds,
        schema: EventSchema,
        spaces: Sequence[str],
    ) -> None:
        self._videos_files = list(videos_files)
        self._arguments = (bounds, schema, tuple(spaces))

    def setup(self) -> None:
        schema = self._arguments[1]
        self._catalogue = VideoCatalogue.read(self._videos_files, schema)

    def process(self, shard: UserShard) -> Iterator[tuple[str, pa.Table]]:
        yield from count_shard(shard, self._catalogue, *self._arguments)


class _WithEverySpace(beam.PTransform):
    """Adds an empty table per space: each gets its file."""

    def __init__(self, spaces: Sequence[str]) -> None:
        super().__init__()
        self._empty = [(space, _COUNTS.empty_table()) for space in spaces]

    def expand(self, counted: beam.PCollection) -> beam.PCollection:
        empty = counted.pipeline | beam.Create(self._empty, reshuffle=False)
        return (counted, empty) | beam.Flatten()


def _term_values(
    shard: UserShard,
    catalogue: VideoCatalogue,
    schema: EventSchema,
    basis: str,
    rows: np.ndarray,
) -> Iterator[tuple[str, pa.Array]]:
    """Values of every term column at the given rows of `basis`."""
    columns = term_columns(schema)
    videos = catalogue.rows(shard.arrow(basis, "video_id").take(rows))
    for column in columns:
        if column.table == "videos":
            yield column.space, catalogue.take(column.column, videos)
        elif column.table == "impressions":
            if basis == "impressions":
                yield column.space, shard.arrow(basis, column.column).take(rows)
        else:
            of_user = np.full(len(shard.user_ids), -1, np.int64)
            codes = shard.user_codes["users"]
            of_user[codes] = np.arange(codes.size)
            found = of_user[shard.user_codes[basis][rows]]
            index = pa.array(found, mask=found < 0)
            yield column.space, shard.arrow("users", column.column).take(index)


def _without_watch(shard: UserShard, rows: np.ndarray) -> np.ndarray:
    """bool [n]: clicks that no watch of the same user and video follows."""
    watched = shard.arrow("watches", "video_id")
    clicked = shard.arrow("impressions", "video_id").take(rows)
    videos = pc.unique(pa.chunked_array([watched, clicked]))

    def pairs(users: np.ndarray, names: pa.Array) -> np.ndarray:
        video = pc.index_in(names, value_set=videos).to_numpy()
        return users * len(videos) + video.astype(np.int64)

    watch_pairs = pairs(shard.user_codes["watches"], watched)
    watch_times = shard.times_us("watches")
    order = np.lexsort((watch_times, watch_pairs))
    watch_pairs, watch_times = watch_pairs[order], watch_times[order]
    click_pairs = pairs(shard.user_codes["impressions"][rows], clicked)
    click_times = shard.times_us("impressions")[rows]
    # The first watch of the pair that begins at the click or later.
    _, following = TimeIndex(watch_pairs, watch_times).before(
        click_pairs, click_times
    )
    found = following < watch_pairs.size
    at = following[found]
    found[found] = (watch_pairs[at] == click_pairs[found]) & (
        watch_times[at] - click_times[found] <= CLICK_TO_WATCH_US
    )
    return ~found


def _counted(arrays: Sequence[pa.Array]) -> pa.Table:
    """Counts values; lists count each of their terms; null and "" do not."""
    tables = []
    for values in arrays:
        if pa.types.is_list(values.type):
            values = values.flatten()
        if pa.types.is_boolean(values.type):
            names = pa.array(["false", "true"])
            values = names.take(values.cast(pa.int8()))
        values = values.filter(pc.fill_null(pc.not_equal(values, ""), False))
        found = pc.value_counts(values)
        tables.append(
            pa.Table.from_arrays(
                [found.field("values"), found.field("counts")], schema=_COUNTS
            )
        )
    return add_up(tables)


def _counted_tokens(queries: pa.Array) -> pa.Table:
    # Each distinct query is tokenized once, its tokens weighted.
    found = pc.value_counts(queries)
    tokens, splits = query_tokens(string_objects(found.field("values")))
    weights = np.repeat(found.field("counts").to_numpy(), np.diff(splits))
    terms = pa.array(tokens, pa.binary()).cast(pa.string())
    return add_up(
        [pa.Table.from_arrays([terms, pa.array(weights)], schema=_COUNTS)]
    )


def _write(
    item: tuple[str, pa.Table], config: VocabulariesConfig, output: str
) -> None:
    space, counts = item
    size = config.max_size.get(space, config.default_max_size)
    kept, refused = most_frequent(counts, size, config.min_count)
    vocabulary = Vocabulary(
        space,
        kept.column("term").combine_chunks(),
        kept.column("count").to_numpy(),
    )
    vocabulary.write(*vocabulary_files(output, space))
    count(f"{space}_terms", vocabulary.size)
    count(f"{space}_terms_refused", refused)
