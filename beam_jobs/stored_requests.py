"""Raw requests in Parquet: the dense tensors of a request without padding.

A request is kept before any vocabulary or transform touches it: terms as
strings, lists as long as they are. What is read back are the very tensors that
were written, slot by slot.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from beam_jobs.histories import string_objects
from schemas.requests import RawInput

_ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float32": pa.float32(),
}


def stored_schema(inputs: Sequence[RawInput]) -> pa.Schema:
    """One column an input: a value, a list, or a list of lists."""
    return pa.schema([(raw.name, _type(raw)) for raw in inputs])


def to_table(
    request: Mapping[str, np.ndarray], inputs: Sequence[RawInput]
) -> pa.Table:
    """Raw requests as rows of `stored_schema`.

    A list ends at the last slot that any input of its axis fills.

    Args:
      request: name -> [B, ...], as `schemas.requests` says.
      inputs: what of it to keep, in this order.
    """
    lengths = {
        axis: _lengths([request[i.name] for i in inputs if i.axis == axis])
        for axis in {i.axis for i in inputs if i.length is not None}
    }
    columns = []
    for raw in inputs:
        values = request[raw.name]
        if raw.length is not None:
            outer, values = _compacted(values, lengths[raw.axis])
        if raw.inner:
            inner, values = _compacted(values, _lengths([values]))
        column = pa.array(values, _ARROW[raw.dtype], from_pandas=False)
        if raw.inner:
            column = pa.ListArray.from_arrays(inner, column)
        if raw.length is not None:
            column = pa.ListArray.from_arrays(outer, column)
        columns.append(column)
    return pa.table(columns, schema=stored_schema(inputs))


def from_table(
    rows: pa.Table, inputs: Sequence[RawInput]
) -> dict[str, np.ndarray]:
    """The raw requests of stored rows.

    Returns:
      name -> [B, ...] of the input's shape and dtype, absent slots filled.
    """
    request = {}
    for raw in inputs:
        column = rows.column(raw.name).combine_chunks()
        out: np.ndarray = np.full(
            (rows.num_rows, *raw.shape), raw.absent, raw.numpy_dtype
        )
        if raw.length is None and not raw.inner:
            out[:] = _values(column)
        elif raw.length is None or not raw.inner:
            out[_used(column, out.shape[1])] = _values(column.flatten())
        else:
            lists = column.flatten()
            cells = out[used := _used(column, raw.length)]
            cells[_used(lists, raw.inner)] = _values(lists.flatten())
            out[used] = cells
        request[raw.name] = out
    return request


def _type(raw: RawInput) -> pa.DataType:
    kind = pa.list_(_ARROW[raw.dtype]) if raw.inner else _ARROW[raw.dtype]
    return kind if raw.length is None else pa.list_(kind)


def _lengths(columns: Sequence[np.ndarray]) -> np.ndarray:
    """One past the last filled slot of each row, int64 [B].

    Args:
      columns: [B, L] or [B, L, inner], of one axis.
    """
    shape = columns[0].shape[:2]
    filled = np.zeros(shape, bool)
    for values in columns:
        if values.dtype.kind == "f":
            used = ~np.isnan(values)
        else:  # b"" and 0 are false.
            used = values.astype(bool)
        filled |= used.any(axis=2) if used.ndim == 3 else used
    return (filled * np.arange(1, shape[1] + 1)).max(axis=1, initial=0)


def _compacted(
    values: np.ndarray, lengths: np.ndarray
) -> tuple[pa.Array, np.ndarray]:
    """Offsets int32 [B + 1] and the first `lengths` values of each row."""
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    used = np.arange(values.shape[1]) < lengths[:, None]
    return pa.array(offsets), values[used]


def _used(lists: pa.Array, width: int) -> np.ndarray:
    """bool [B, width]: the slots that the lists fill."""
    lengths = lists.value_lengths().to_numpy()
    return np.arange(width) < lengths[:, None]


def _values(column: pa.Array) -> np.ndarray:
    if pa.types.is_string(column.type):
        return string_objects(column)
    return column.to_numpy(zero_copy_only=False)
