"""Matrix factorisation and a linear autoencoder: the strong simple peers.

In: the training watches as a user x video matrix of zeros and ones. Out:
scorers that see of a case what the model sees, its watch history.
"""

from collections.abc import Mapping
from typing import Any

import implicit
import numpy as np
from scipy import sparse
from threadpoolctl import threadpool_limits

from models.baselines import Watches, history_rows, popularity_counts
from models.co_watch import bag_matrix
from schemas.errors import UsageError

# B has V^2 floats: 1.6 GB at 20,000 videos, as much again while inverting.
EASE_MOST_VIDEOS = 20_000


class ImplicitAls:
    """Weighted matrix factorisation (Hu, Koren and Volinsky, 2008).

    By the library `implicit`. A case's factors are solved for anew from its
    watch history: its users need not have been there in training.
    """

    def __init__(
        self,
        watches: Watches,
        num_videos: int,
        seed: int,
        *,
        factors: int = 64,
        regularization: float = 0.05,
        alpha: float = 2.0,
        iterations: int = 10,
    ) -> None:
        # Its own threads call the BLAS, which must not start as many again.
        with threadpool_limits(1, "blas"):
            self._model = implicit.als.AlternatingLeastSquares(
                factors=factors,
                regularization=regularization,
                alpha=alpha,
                iterations=iterations,
                random_state=seed,
            )
            matrix = watch_matrix(watches, num_videos)
            self._model.fit(matrix, show_progress=False)
        self._popularity = popularity_counts(watches, num_videos)

    @property
    def num_videos(self) -> int:
        return len(self._model.item_factors)

    def scores(self, batch: Mapping[str, Any]) -> np.ndarray:
        history = _histories(batch, self.num_videos)
        cases = np.arange(history.shape[0])
        factors = self._model.recalculate_user(cases, history)
        scores = np.asarray(factors @ self._model.item_factors.T, np.float32)
        return _popular_for_newcomers(scores, history, self._popularity)


class Ease:
    """Embarrassingly shallow autoencoder (Steck, 2019).

    B minimises |X - X B|^2 + l2 |B|^2 under diag(B) = 0, in closed form: with
    P the inverse of X'X + l2 I, b_ij = -p_ij / p_jj off the diagonal.

    Raises:
      UsageError: more videos than a dense B has room for.
    """

    def __init__(
        self, watches: Watches, num_videos: int, *, l2: float = 100.0
    ) -> None:
        if num_videos > EASE_MOST_VIDEOS:
            raise UsageError(
                f"The baseline 'ease' inverts a dense matrix of {num_videos:,}"
                f" x {num_videos:,}; it is for at most {EASE_MOST_VIDEOS:,} "
                "videos. Leave it out of evaluation.baselines."
            )
        matrix = watch_matrix(watches, num_videos).astype(np.float64)
        gram = (matrix.T @ matrix).toarray()
        gram[np.diag_indices(num_videos)] += l2
        inverse = np.linalg.inv(gram)
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0.0)
        self._weights = weights.astype(np.float32)
        self._popularity = popularity_counts(watches, num_videos)

    @property
    def num_videos(self) -> int:
        return len(self._weights)

    def scores(self, batch: Mapping[str, Any]) -> np.ndarray:
        history = _histories(batch, self.num_videos)
        scores = np.asarray(history @ self._weights, np.float32)
        return _popular_for_newcomers(scores, history, self._popularity)


def watch_matrix(watches: Watches, num_videos: int) -> sparse.csr_matrix:
    """Who watched what at least once: float32 ones [users, V]."""
    users, user = np.unique(watches.user, return_inverse=True)
    pairs = (user, watches.video - 1)
    ones = np.ones(user.size, np.float32)
    matrix = sparse.csr_matrix((ones, pairs), shape=(users.size, num_videos))
    matrix.data[:] = 1.0  # Equal pairs have been added up.
    return matrix


def _histories(batch: Mapping[str, Any], num_videos: int) -> sparse.csr_matrix:
    rows = [np.unique(row) for row in history_rows(batch["watch_history"])]
    return sparse.csr_matrix(bag_matrix(rows, num_videos))


def _popular_for_newcomers(
    scores: np.ndarray, history: sparse.csr_matrix, counts: np.ndarray
) -> np.ndarray:
    """Ranks by popularity where there is no history: all scores are 0."""
    scores[np.diff(history.indptr) == 0] = counts
    return scores
