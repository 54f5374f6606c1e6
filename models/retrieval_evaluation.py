"""Measures the retrieval model and its baselines by the same code.

In: a scorer and the evaluation cases. Out: metrics by their shared names. The
model's scores are those of serving, u.v + b, without the logQ correction
(paper, section 3.1: at serving time the likelihoods are not needed).
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from models.baselines import Scorer, history_rows
from models.retrieval_metrics import RetrievalMetrics

# Bytes of one chunk of score rows; a million videos take 4 MB a user.
_CHUNK_BYTES = 1 << 28


class RetrievalModelLike(Protocol):
    """What is measured of `models.retrieval.RetrievalModel`."""

    def query_embedding(self, features: Mapping[str, Any]) -> Any:
        """float32 [B, D]."""

    def candidates(self) -> tuple[Any, Any]:
        """float32 [V, D] and [V]."""


class ModelScorer:
    """Scores all videos by the dot product of the model's embeddings."""

    def __init__(self, model: RetrievalModelLike) -> None:
        self._model = model
        embeddings, biases = model.candidates()
        self._embeddings = np.asarray(embeddings, np.float32)
        self._biases = np.asarray(biases, np.float32)

    @property
    def num_videos(self) -> int:
        return len(self._biases)

    def scores(self, batch: Mapping[str, Any]) -> np.ndarray:
        queries = np.asarray(self._model.query_embedding(batch), np.float32)
        return queries @ self._embeddings.T + self._biases


def evaluate(
    scorer: Scorer,
    dataset: Iterable[Mapping[str, Any]],
    top_k: Iterable[int],
    prefix: str = "",
) -> dict[str, float]:
    """Ranks all videos for every case.

    Args:
      scorer: the model's or a baseline's.
      dataset: batches of evaluation cases: the features, `labels` and `seen`
        as ragged or -1 padded ids [B, None].
      top_k: the k of hit rate, precision and recall.
      prefix: put before the names, such as "baselines.popularity.".

    Returns:
      The metrics of `RetrievalMetrics`, and `cases`, how many there were.
    """
    metrics = RetrievalMetrics(tuple(top_k))
    chunk = max(1, _CHUNK_BYTES // (4 * scorer.num_videos))
    for batch in dataset:
        labels = history_rows(batch["labels"])
        seen = history_rows(batch["seen"])
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            rows = {name: tensor[part] for name, tensor in batch.items()}
            metrics.update(scorer.scores(rows), labels[part], seen[part])
    values = {**metrics.result(), "cases": float(metrics.cases)}
    return {f"{prefix}{name}": value for name, value in values.items()}
