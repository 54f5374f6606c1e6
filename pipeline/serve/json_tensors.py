"""TensorFlow Serving's JSON of tensors, both ways.

A predict request has `instances` (a row each: the answer is `predictions`,
again by rows) or `inputs` (by tensor: the answer is `outputs`). A string is
text or, for any bytes, `{"b64": "..."}`. A signature with one input, or one
output, has values in place of objects of named values. `NaN`, `Infinity` and
`-Infinity` are read and written as these words, as TensorFlow Serving does;
strict JSON has no such numbers.
"""

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from models.keras_setup import tf
from pipeline.serve.limits import Specs, check_names, check_shape
from schemas.errors import InputError

_INSTANCES, _INPUTS = "instances", "inputs"
_BYTES_SUFFIX = "_bytes"


def parse_body(body: bytes) -> dict[str, Any]:
    """Reads a request's JSON object.

    Raises:
      InputError: it is none.
    """
    try:
        parsed = json.loads(body)
    # Not UTF-8, not JSON, an integer of thousands of digits; too deep.
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:200]
        raise InputError(f"The request is no JSON: {said}.") from error
    if not isinstance(parsed, dict):
        raise InputError(
            f"The request must be a JSON object, got {_shown(parsed)}."
        )
    return parsed


def is_by_rows(request: Mapping[str, Any]) -> bool:
    """Whether a predict request has `instances`, not `inputs`.

    Raises:
      InputError: it has neither, or both.
    """
    if (_INSTANCES in request) == (_INPUTS in request):
        raise InputError(
            "The request must have either `instances` (one object a row) or "
            "`inputs` (one list a tensor)."
        )
    return _INSTANCES in request


def input_arrays(
    request: Mapping[str, Any], specs: Specs
) -> dict[str, np.ndarray]:
    """Turns a predict request into the arrays of a signature.

    Args:
      request: has `instances` or `inputs`.
      specs: of the signature.

    Returns:
      name -> array; strings are bytes in arrays of objects.

    Raises:
      InputError: a value is of another type or shape than the signature's.
    """
    if is_by_rows(request):
        columns = _columns(request[_INSTANCES], specs)
    else:
        columns = request[_INPUTS]
        if len(specs) == 1 and not isinstance(columns, dict):
            columns = dict.fromkeys(specs, columns)
    if not isinstance(columns, dict):
        raise InputError(
            f"`inputs` must be an object of tensors, got {_shown(columns)}."
        )
    check_names(columns, specs)
    return {n: _array(n, value, specs[n]) for n, value in columns.items()}


def output_json(outputs: Mapping[str, np.ndarray], by_rows: bool) -> bytes:
    """Writes the answer to a predict request."""
    columns = {n: _plain(n, values) for n, values in outputs.items()}
    answer: Any
    if len(columns) == 1:
        (answer,) = columns.values()
    elif by_rows:
        rows = zip(*columns.values(), strict=True)
        answer = [dict(zip(columns, row, strict=True)) for row in rows]
    else:
        answer = columns
    key = "predictions" if by_rows else "outputs"
    return json.dumps({key: answer}, ensure_ascii=False).encode()


def _columns(instances: Any, specs: Specs) -> dict[str, list[Any]]:
    """Rows of named values to lists by name."""
    if not isinstance(instances, list) or not instances:
        raise InputError("`instances` must be a list of at least one row.")
    check_shape(_INSTANCES, (len(instances),))
    columns: dict[str, list[Any]] = {name: [] for name in specs}
    for number, row in enumerate(instances):
        if len(specs) == 1 and not (
            isinstance(row, dict) and row.keys() == specs.keys()
        ):
            row = dict.fromkeys(specs, row)
        if not isinstance(row, dict):
            raise InputError(
                f"Row {number} of `instances` must be an object of named "
                f"values, got {_shown(row)}."
            )
        check_names(row, specs)
        for name, values in columns.items():
            values.append(row[name])
    return columns


def _array(name: str, value: Any, spec: tf.TensorSpec) -> np.ndarray:
    """Nested lists to an array; every list of an axis must be as long."""
    shape, cells = [], [value]
    for axis in range(spec.shape.rank):
        for cell in cells:
            if not isinstance(cell, list):
                raise InputError(
                    f"`{name}` must be lists nested {spec.shape.rank} deep, "
                    f"got {_shown(cell)} at depth {axis}."
                )
        lengths = {len(cell) for cell in cells}
        if len(lengths) > 1:
            raise InputError(
                f"The lists of `{name}` differ in length ({min(lengths)} and "
                f"{max(lengths)}). Fill them up to one length."
            )
        shape.append(max(lengths, default=0))
        check_shape(name, tuple(shape))
        cells = [inner for cell in cells for inner in cell]
    return _typed(name, cells, spec.dtype).reshape(shape)


def _typed(name: str, cells: Sequence[Any], dtype: tf.DType) -> np.ndarray:
    def checked(is_right: Callable[[Any], bool], expected: str) -> None:
        for cell in cells:
            if not is_right(cell):
                raise InputError(
                    f"`{name}` must hold {expected}, got {_shown(cell)}."
                )

    if dtype == tf.string:
        array = np.empty(len(cells), object)
        array[:] = [_bytes(name, cell) for cell in cells]
        return array
    # bool is an int to Python, not to TensorFlow.
    if dtype == tf.bool:
        checked(lambda c: isinstance(c, bool), "true or false")
    elif dtype.is_integer:
        checked(
            lambda c: type(c) is int and dtype.min <= c <= dtype.max,
            f"whole numbers of {dtype.name}",
        )
    else:
        checked(lambda c: type(c) in (int, float), "numbers")
    try:
        with np.errstate(over="ignore"):  # 1e300 is infinite as float32.
            return np.array(cells, dtype.as_numpy_dtype)
    except OverflowError as error:
        raise InputError(f"`{name}` has a number too large.") from error


def _bytes(name: str, cell: Any) -> bytes:
    try:
        if isinstance(cell, str):
            return cell.encode()
        if isinstance(cell, dict) and cell.keys() == {"b64"}:
            return base64.b64decode(cell["b64"], validate=True)
    # Half a surrogate pair; not base64; `b64` of no string.
    except (UnicodeEncodeError, binascii.Error, TypeError, ValueError) as error:
        raise InputError(
            f"`{name}` has a string that cannot be decoded: "
            f"{str(error)[-200:]}."
        ) from error
    raise InputError(
        f'`{name}` must hold strings or {{"b64": "..."}}, got {_shown(cell)}.'
    )


def _plain(name: str, values: np.ndarray) -> Any:
    if values.dtype != object:
        return values.tolist()
    as_text = not name.endswith(_BYTES_SUFFIX)

    def shown(value: bytes) -> Any:
        if as_text:
            return value.decode()
        return {"b64": base64.b64encode(value).decode()}

    flat = np.empty(values.size, object)
    flat[:] = [shown(v) for v in values.flat]
    return flat.reshape(values.shape).tolist()


def _shown(value: Any) -> str:
    """A received value, short enough for one line."""
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very large number"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
