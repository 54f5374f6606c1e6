"""The saved transform graph, applied to raw requests outside a model."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from tensorflow.core.protobuf import saved_model_pb2

from schemas.errors import ArtifactError
from schemas.features import FeatureSet

# Candidates are compared with histories: 1,024 x 10 x 50 at once.
_CHUNK_ROWS = 1024


def feature_names(path: str) -> frozenset[str]:
    """Names of the features that the graph in `transform_fn` gives."""
    output = tft.TFTransformOutput(path)
    return frozenset(output.transformed_feature_spec())


def stored_knots(
    path: str, features: FeatureSet
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Reads the knots of the continuous features out of a saved graph.

    Args:
      path: the folder `transform_fn`.
      features: what the graph gives.

    Returns:
      name -> knots float32 [m] and levels float32 [m, 2], see
      `beam_jobs.normalization`; m is 0 of a feature that had no value. None
      where as many features are normalised with the candidates as without, as
      the graph does not name which is which.

    Raises:
      ArtifactError: the graph does not hold them.
    """
    blocks = [
        [f.name for f in features.select(*scopes, kind="continuous")]
        for scopes in (("query", "request"), ("candidate",))
    ]
    names = {len(block): block for block in blocks if block}
    if len(names) < sum(map(bool, blocks)):
        return None
    file = f"{path}/transform_fn/saved_model.pb"
    saved = saved_model_pb2.SavedModel()
    with tf.io.gfile.GFile(file, "rb") as stream:
        saved.ParseFromString(stream.read())
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for node in saved.meta_graphs[0].graph_def.node:
        if node.op != "Const":
            continue
        shape = [d.size for d in node.attr["value"].tensor.tensor_shape.dim]
        # [F, M, 3]: nothing else that the graph holds has three dimensions.
        if len(shape) != 3 or shape[2] != 3 or shape[0] not in names:
            continue
        stacked = tf.make_ndarray(node.attr["value"].tensor)
        for name, own in zip(names[shape[0]], stacked, strict=True):
            filled = np.isfinite(own[:, 0])
            found[name] = own[filled, 0], own[filled, 1:]
    missing = [n for block in names.values() for n in block if n not in found]
    if missing:
        raise ArtifactError(
            f"{file} holds no knots of {', '.join(missing)}; run `watchnext "
            "prepare` again."
        )
    return found


class TransformGraph:
    """From raw requests to features, by the graph that `transform.run` wrote.

    Pickles as its arguments alone, so a DoFn may hold one: the graph is
    loaded at the first call of each process.

    Args:
      path: the folder `transform_fn`.
      outputs: names of the features wanted; None gives all that the inputs of
        the call allow (query features from a retrieval request).
      chunk_rows: requests that go through the graph at once.
    """

    def __init__(
        self,
        path: str,
        outputs: Sequence[str] | None = None,
        chunk_rows: int = _CHUNK_ROWS,
    ) -> None:
        self.path = path
        self.outputs = None if outputs is None else tuple(outputs)
        self.chunk_rows = chunk_rows
        self._layer: Any = None
        self._functions: dict[tuple[str, ...], Any] = {}

    def __reduce__(self) -> tuple[object, ...]:
        return TransformGraph, (self.path, self.outputs, self.chunk_rows)

    def __call__(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Transforms rows of raw requests.

        Args:
          raw: arrays of `schemas.requests.raw_inputs`, [n, ...] each; the
            ranking inputs may be left out.

        Returns:
          Features of `schemas.features` [n, ...]: ids int64 (0 out of
          vocabulary, bags padded by -1), continuous float32 [..., 4].

        Raises:
          ValueError: a wanted output needs an input that is not given.
        """
        names = tuple(sorted(raw))
        function = self._functions.get(names) or self._trace(names, raw)
        count = len(raw[names[0]])
        chunks = [
            function(
                {n: _tensor(raw[n][s : s + self.chunk_rows]) for n in names}
            )
            for s in range(0, max(count, 1), self.chunk_rows)
        ]
        return {
            name: np.concatenate([chunk[name].numpy() for chunk in chunks])
            for name in chunks[0]
        }

    def _trace(
        self, names: tuple[str, ...], raw: Mapping[str, np.ndarray]
    ) -> Any:
        """Traces the graph once per set of inputs, for any number of rows."""
        if self._layer is None:
            output = tft.TFTransformOutput(self.path)
            self._layer = output.transform_features_layer()

        def apply(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            features = self._layer(inputs)
            wanted = self.outputs or tuple(sorted(features))
            missing = [name for name in wanted if name not in features]
            if missing:
                raise ValueError(
                    f"The transform graph at {self.path} gives no "
                    f"{', '.join(missing)} from the inputs "
                    f"{', '.join(names)}; pass the ranking inputs too, or "
                    "ask only for what these inputs determine."
                )
            return {name: features[name] for name in wanted}

        signature = {
            name: tf.TensorSpec(
                (None, *raw[name].shape[1:]),
                tf.string if raw[name].dtype == object else raw[name].dtype,
                name,
            )
            for name in names
        }
        traced = tf.function(
            apply, input_signature=[signature], autograph=False
        )
        self._functions[names] = traced.get_concrete_function()
        return self._functions[names]


def _tensor(values: np.ndarray) -> tf.Tensor:
    """An array as a tensor; a broadcast value is not converted cell by cell."""
    if values.size and not any(values.strides):
        return _filled(values.shape, values.flat[0])
    return tf.convert_to_tensor(values)


@functools.lru_cache(maxsize=64)
def _filled(shape: tuple[int, ...], value: bytes | float) -> tf.Tensor:
    return tf.fill(shape, value)
