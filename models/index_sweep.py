"""Chooses how much of the corpus a search reads, against exact search.

The cheapest setting that reaches the target recall on some queries. Cost is
bytes read, by arithmetic and not by a clock: the same corpus gives the same
index on a busy machine.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from models.partition import Partition
from models.scann_top_k import (
    HASHED_BYTES_PER_DIMENSION,
    ScannSettings,
    ScannTopK,
    careful_settings,
    num_leaves,
)
from schemas.config import IndexConfig

# Score rows of an exact search held at once.
_CHUNK_BYTES = 1 << 26
# Scores of one pair differ by the order of additions.
_SAME_SCORE = 1e-5
_LEAF_SHARES = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.17, 0.25, 0.35, 0.5)
_RESCORED_PER_NEIGHBOR = (1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50)
# A row at random costs about twice as much as one of many in a line.
_SCATTERED = 2
# The top of the hashed scores is kept while they are read.
_BYTES_TO_KEEP_A_ROW = 8


@dataclasses.dataclass(frozen=True)
class ExactAnswer:
    """What exact search finds for some queries.

    Attributes:
      vectors: float32 [V, D + 1], turned.
      queries: float32 [B, D + 1], a 1 appended, turned.
      rows: int64 [B, k] of 0..V - 1, in no order.
      kth: float32 [B], the least score among them.
    """

    vectors: np.ndarray
    queries: np.ndarray
    rows: np.ndarray
    kth: np.ndarray

    @classmethod
    def search(
        cls, vectors: np.ndarray, queries: np.ndarray, k: int
    ) -> "ExactAnswer":
        """Scores all rows, a few queries at a time."""
        rows = np.empty((len(queries), k), np.int64)
        kth = np.empty(len(queries), np.float32)
        chunk = max(1, _CHUNK_BYTES // (4 * len(vectors)))
        for start in range(0, len(queries), chunk):
            part = slice(start, start + chunk)
            scores = queries[part] @ vectors.T
            # Copied: a view would keep the places of all V rows.
            best = np.argpartition(scores, -k, axis=1)[:, -k:].copy()
            rows[part] = best
            kth[part] = np.take_along_axis(scores, best, axis=1).min(axis=1)
        return cls(vectors, queries, rows, kth)

    def part(self, which: slice) -> "ExactAnswer":
        """The answer to some of the queries."""
        return ExactAnswer(
            self.vectors,
            self.queries[which],
            self.rows[which],
            self.kth[which],
        )

    def recall(self, ids: np.ndarray) -> float:
        """Share of the exact top k that was found, mean of queries.

        A found video is of the top k if it scores no less than the exact k-th,
        so that equal scores cost nothing.

        Args:
          ids: int64 [B, k] in 1..V, distinct; 0 is nothing.
        """
        found = 0
        for query, kth, own in zip(self.queries, self.kth, ids, strict=True):
            scores = self.vectors[own[own > 0] - 1] @ query
            margin = _SAME_SCORE * max(1.0, abs(float(kth)))
            found += int((scores >= kth - margin).sum())
        return found / self.rows.size


@dataclasses.dataclass(frozen=True)
class ScannPoint:
    """A setting, what it finds, and the bytes that a query reads."""

    leaves: int
    rescored: int
    recall: float
    bytes_per_query: int


def sweep_scann(
    index: ScannTopK,
    queries: np.ndarray,
    exact: ExactAnswer,
    config: IndexConfig,
) -> tuple[ScannSettings, list[ScannPoint]]:
    """Finds the cheapest setting with `config.scann_recall`.

    For each number of rescored rows the fewest leaves are found by halving,
    since more leaves find no less. The careful settings stay where nothing
    reaches the target: then the gate decides.

    Args:
      index: its settings become the chosen ones.
      queries: float32 [B, D].
      exact: the answer to them.
      config: the target.

    Returns:
      the settings, and all that was measured, cheapest first.
    """
    careful = careful_settings(index.num_videos, config)
    if not careful.rescored:
        return careful, []
    measured: dict[ScannSettings, ScannPoint] = {}

    def reaches(settings: ScannSettings) -> bool:
        if settings not in measured:
            index.settings = settings
            ids, _ = index.search(queries, settings.neighbors)
            measured[settings] = ScannPoint(
                settings.leaves,
                settings.rescored,
                exact.recall(ids),
                _bytes(settings, index.num_videos, exact.vectors.shape[1]),
            )
        return measured[settings].recall >= config.scann_recall

    good = []
    for rescored in _rescored_counts(careful.neighbors, index.num_videos):
        grid = [
            ScannSettings(leaves, rescored, careful.neighbors)
            for leaves in _leaf_counts(careful)
        ]
        if first := _first(grid, reaches):
            good.append(first)
    chosen = min(
        good, key=lambda s: measured[s].bytes_per_query, default=careful
    )
    index.settings = chosen
    points = sorted(measured.values(), key=lambda p: p.bytes_per_query)
    return chosen, points


@dataclasses.dataclass(frozen=True)
class PiecesPoint:
    """Pieces read by a query, the rows they have room for, what is found."""

    searched: int
    rows: int
    recall: float


def sweep_pieces(
    partition: Partition, exact: ExactAnswer, config: IndexConfig
) -> tuple[int, list[PiecesPoint]]:
    """Finds the fewest pieces with `config.stock_recall`.

    Returns:
      how many, and the recall of powers of 2 and of that number.
    """
    pieces, width = partition.members.shape
    needed = np.sort(
        partition.needed_pieces(exact.queries, exact.rows), axis=None
    )
    place = int(np.ceil(config.stock_recall * needed.size)) - 1
    room = partition.pieces_with_room(exact.rows.shape[1])
    chosen = max(int(needed[max(place, 0)]), room)
    numbers = {2**n for n in range(pieces.bit_length())} | {chosen, pieces}
    return chosen, [
        PiecesPoint(
            number,
            number * width,
            float(np.searchsorted(needed, number, side="right") / needed.size),
        )
        for number in sorted(numbers)
    ]


def _first(grid: Sequence[ScannSettings], reaches) -> ScannSettings | None:
    """The first that reaches the target, all after it doing so too."""
    if not reaches(grid[-1]):
        return None
    low, high = 0, len(grid) - 1
    while low < high:
        middle = (low + high) // 2
        if reaches(grid[middle]):
            high = middle
        else:
            low = middle + 1
    return grid[high]


def _leaf_counts(careful: ScannSettings) -> Iterable[int]:
    if not careful.leaves:
        return [0]
    # The careful one has half of them.
    leaves = 2 * careful.leaves
    return sorted({max(1, round(leaves * s)) for s in _LEAF_SHARES})


def _rescored_counts(neighbors: int, videos: int) -> Iterator[int]:
    counts = {min(videos, round(neighbors * n)) for n in _RESCORED_PER_NEIGHBOR}
    yield from sorted(counts)


def _bytes(settings: ScannSettings, videos: int, dim: int) -> int:
    """What a query reads: centroids, hashes, rescored rows."""
    hashed = float(videos)
    centroids = 0
    if settings.leaves:
        leaves = num_leaves(videos)
        hashed *= settings.leaves / leaves
        centroids = leaves * dim * 4
    rescored = settings.rescored * dim * 4 * _SCATTERED
    hashed *= dim * HASHED_BYTES_PER_DIMENSION + _BYTES_TO_KEEP_A_ROW
    return round(centroids + hashed) + rescored
