"""ONNX graphs of the two networks: for servers without TensorFlow.

In: a trained model. Out: one `.onnx` file. It begins where the transform graph
ends, at ids and normalised values, because ONNX has neither its vocabularies
nor its strings; whoever serves it makes these by the transform graph, which is
in the work directory (`transform/<version>/transform_fn`) and in every
SavedModel. Ids are 1..V, 0 is out of vocabulary (the zero vector), -1 padding.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from models.keras_setup import tf
from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from models.rows import padded_sums
from schemas.errors import ArtifactError, UsageError
from schemas.features import CONTINUOUS_WIDTH, Feature

# The newest that runtimes of the last two years read.
OPSET = 18
QUERY_EMBEDDING = "query_embedding"
# A protobuf message ends at 2 GiB; ours has the tables inside.
_MOST_BYTES = 1_900_000_000
_ABOUT = (
    "Inputs are the transform graph's outputs: ids int64 (1..V by falling "
    "count, 0 out of vocabulary, -1 padding at the end of a list) and "
    "quantile-normalised values float32 (x, x^2, sqrt(x), is missing)."
)

Tensors = Mapping[str, tf.Tensor]


def write_query_tower(model: RetrievalModel, path: str) -> None:
    """Writes the query tower: `query_embedding` float32 [B, D].

    A video's score is the dot product with its output embedding, plus its
    bias: those are the index's, and not in this graph.

    Args:
      model: trained.
      path: of the file.

    Raises:
      ArtifactError: the tables are too large for one file.
      UsageError: the extra `onnx` is not installed.
    """

    def embed(features: Tensors) -> dict[str, tf.Tensor]:
        return {QUERY_EMBEDDING: model.query_embedding(features)}

    _write(embed, model.query_tower.features, model, path)


def write_ranking(model: RankingModel, path: str) -> None:
    """Writes the ranking network: each output of `predict`, float32 [B, C].

    All C slots of a request are candidates; leave out the outputs of those
    that are padding. Args and errors are those of `write_query_tower`.
    """
    features = model.features.select("query", "request", "candidate")
    _write(model.predict, features, model, path)


def _write(
    function: Callable[[Tensors], dict[str, tf.Tensor]],
    features: Sequence[Feature],
    model: RetrievalModel | RankingModel,
    path: str,
) -> None:
    onnx, tf2onnx = _libraries()
    # Of retrieval without the output embeddings, which are the index's.
    tables = (
        model.table_variables
        if isinstance(model, RankingModel)
        else model.embeddings.table_variables
    )
    variables = [*tables, *model.dense_variables]
    size = sum(v.dtype.size * v.shape.num_elements() for v in variables)
    if size > _MOST_BYTES:
        raise ArtifactError(
            f"{model.name} has {size:,} bytes of weights, an ONNX file at most "
            f"{_MOST_BYTES:,}. Lower the dimension or the vocabulary's size, "
            "or serve the SavedModel."
        )
    specs = {f.name: _spec(f) for f in features}
    graph = tf.function(function, input_signature=[specs], autograph=False)
    with padded_sums():
        # Traced here; the converter takes the trace that it finds.
        graph.get_concrete_function()
    proto, _ = tf2onnx.convert.from_function(
        graph, input_signature=[specs], opset=OPSET
    )
    about = {
        "model": model.name,
        "about": _ABOUT,
        "inputs": json.dumps({f.name: _said(f) for f in features}),
    }
    proto.doc_string = _ABOUT
    onnx.helper.set_model_props(proto, about)
    onnx.checker.check_model(proto, full_check=True)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(proto.SerializeToString(deterministic=True))


def _spec(feature: Feature) -> tf.TensorSpec:
    """Any number of requests and candidates; lists as the graph gives them."""
    shape: list[int | None] = [None]
    if feature.scope == "candidate":
        shape.append(None)
    if feature.kind == "continuous":
        shape.append(CONTINUOUS_WIDTH)
        return tf.TensorSpec(shape, tf.float32, feature.name)
    if feature.kind == "bag":
        shape.append(feature.max_length)
    return tf.TensorSpec(shape, tf.int64, feature.name)


def _said(feature: Feature) -> dict[str, Any]:
    return {
        "kind": feature.kind,
        "scope": feature.scope,
        "vocabulary": feature.space,
    }


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import tf2onnx
    except ImportError as error:
        raise UsageError(
            f"ONNX needs packages that are not installed ({error}): run "
            "`pip install 'watchnext[onnx]'`."
        ) from error
    return onnx, tf2onnx
