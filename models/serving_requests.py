"""Raw requests as a SavedModel takes them: named tensors or tf.Examples.

Clients send as many watches, searches or candidates as they have; inside,
lists are cut or filled up to the lengths that the transform graph was made
for (`schemas/requests.py`). Letters: B requests, C candidates, n any number.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from models.keras_setup import tf
from models.lagged_table import COLUMNS
from schemas.requests import RawInput

EXAMPLES = "examples"
CANDIDATES = "candidate_video_id"
# The one input without a sensible default.
REQUIRED = "request_time_us"
# Read in training only, by the position tower: served positions are unknown.
_TRAINING_ONLY = ("candidate_position",)
# The paper ranks hundreds. Each is compared with every entry of the histories,
# so that a million of them would fill the memory of a server.
MAX_CANDIDATES = 10_000

Tensors = Mapping[str, tf.Tensor]


def retrieval_inputs(inputs: Sequence[RawInput]) -> tuple[RawInput, ...]:
    """What a client sends to retrieve."""
    return tuple(i for i in inputs if not i.ranking_only)


def ranking_inputs(inputs: Sequence[RawInput]) -> tuple[RawInput, ...]:
    """What a client sends to rank: all but what it cannot know."""
    unknown = (*COLUMNS, *_TRAINING_ONLY)
    return tuple(i for i in inputs if i.name not in unknown)


def tensor_specs(inputs: Sequence[RawInput]) -> dict[str, tf.TensorSpec]:
    """Signature of named tensors; lists are of any length."""
    return {
        i.name: tf.TensorSpec([None] * (1 + len(i.shape)), i.dtype, i.name)
        for i in inputs
    }


def examples_spec() -> dict[str, tf.TensorSpec]:
    """Signature of serialized tf.Examples, string [B]."""
    return {EXAMPLES: tf.TensorSpec([None], tf.string, EXAMPLES)}


def parsed(
    examples: tf.Tensor, inputs: Sequence[RawInput]
) -> dict[str, tf.Tensor]:
    """Parses tf.Examples; all keys but `request_time_us` may be left out.

    A list is a feature of as many values as it has; lists of lists (an extra
    column of several terms per candidate) are filled up to `inner` terms each.

    Args:
      examples: string [B].
      inputs: which keys.

    Returns:
      name -> [B] or [B, n(, inner)], filled up with the input's absent value.
    """
    values = tf.io.parse_example(
        examples, {i.name: _parse_spec(i) for i in inputs}
    )
    for raw in inputs:
        if isinstance(values[raw.name], tf.RaggedTensor):
            values[raw.name] = values[raw.name].to_tensor(raw.absent)
    return values


def serialized(
    raw: Mapping[str, np.ndarray], inputs: Sequence[RawInput]
) -> dict[str, np.ndarray]:
    """What `parsed` parses: `examples`, object [B], of arrays [B, ...]."""
    examples = []
    for row in range(len(raw[inputs[0].name])):
        example = tf.train.Example()
        for i in inputs:
            feature = example.features.feature[i.name]
            values = {
                "string": feature.bytes_list,
                "int64": feature.int64_list,
                "float32": feature.float_list,
            }[i.dtype].value
            values.extend(np.ravel(raw[i.name][row]).tolist())
        examples.append(example.SerializeToString(deterministic=True))
    return {EXAMPLES: np.array(examples, object)}


def fitted(
    raw: Tensors, inputs: Sequence[RawInput]
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Gives every list the length that the transform graph wants.

    Args:
      raw: name -> [B] or [B, n(, n)].
      inputs: of these tensors.

    Returns:
      name -> [B, *shape of the input], but the candidates [B, P * C(, inner)]
      with P as few as hold them all; and P, int32 [], 1 without candidates.

    Raises:
      InvalidArgumentError: when run, of tensors of different numbers of rows,
        which could otherwise broadcast to an answer, and of more than
        `MAX_CANDIDATES`.
    """
    rows = [tf.shape(raw[i.name])[0] for i in inputs]
    names = [i.name for i in inputs]
    checks = [
        tf.debugging.Assert(
            tf.reduce_all(tf.equal(rows, rows[0])),
            ["Expected the same number of rows in all of", names, "got", rows],
            summarize=len(rows),
        )
    ]
    pieces = tf.constant(1)
    candidates = [i for i in inputs if i.axis == "candidate"]
    if candidates:
        per_piece = candidates[0].length
        sent = tf.shape(raw[CANDIDATES])[1]
        checks.append(
            tf.debugging.Assert(
                sent <= MAX_CANDIDATES,
                [
                    f"Expected at most {MAX_CANDIDATES} of {CANDIDATES}, got",
                    sent,
                ],
            )
        )
        pieces = tf.maximum(1, -(-sent // per_piece))
    tensors = {}
    for i in inputs:
        # Before an operation that fails too, but with a text of its own.
        with tf.control_dependencies(checks):
            tensor = tf.identity(raw[i.name])
        for axis, length in enumerate(i.shape, start=1):
            if i.axis == "candidate" and axis == 1:
                length = length * pieces
            tensor = _resized(tensor, axis, length, i.absent)
        tensors[i.name] = tensor
    return tensors, pieces


def in_pieces(
    raw: Tensors, inputs: Sequence[RawInput], pieces: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Spreads each request's candidates over `pieces` rows of C.

    Args:
      raw: what `fitted` returned, B rows.
      inputs: of these tensors.
      pieces: P.

    Returns:
      name -> [B * P, *shape of the input]; rows of a request follow each
      other, and what is no candidate's is repeated.
    """
    rows = {}
    for i in inputs:
        tensor = raw[i.name]
        if i.axis == "candidate":
            tensor = tf.reshape(tensor, [-1, *i.shape])
        else:
            tensor = tf.repeat(tensor, pieces, axis=0)
        rows[i.name] = tf.ensure_shape(tensor, [None, *i.shape])
    return rows


def _parse_spec(raw: RawInput) -> tf.io.FixedLenFeature | tf.io.RaggedFeature:
    dtype = tf.dtypes.as_dtype(raw.dtype)
    if raw.length is not None and raw.inner:
        inner = tf.io.RaggedFeature.UniformRowLength(raw.inner)
        return tf.io.RaggedFeature(dtype, partitions=[inner])
    if raw.shape:
        return tf.io.RaggedFeature(dtype)
    default = None if raw.name == REQUIRED else raw.absent
    return tf.io.FixedLenFeature([], dtype, default)


def _resized(
    tensor: tf.Tensor,
    axis: int,
    length: int | tf.Tensor,
    absent: bytes | int | float,
) -> tf.Tensor:
    """Cuts or fills an axis at its end."""
    cut = (*[slice(None)] * axis, slice(None, length))
    tensor = tensor[cut]
    shape = tf.unstack(tf.shape(tensor))
    shape[axis] = length - shape[axis]
    filling = tf.fill(shape, tf.cast(absent, tensor.dtype))
    return tf.concat([tensor, filling], axis)
