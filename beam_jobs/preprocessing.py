"""The function that TensorFlow Transform analyses and saves.

It puts together the formulas (`transform_features.py`), the vocabularies, the
video table and the normalisation. What comes out is one graph, applied in
Beam to write training examples and carried inside the SavedModels.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from apache_beam.io.filesystems import FileSystems

from beam_jobs.normalization import KnotsAnalyzer, max_knots, normalize
from beam_jobs.transform_features import Lookup, Tensors, raw_features
from beam_jobs.video_table import VideoRows, VideoTable
from schemas.config import NormalizationConfig
from schemas.features import CONTINUOUS_WIDTH, FIXED_SPACES, FeatureSet, Scope
from schemas.vocabularies import vocabulary_files

# Beside the raw request: a stable key of the row, for the sample of knots.
# No output depends on it, so serving does without.
ROW_KEY = "row_key"

_LARGEST = np.finfo(np.float32).max


def make_preprocessing_fn(
    features: FeatureSet,
    vocabulary_folder: str,
    videos: VideoTable,
    normalization: NormalizationConfig,
    seed: int,
    utc_offset_hours: float,
) -> Callable[[Tensors], dict[str, tf.Tensor]]:
    """Makes the `preprocessing_fn` that TFT analyses and saves.

    Args:
      features: what to emit; nothing else is computed.
      vocabulary_folder: has `<space>.txt` for every space of the features.
      videos: the video table, whose ids become an asset.
      normalization: of the continuous features, by one analyzer for rows of
        requests and one for rows of candidates.
      seed: of the sample of rows.
      utc_offset_hours: local time, for hour and weekday.

    Returns:
      A function of the raw inputs and `ROW_KEY` (int64 [B]). Each output
      depends on no input of a wider scope than its own.
    """

    def preprocessing_fn(raw: Tensors) -> dict[str, tf.Tensor]:
        lookups = {
            space: _vocabulary_lookup(vocabulary_folder, space)
            for space in features.spaces("query", "request", "candidate")
            if space not in FIXED_SPACES
        }
        rows = tft.make_and_track_object(
            lambda: _line_table(videos.path), name="video_table"
        )
        ids, values = raw_features(
            raw, features, lookups, VideoRows(videos, rows), utc_offset_hours
        )
        return ids | _normalized(
            values, raw[ROW_KEY], features, normalization, seed
        )

    return preprocessing_fn


@dataclasses.dataclass(frozen=True)
class _Block:
    """Continuous features of one shape, normalised together."""

    names: tuple[str, ...]
    knots: tf.Tensor  # float32 [F, M, 3]

    def apply(self, values: Tensors) -> dict[str, tf.Tensor]:
        """Features [..., 4] from values [...] by name."""
        stacked = _stack(values, self.names)
        flat = tf.reshape(stacked, [-1, len(self.names)])
        x = normalize(flat, self.knots[..., 0], self.knots[..., 1:])
        shape = tf.concat([tf.shape(stacked), [CONTINUOUS_WIDTH]], axis=0)
        x = tf.ensure_shape(
            tf.reshape(x, shape), [*stacked.shape, CONTINUOUS_WIDTH]
        )
        return {n: x[..., i, :] for i, n in enumerate(self.names)}


def _normalized(
    values: Tensors,
    row_key: tf.Tensor,
    features: FeatureSet,
    normalization: NormalizationConfig,
    seed: int,
) -> dict[str, tf.Tensor]:
    """Analyses the values of all rows and normalises them, [..., 4]."""

    def names(*scopes: Scope) -> tuple[str, ...]:
        chosen = features.select(*scopes, kind="continuous")
        return tuple(f.name for f in chosen)

    normalized: dict[str, tf.Tensor] = {}
    analyzed: tuple[tuple[Scope, ...], ...]
    analyzed = (("query", "request"), ("candidate",))
    for scopes in analyzed:
        together = names(*scopes)
        if not together:
            continue
        knots = _analyzed_knots(
            _stack(values, together), row_key, normalization, seed, scopes[-1]
        )
        start = 0
        # Scope by scope: a query feature must not need the request's inputs.
        for scope in scopes:
            block = names(scope)
            part = knots[start : start + len(block)]
            if block:
                normalized |= _Block(block, part).apply(values)
            start += len(block)
    return normalized


def _analyzed_knots(
    rows: tf.Tensor,
    row_key: tf.Tensor,
    normalization: NormalizationConfig,
    seed: int,
    name: str,
) -> tf.Tensor:
    """Knots of the stacked columns [B(, C), F] as [F, M, 3]."""
    width, quantiles = rows.shape[-1], normalization.num_quantiles
    (knots,) = tft.experimental.ptransform_analyzer(
        [row_key, rows],
        KnotsAnalyzer(width, quantiles, normalization.sample_size, seed),
        [tf.float32],
        [[width, max_knots(quantiles), 3]],
        name=f"knots_{name}",
    )
    return knots


def _stack(values: Tensors, names: Sequence[str]) -> tf.Tensor:
    """Columns as a last axis, finite or NaN."""
    x = tf.stack([values[n] for n in names], axis=-1)
    return tf.where(tf.math.is_inf(x), tf.sign(x) * _LARGEST, x)


class _Lines(tf.lookup.TextFileInitializer):
    """Line -> its number from 0.

    TensorFlow shares tables of one name within a process and names them by
    the file's path: two models whose files have one path would share a table,
    and the saved bytes would depend on the path. So the content is the name.
    """

    def __init__(self, path: str) -> None:
        with FileSystems.open(path, compression_type="uncompressed") as stream:
            digest = hashlib.sha256(stream.read()).hexdigest()
        self._content_name = f"lines_{digest}"
        super().__init__(
            path,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )

    @property
    def _shared_name(self) -> str:
        return self._content_name


def _line_table(path: str) -> tf.lookup.StaticHashTable:
    """Line -> its number from 0; -1 for what is no line of the file."""
    return tf.lookup.StaticHashTable(_Lines(path), default_value=-1)


def _vocabulary_lookup(folder: str, space: str) -> Lookup:
    """Terms to ids: line i of the file, from 1; 0 out of vocabulary."""
    path, _ = vocabulary_files(folder, space)
    with FileSystems.open(path, compression_type="uncompressed") as stream:
        is_empty = not stream.read(1)
    if is_empty:
        # TensorFlow refuses to make a table of an empty file.
        return lambda terms: tf.zeros(tf.shape(terms), tf.int64)
    table = tft.make_and_track_object(
        lambda: _line_table(path), name=f"vocabulary_{space}"
    )
    return lambda terms: table.lookup(terms) + 1
