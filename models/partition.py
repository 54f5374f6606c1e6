"""The parts a corpus is searched in: leaves cut into pieces of one size.

In: vectors [V, D], turned to their principal axes, and the leaf of each row,
as ScaNN learned them. Out: P pieces of at most W rows each, no matter how
uneven the leaves are. A search reads whole pieces, so every query costs the
same, and static shapes do.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

PADDING = -1
# The best of n normal numbers lies about sqrt(2 ln n) deviations above their
# mean, 2.9 for 64 rows; real tails are longer. For a recall of .965 on a
# million vectors with a trained model's spectrum, 0, 2, 3, 4 and 5 need 58,600,
# 21,800, 17,900, 16,900 and 17,200 rows.
DEVIATIONS = 4.0
# Iterations towards the direction in which a leaf is longest; a cut need not
# be along it exactly.
_POWER_ITERATIONS = 5


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which rows each piece has, and where they lie.

    Attributes:
      members: int32 [P, W] rows, each of 0..V - 1 once; -1 is padding, at the
        end of a piece.
      centroids: float32 [P, D], the mean of each piece.
      profile: float32 [D], the variance within a piece in each dimension,
        mean of all pieces.
      spreads: float32 [P], how many times as wide as that a piece is.
    """

    members: np.ndarray
    centroids: np.ndarray
    profile: np.ndarray
    spreads: np.ndarray

    @property
    def num_rows(self) -> int:
        """V."""
        return int((self.members != PADDING).sum())

    def piece_of_row(self) -> np.ndarray:
        """int32 [V]: the piece that holds each row."""
        pieces, places = np.nonzero(self.members != PADDING)
        piece = np.empty(len(pieces), np.int32)
        piece[self.members[pieces, places]] = pieces
        return piece

    def pieces_with_room(self, k: int) -> int:
        """How many pieces surely hold k rows and as many that were watched.

        They are half full at least, on the mean.
        """
        pieces, width = self.members.shape
        return int(min(pieces, -(-4 * k // width)))

    def promise(self, queries: np.ndarray) -> np.ndarray:
        """What the best row of each piece is expected to score, [B, P].

        The mean score of the piece's rows, and DEVIATIONS times their
        standard deviation: a wide piece may hold better rows than a near one.
        The deviation takes the dimensions for uncorrelated, as principal axes
        about are, and pieces for wide in the same directions: so a single
        product with the pieces gives both.
        """
        return self.with_deviation(queries) @ self.promising().T

    def with_deviation(self, queries: np.ndarray) -> np.ndarray:
        """Appends to each query its deviation in a mean piece, [B, D + 1]."""
        deviation = np.sqrt(np.square(queries) @ self.profile)
        return np.concatenate([queries, deviation[:, None]], axis=1)

    def promising(self) -> np.ndarray:
        """What `with_deviation` is multiplied with, float32 [P, D + 1]."""
        spreads = DEVIATIONS * self.spreads[:, None]
        return np.concatenate([self.centroids, spreads], axis=1)

    def needed_pieces(
        self, queries: np.ndarray, best_rows: np.ndarray
    ) -> np.ndarray:
        """How many pieces must be read to find each of the best rows.

        Scores in the pieces are exact, so this alone is the recall of any
        number of pieces: no search needs to be run.

        Args:
          queries: float32 [B, D].
          best_rows: int [B, k], the exact answer.

        Returns:
          int64 [B, k], from 1 to P.
        """
        order = np.argsort(-self.promise(queries), axis=1, kind="stable")
        rank = np.empty_like(order)
        places = np.arange(1, order.shape[1] + 1)[np.newaxis]
        np.put_along_axis(rank, order, places, axis=1)
        return np.take_along_axis(rank, self.piece_of_row()[best_rows], axis=1)


def cut(
    vectors: np.ndarray,
    leaves: np.ndarray,
    rows_per_piece: int,
    query_squares: np.ndarray | None = None,
) -> Partition:
    """Cuts every leaf into pieces of equal size, at most `rows_per_piece`.

    A leaf that is too large is halved across the direction in which it is
    longest, and the halves again: pieces are closer together than leaves, so
    fewer rows have to be read for the same recall.

    Args:
      vectors: float32 [V, D].
      leaves: int [V], the leaf of each row.
      rows_per_piece: W.
      query_squares: float [D], what the queries' squares are on the mean:
        the directions in which the width of a piece counts; None: all alike.

    Raises:
      ValueError: shapes do not fit.
    """
    if vectors.ndim != 2 or leaves.shape != vectors.shape[:1]:
        raise ValueError(
            "Expected vectors [V, D] and leaves [V], got shapes "
            f"{vectors.shape} and {leaves.shape}."
        )
    order = np.argsort(leaves, kind="stable").astype(np.int32)
    starts = np.flatnonzero(np.diff(leaves[order])) + 1
    pieces = [
        piece
        for leaf in np.split(order, starts)
        for piece in _cut_leaf(vectors, leaf, rows_per_piece)
    ]
    members = np.full((len(pieces), rows_per_piece), PADDING, np.int32)
    dim = vectors.shape[1]
    centroids = np.empty((len(pieces), dim), np.float32)
    weights = np.ones(dim) if query_squares is None else query_squares
    profile, widths = np.zeros(dim), np.empty(len(pieces))
    for number, piece in enumerate(pieces):
        members[number, : len(piece)] = piece
        own = vectors[piece]
        centroids[number] = own.mean(axis=0)
        variances = own.var(axis=0)
        profile += variances / len(pieces)
        widths[number] = variances @ weights
    # Where nothing varies, neither does the mean.
    mean = np.maximum(profile @ weights, np.finfo(np.float32).tiny)
    spreads = np.sqrt(widths / mean).astype(np.float32)
    return Partition(members, centroids, profile.astype(np.float32), spreads)


def _cut_leaf(
    vectors: np.ndarray, rows: np.ndarray, most: int
) -> Iterator[np.ndarray]:
    """Pieces of a leaf's rows, sizes as equal as can be."""
    pieces = -(-len(rows) // most)
    if pieces <= 1:
        yield rows
        return
    own = vectors[rows]
    along = own @ _longest_direction(own)
    order = rows[np.argsort(along, kind="stable")]
    # Whole pieces to each side: 5 pieces are 2 and 3.
    middle = len(rows) * (pieces // 2) // pieces
    yield from _cut_leaf(vectors, order[:middle], most)
    yield from _cut_leaf(vectors, order[middle:], most)


def _longest_direction(vectors: np.ndarray) -> np.ndarray:
    """About the first principal axis, float [D]; 0 if all are equal.

    Power iteration from the vector farthest from the mean: no randomness.
    """
    centred = vectors - vectors.mean(axis=0)
    axis = centred[np.argmax(np.einsum("nd,nd->n", centred, centred))]
    for _ in range(_POWER_ITERATIONS):
        # Of length 1 before each step: the cube of a bias can overflow.
        axis = axis / max(float(np.abs(axis).max()), 1e-30)
        axis = (centred @ axis) @ centred
    return axis
