"""What a request may be, checked before TensorFlow sees it.

A server that anybody's script talks to must not be brought down by one
request. The models take lists of any length and cut them; memory does not.
"""

from collections.abc import Mapping

import numpy as np
from google.protobuf.message import DecodeError

from models.keras_setup import tf
from models.serving_requests import EXAMPLES
from schemas.errors import InputError

MAX_BODY_BYTES = 32 << 20
# With a million videos, exact scores of so many rows are 1 GB.
MAX_ROWS = 256
# Of one tensor, over all rows: so many candidates still rank in about 1 GB.
MAX_VALUES = 100_000
MAX_STRING_BYTES = 64 << 10

Specs = Mapping[str, tf.TensorSpec]


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Refuses a tensor of this shape [rows, ...] where it is too large.

    Raises:
      InputError: more rows or values than one request may have.
    """
    if shape and shape[0] > MAX_ROWS:
        raise InputError(
            f"`{name}` has {shape[0]:,} rows; a request may have {MAX_ROWS}. "
            "Send several."
        )
    # Python's integers: NumPy's product would wrap round.
    size = 1
    for length in shape:
        size *= length
    if size > MAX_VALUES:
        raise InputError(
            f"`{name}` has {size:,} values; a request may have "
            f"{MAX_VALUES:,}. Send the most recent."
        )


def check_inputs(inputs: Mapping[str, np.ndarray], specs: Specs) -> None:
    """Refuses tensors that a signature does not take.

    Args:
      inputs: name -> array; strings are bytes in arrays of objects.
      specs: of the signature.

    Raises:
      InputError: names, types, axes or rows differ, or a value is too large.
    """
    check_names(inputs, specs)
    for name, array in inputs.items():
        _check_type(name, array, specs[name])
        check_shape(name, array.shape)
        if array.dtype == object:
            _check_strings(name, array)
    rows = {name: len(a) for name, a in inputs.items() if a.ndim}
    if len(set(rows.values())) > 1:
        most, fewest = (
            max(rows, key=rows.__getitem__),
            min(rows, key=rows.__getitem__),
        )
        raise InputError(
            f"All inputs must have the same number of rows, but `{most}` has "
            f"{rows[most]} and `{fewest}` {rows[fewest]}."
        )


def check_names(inputs: Mapping[str, object], specs: Specs) -> None:
    """Refuses missing and unknown names.

    Raises:
      InputError: there are some.
    """
    for problem, names in (
        ("misses", specs.keys() - inputs.keys()),
        ("has unknown", inputs.keys() - specs.keys()),
    ):
        if names:
            first = ", ".join(n[:100] for n in sorted(names)[:20])
            raise InputError(
                f"The request {problem} input(s) {first}; the signature "
                f"takes {', '.join(sorted(specs))}."
            )


def _check_type(name: str, array: np.ndarray, spec: tf.TensorSpec) -> None:
    dtype = tf.as_dtype(array.dtype)
    if dtype != spec.dtype:
        raise InputError(
            f"`{name}` must be {spec.dtype.name}, got {dtype.name}."
        )
    if array.ndim != spec.shape.rank:
        raise InputError(
            f"`{name}` must have {spec.shape.rank} axes, got shape "
            f"{list(array.shape)}."
        )


def _check_strings(name: str, array: np.ndarray) -> None:
    for value in array.flat:
        if name == EXAMPLES:
            _check_example(value)
        elif len(value) > MAX_STRING_BYTES:
            raise _too_long(name, len(value))


def _check_example(serialized: bytes) -> None:
    """Refuses a tf.Example whose lists or strings are too long."""
    try:
        example = tf.train.Example.FromString(serialized)
    except DecodeError as error:
        raise InputError(
            f"`{EXAMPLES}` must be serialized tf.Example messages, got "
            f"{len(serialized):,} bytes that are none."
        ) from error
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else ()
        check_shape(name[:100], (1, len(values)))
        if kind == "bytes_list":
            longest = max(map(len, values), default=0)
            if longest > MAX_STRING_BYTES:
                raise _too_long(name[:100], longest)


def _too_long(name: str, length: int) -> InputError:
    return InputError(
        f"`{name}` has a string of {length:,} bytes; a string may have "
        f"{MAX_STRING_BYTES:,}."
    )
