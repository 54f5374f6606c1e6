"""The video table inside the transform graph: what is known of each video.

A request names videos by id alone, so the graph carries their channel, topics,
upload time and duration as constants; the ids themselves are an asset file.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.output_files import write_bytes
from schemas.errors import InputError
from schemas.events import EventSchema
from schemas.features import (
    OUT_OF_VOCABULARY_ID,
    PADDING_ID,
    FeatureSet,
    extra_space,
)
from schemas.vocabularies import FORBIDDEN_CHARACTERS, Vocabulary

# Codes of a channel or topic that is not known: equal to no other code,
# because comparisons ask for a code of at least 0 as well.
NO_CODE = -1


@dataclasses.dataclass(frozen=True)
class VideoTable:
    """Columns of the N videos and, as row N, of a video that is not known.

    Codes tell channels and topics apart whether or not they are in a
    vocabulary; ids are those of the vocabularies.

    Attributes:
      path: text file with a video id a line, line i (from 0) is row i.
      channel_codes: int32 [N + 1], `NO_CODE` where the video has none.
      topic_codes: int32 [N + 1, T], filled up by `NO_CODE`; the first
        `max_list` topics of a video, as many as the feature has.
      upload_time_us: int64 [N + 1], 0 where not known.
      duration_s: float32 [N + 1], NaN where not known.
      ids: feature name -> int64 [N + 1] or bags [N + 1, max_length].
      values: feature name -> float32 [N + 1], NaN where not known.
    """

    path: str
    channel_codes: np.ndarray
    topic_codes: np.ndarray
    upload_time_us: np.ndarray
    duration_s: np.ndarray
    ids: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]

    @classmethod
    def build(
        cls,
        catalogue: VideoCatalogue,
        path: str,
        schema: EventSchema,
        features: FeatureSet,
        vocabularies: Mapping[str, Vocabulary],
        max_list: int,
    ) -> "VideoTable":
        """Encodes the catalogue's rows and writes their ids to `path`.

        Raises:
          InputError: an id contains a line break.
        """
        _write_lines(path, catalogue.video_ids)
        names = {f.name for f in features}
        ids, values = {}, {}

        def add_ids(name: str, space: str, column: str) -> None:
            if name not in names:
                return
            terms, vocabulary = catalogue.column(column), vocabularies[space]
            length = features[name].max_length
            if length is None:
                ids[name] = _with(vocabulary.ids(terms), OUT_OF_VOCABULARY_ID)
            else:
                flat = vocabulary.ids(terms.flatten())
                ids[name] = _padded(terms, flat, length, PADDING_ID)

        add_ids("channel", "channel", "channel_id")
        add_ids("query_channel", "channel", "channel_id")
        add_ids("topics", "topic", "topics")
        add_ids("query_topics", "topic", "topics")
        add_ids("video_language", "language", "language")
        for extra in schema.extras_of("videos"):
            if extra.kind == "continuous":
                values[f"video_{extra.name}"] = _with(
                    _floats(catalogue.column(extra.name)), np.nan
                )
            elif extra.kind != "text":
                add_ids(f"video_{extra.name}", extra_space(extra), extra.name)
        topics = catalogue.topics
        longest = pc.max(pc.list_value_length(topics)).as_py() or 1
        uploads = pc.fill_null(catalogue.upload_time_us, 0).to_numpy()
        return cls(
            path=path,
            channel_codes=_with(_codes(catalogue.channel_id), NO_CODE),
            topic_codes=_padded(
                topics,
                _codes(topics.flatten()),
                min(longest, max_list),
                NO_CODE,
            ),
            upload_time_us=_with(uploads, 0),
            duration_s=_with(_floats(catalogue.duration_s), np.nan),
            ids=ids,
            values=values,
        )


class VideoRows:
    """Columns of a `VideoTable` by video id, in TensorFlow.

    To be made inside the graph that uses it, where each column becomes one
    constant, however often it is gathered.

    Args:
      table: the columns.
      lookup: a table over the lines of `table.path`: id -> row, -1 unknown.
    """

    def __init__(
        self, table: VideoTable, lookup: tf.lookup.StaticHashTable
    ) -> None:
        self._table = table
        self._lookup = lookup
        self._constants: dict[str, tf.Tensor] = {}

    def rows(self, video_ids: tf.Tensor) -> tf.Tensor:
        """Rows of video ids, int64 of their shape; unknown ones are row N."""
        unknown = tf.constant(len(self._table.duration_s) - 1, tf.int64)
        found = self._lookup.lookup(video_ids)
        return tf.where(found < 0, unknown, found)

    def column(self, name: str, rows: tf.Tensor) -> tf.Tensor:
        """Gathers an attribute of the table, or a feature's ids or values."""
        if name not in self._constants:
            table = self._table
            columns = {**vars(table), **table.ids, **table.values}
            self._constants[name] = tf.constant(columns[name])
        return tf.gather(self._constants[name], rows)


def _floats(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(np.float32)


def _with(values: np.ndarray, unknown: float) -> np.ndarray:
    """Appends the row of the unknown video."""
    return np.append(values, np.array(unknown, values.dtype))


def _codes(terms: pa.Array) -> np.ndarray:
    """A number per distinct term, int32 [n]; null has `NO_CODE`."""
    indices = terms.dictionary_encode().indices
    return pc.fill_null(indices, NO_CODE).to_numpy().astype(np.int32)


def _padded(
    lists: pa.Array, flat: np.ndarray, length: int, padding: int
) -> np.ndarray:
    """Lists as rows [N + 1, length]: cut after `length`, filled up."""
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    starts = np.cumsum(sizes) - sizes
    rows = np.full((len(sizes) + 1, length), padding, flat.dtype)
    slots = np.arange(length)
    filled = slots < sizes[:, None]
    rows[:-1][filled] = flat[(starts[:, None] + slots)[filled]]
    return rows


def _write_lines(path: str, ids: pa.Array) -> None:
    for character in FORBIDDEN_CHARACTERS:
        broken = ids.filter(pc.match_substring(ids, character))
        if len(broken):
            raise InputError(
                f"Video id {broken[0].as_py()!r} contains a line break, "
                "which the transform's asset file cannot hold; map the id to "
                "another."
            )
    write_bytes(path, "".join(f"{v}\n" for v in ids.to_pylist()).encode())
