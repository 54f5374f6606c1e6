"""Measures the retrieval model, its index and its baselines by the same code.

In: a ranker and the evaluation cases. Out: metrics by their shared names. The
model's scores are those of serving, u.v + b, without the logQ correction
(paper, section 3.1: at serving time the likelihoods are not needed). Nothing
here has a part in a training step.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from models.baselines import Scorer, history_rows
from models.retrieval_metrics import checked_top_k, metrics
from models.retrieval_ranks import LabelRanks
from models.retrieval_slices import Moments, slices

# Bytes of one chunk of score rows; a million videos take 4 MB a user.
_CHUNK_BYTES = 1 << 28

Batch = Mapping[str, Any]
Lists = Sequence[np.ndarray]


class RetrievalModelLike(Protocol):
    """What is measured of `models.retrieval.RetrievalModel`."""

    def query_embedding(self, features: Mapping[str, Any]) -> Any:
        """float32 [B, D]."""

    def candidates(self) -> tuple[Any, Any]:
        """float32 [V, D] and [V]."""


class Index(Protocol):
    """What is measured of an index, such as `models.top_k.TopK`."""

    @property
    def num_videos(self) -> int:
        """V."""

    def search(
        self, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [B, k], 0 where nothing was found, and scores [B, k]."""


class Ranker(Protocol):
    """Whatever can say where the labels of a case stand."""

    @property
    def num_videos(self) -> int:
        """V."""

    @property
    def whole_ranking(self) -> bool:
        """Whether every video has a rank, not the best ones only."""

    def ranks(self, batch: Batch, labels: Lists, seen: Lists) -> LabelRanks:
        """The labels of `batch`'s b cases, ranked."""


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

    def scores(self, batch: Batch) -> np.ndarray:
        queries = np.asarray(self._model.query_embedding(batch), np.float32)
        return queries @ self._embeddings.T + self._biases


class ExactRanker:
    """Ranks by the scores of all videos."""

    whole_ranking = True

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    @property
    def num_videos(self) -> int:
        return self._scorer.num_videos

    def ranks(self, batch: Batch, labels: Lists, seen: Lists) -> LabelRanks:
        return LabelRanks.of_scores(self._scorer.scores(batch), labels, seen)


class IndexRanker:
    """Ranks by what an index returns for the model's query embeddings.

    So much more is asked for than `k` that `k` are left when the case with
    most seen videos has lost them.
    """

    whole_ranking = False

    def __init__(self, model: RetrievalModelLike, index: Index, k: int) -> None:
        self._model, self._index, self._k = model, index, k

    @property
    def num_videos(self) -> int:
        return self._index.num_videos

    def ranks(self, batch: Batch, labels: Lists, seen: Lists) -> LabelRanks:
        most_seen = max(len(np.unique(watched)) for watched in seen)
        queries = np.asarray(self._model.query_embedding(batch), np.float32)
        k = min(self._k + most_seen, self._index.num_videos)
        ids, _ = self._index.search(queries, k)
        return LabelRanks.of_ids(ids, labels, seen)


def evaluate(
    ranker: Ranker,
    dataset: Iterable[Batch],
    top_k: Iterable[int],
    prefix: str = "",
    *,
    sliced: bool = False,
    upload_time_us: np.ndarray | None = None,
) -> dict[str, float]:
    """Ranks the labels of every case.

    Args:
      ranker: the model's, its index's or a baseline's.
      dataset: batches of evaluation cases: the features, `labels` and `seen`
        as ragged or -1 padded ids [B, None]; for slices `event_time_us` [B].
      top_k: the k of the metrics.
      prefix: put before the names, such as "baselines.popularity.".
      sliced: whether to add hit rates by activity and video age.
      upload_time_us: see `slices`.

    Returns:
      What `models.retrieval_metrics.metrics` and, if asked for,
      `models.retrieval_slices.slices` return.
    """
    top_k = checked_top_k(tuple(top_k))
    chunk = max(1, _CHUNK_BYTES // (4 * ranker.num_videos))
    parts, moments = [], []
    for batch in dataset:
        labels = history_rows(batch["labels"])
        seen = history_rows(batch["seen"])
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            rows = {name: tensor[part] for name, tensor in batch.items()}
            parts.append(ranker.ranks(rows, labels[part], seen[part]))
        if sliced:
            counts = [np.unique(row[row > 0]).size for row in seen]
            times = np.asarray(batch["event_time_us"], np.int64)
            moments.append((np.array(counts, np.int64), times))
    ranks = LabelRanks.concatenated(parts)
    values = metrics(ranks, top_k, whole_ranking=ranker.whole_ranking)
    if sliced:
        of_cases = Moments(*map(np.concatenate, zip(*moments, strict=True)))
        values |= slices(ranks, of_cases, top_k, upload_time_us)
    return {f"{prefix}{name}": value for name, value in values.items()}
