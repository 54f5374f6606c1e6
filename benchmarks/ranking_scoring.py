"""Times a request of the ranking network beside its matrix products.

The 2016 paper's 1024-512-256 network over the features of a log, 500
candidates of one request: lookups, bags, the shared part once a request, all
heads and the score. Beside it, in turns, the products of the same sizes alone,
as a plain network does them: [500, P] x [P, 1024] and so on, P being the width
of request and candidate together. The weights are those of the first step:
they do not matter for the time.
"""

import itertools
import time
from collections.abc import Callable, Mapping

import numpy as np

from models.keras_setup import tf
from models.ranking import COUNT, RankingModel
from pipeline.stages import DataStages
from schemas.examples import ranking_labels
from schemas.features import Feature

_CANDIDATES, _UNITS = 500, (1024, 512, 256)
_CALLS, _WARM = 600, 50


def scoring_times(data: DataStages) -> dict[str, float]:
    """`score_500_vs_gemm`, `score_500_p99_over_p50`, and milliseconds."""
    config = data.run.config.ranking
    model = RankingModel(
        data.features,
        data.sizes,
        config.model_copy(update={"hidden_units": _UNITS}),
        seed=1,
        labels=ranking_labels(data.schema),
        positions=data.schema.has("impressions", "position"),
    )
    request = _request(data)
    score = tf.function(lambda: model.predict(request)["score"])
    products = _products(sum(model.input_widths.values()))
    taken = _in_turns({"score": score, "gemm": products})
    ms = {
        f"{name}_{p}_ms": float(np.percentile(seconds, int(p[1:])) * 1e3)
        for name, seconds in taken.items()
        for p in ("p50", "p99")
    }
    return {
        "score_500_vs_gemm": ms["score_p50_ms"] / ms["gemm_p50_ms"],
        "score_500_p99_over_p50": ms["score_p99_ms"] / ms["score_p50_ms"],
        **{f"score_500.{name}": value for name, value in ms.items()},
    }


def _request(data: DataStages) -> dict[str, tf.Tensor]:
    """A request whose ids and values are drawn, all lists full."""
    rng = np.random.default_rng(0)
    sizes: Mapping[str, int] = data.sizes
    features = data.features.select("query", "request", "candidate")

    def drawn(feature: Feature) -> np.ndarray:
        shape = [1, *([_CANDIDATES] if feature.scope == "candidate" else [])]
        if feature.kind == "continuous":
            return rng.random((*shape, 4), np.float32)
        if feature.max_length is not None:
            shape.append(feature.max_length)
        return rng.integers(1, sizes.get(feature.space or "", 7) + 1, shape)

    request = {f.name: tf.constant(drawn(f)) for f in features}
    return request | {COUNT: tf.constant([_CANDIDATES], tf.int64)}


def _products(width: int) -> Callable[[], tf.Tensor]:
    rng = np.random.default_rng(0)
    widths = (width, *_UNITS)
    inputs = tf.constant(rng.random((_CANDIDATES, width), np.float32))
    weights = [
        tf.constant(rng.random(shape, np.float32) / shape[0])
        for shape in itertools.pairwise(widths)
    ]

    @tf.function
    def products(x: tf.Tensor) -> tf.Tensor:
        for weight in weights:
            x = tf.matmul(x, weight)
        return x

    return lambda: products(inputs)


def _in_turns(
    calls: Mapping[str, Callable[[], tf.Tensor]],
) -> dict[str, np.ndarray]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_WARM + _CALLS):
        for name, call in calls.items():
            started = time.perf_counter()
            call().numpy()
            taken[name].append(time.perf_counter() - started)
    return {name: np.array(values[_WARM:]) for name, values in taken.items()}
