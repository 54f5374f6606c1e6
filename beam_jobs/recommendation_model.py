"""An exported SavedModel under Beam's RunInference.

In: the requests of a user shard, as long as their lists are. Out: a ranked
list for each, as Arrow columns. Every call of the model has the same number
of rows, the last one filled up: the sums of a matrix product may depend on
its shape, and so would the bytes that come out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
from apache_beam.ml.inference.base import ModelHandler

from beam_jobs.stored_requests import from_table
from schemas.errors import ArtifactError
from schemas.requests import RawInput

# Requests x 100 candidates: above it, two cores answer no more a second.
BATCH_SIZE = 128
USER, VIDEOS, SCORES = "user_id", "video_ids", "scores"
# The recommender's name for what its rows are ordered by.
_SCORE = "score"
_DEFAULT, _NUMBER = "serving_default", pa.float32()


@dataclasses.dataclass(frozen=True)
class ShardRequests:
    """One request for each user of a shard.

    Attributes:
      shard: its number.
      user_ids: string [U].
      rows: [U] of `stored_requests.stored_schema`.
      without_history: how many of them have watched nothing.
    """

    shard: int
    user_ids: pa.StringArray
    rows: pa.Table
    without_history: int

    def __len__(self) -> int:
        return int(self.rows.num_rows)


@dataclasses.dataclass(frozen=True)
class ShardLists:
    """The answers to `ShardRequests`.

    Attributes:
      rows: [U], as `RecommendationModel` says.
    """

    shard: int
    rows: pa.Table
    without_history: int


class SavedModel:
    """A signature of a SavedModel, called with NumPy arrays.

    Args:
      path: folder of its version.
      signature: taken where the model has it, else the default one.

    Attributes:
      outputs: name -> Arrow type of a value, by name.
    """

    def __init__(self, path: str, signature: str = _DEFAULT) -> None:
        self._path = path
        # Kept: the signature alone does not keep its variables.
        self._loaded = tf.saved_model.load(path)
        signatures = self._loaded.signatures
        name = signature if signature in signatures else _DEFAULT
        self._signature = signatures[name]
        self._specs = self._signature.structured_input_signature[1]
        outputs = self._signature.structured_outputs
        self.outputs = {
            name: pa.string() if outputs[name].dtype == tf.string else _NUMBER
            for name in sorted(outputs)
        }

    def __call__(
        self, request: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Answers requests; of the arrays given it takes its own.

        Raises:
          ArtifactError: the model wants what the request does not have.
        """
        missing = sorted(set(self._specs) - set(request))
        if missing:
            raise ArtifactError(
                f"The SavedModel {self._path} wants {', '.join(missing)}, "
                "which the request does not have: it was exported for another "
                "log or configuration. Run `watchnext export` again."
            )
        answer = self._signature(
            **{
                name: tf.constant(request[name], spec.dtype)
                for name, spec in self._specs.items()
            }
        )
        return {name: values.numpy() for name, values in answer.items()}


class RecommendationModel(ModelHandler[ShardRequests, ShardLists, SavedModel]):
    """Answers all requests of a shard, in calls of `batch_size` rows.

    A shard is what RunInference takes for a batch; so its users stay together
    and no shuffle comes between the reading and the writing of a shard. The
    rows of its answer have `user_id`, and as lists in the model's order,
    without blanks: `video_ids`, `scores`, and each further output.

    Args:
      path: a version of `recommender` or `retrieval`, exported.
      inputs: of the requests.
      batch_size: rows of a call.
    """

    def __init__(
        self, path: str, inputs: Sequence[RawInput], batch_size: int
    ) -> None:
        super().__init__()
        self._path, self._inputs = path, tuple(inputs)
        self._batch_size = batch_size

    def load_model(self) -> SavedModel:
        return SavedModel(self._path)

    def should_skip_batching(self) -> bool:
        return True

    # What Beam calls a batch is what it was given: the requests of a shard.
    def run_inference(  # type: ignore[override]
        self,
        batch: ShardRequests,
        model: SavedModel,
        inference_args: dict[str, Any] | None = None,
    ) -> Iterator[ShardLists]:
        rows = pa.concat_tables(
            [
                _lists_schema(model.outputs).empty_table(),
                *self._lists(batch, model),
            ]
        ).combine_chunks()
        yield ShardLists(batch.shard, rows, batch.without_history)

    def get_num_bytes(  # type: ignore[override]
        self, batch: ShardRequests
    ) -> int:
        return int(batch.rows.nbytes)

    def _lists(
        self, batch: ShardRequests, model: SavedModel
    ) -> Iterator[pa.Table]:
        for start in range(0, len(batch), self._batch_size):
            rows = batch.rows.slice(start, self._batch_size)
            request = from_table(rows, self._inputs)
            missing = self._batch_size - rows.num_rows
            if missing:
                request = {
                    name: np.concatenate((v, np.repeat(v[-1:], missing, 0)))
                    for name, v in request.items()
                }
            answer = {n: v[: rows.num_rows] for n, v in model(request).items()}
            users = batch.user_ids.slice(start, self._batch_size)
            yield to_lists(users, answer)


def to_lists(users: pa.Array, answer: Mapping[str, np.ndarray]) -> pa.Table:
    """Ranked lists as rows; the model's blanks, at their ends, are dropped.

    Args:
      users: string [B].
      answer: outputs [B, K]; `video_ids` is b"" where no video was left.
    """
    found = answer[VIDEOS] != b""
    lengths = found.sum(axis=1)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    schema = _lists_schema(
        {
            name: pa.string() if values.dtype == object else _NUMBER
            for name, values in sorted(answer.items())
        }
    )
    columns = [users]
    for field in list(schema)[1:]:
        source = _source(field.name, answer)
        values = pa.array(answer[source][found], field.type.value_type)
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), values))
    return pa.table(columns, schema=schema)


def _lists_schema(outputs: Mapping[str, pa.DataType]) -> pa.Schema:
    """`user_id`, `video_ids`, `scores`, then the other outputs by name."""
    known = {VIDEOS: pa.string(), SCORES: _NUMBER}
    others = {n: t for n, t in outputs.items() if n not in (*known, _SCORE)}
    lists = {name: pa.list_(t) for name, t in (known | others).items()}
    return pa.schema({USER: pa.string(), **lists})


def _source(column: str, answer: Mapping[str, np.ndarray]) -> str:
    return _SCORE if column == SCORES and _SCORE in answer else column
