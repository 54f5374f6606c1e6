"""A corpus as a trained model makes it: decaying spectrum, no clear clusters.

The figures are those of this project's retrieval model of 64 dimensions on
MovieLens-1M (3,416 videos, six epochs), measured once:

- Variance along the j-th principal axis falls as (1 + j / 6)^-2: the first
  holds 5 times that of the 10th, 26 times that of the 30th, 100 times that of
  the 64th. The same law gives 256 dimensions.
- The nearest, 10th and 100th neighbour have cosines of .80, .65 and .44, as
  single normal vectors of that spectrum have: whatever clusters there are
  overlap entirely. Half of the variance is between clusters here, of some 250
  videos by a Zipf law; 3,416 of a million drawn have cosines of .67, .57, .43.
- Lengths 1.02 +- .19 and biases 0 +- .11 fall with a video's rank.
- A query lies near several videos at once: the direction of the mean of three,
  half of it noise; its nearest video had a cosine of .68, its length was
  9.8 +- 2.9.
- The principal axes are no coordinate axes: all is turned at random.
"""

import math

import numpy as np

_PER_CLUSTER = 250
_CHUNK = 100_000


def _spread(dim: int) -> np.ndarray:
    """Standard deviation along each principal axis; squares sum to 1."""
    deviations = 1 / (1 + np.arange(1, dim + 1) / 6)
    return np.asarray(deviations / np.linalg.norm(deviations), np.float32)


def corpus(
    videos: int, dim: int, queries: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a corpus.

    Returns:
      float32 [V, D + 1] whose last dimension is the bias, and [B, D].
    """
    rng = np.random.default_rng(seed)
    spread = _spread(dim)
    half = np.float32(math.sqrt(0.5))

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    clusters = max(1, videos // _PER_CLUSTER)
    centres = half * normal(clusters, dim)
    share = 1 / np.sqrt(np.arange(1, clusters + 1))
    logs = np.log(np.arange(1, videos + 1))
    rank = (logs - logs.mean()) / max(logs.std(), 1e-9)
    rank = rank.astype(np.float32)
    vectors = np.empty((videos, dim + 1), np.float32)
    for start in range(0, videos, _CHUNK):
        part = slice(start, min(start + _CHUNK, videos))
        rows = part.stop - part.start
        cluster = rng.choice(clusters, rows, p=share / share.sum())
        length = np.exp(-0.12 * rank[part])
        own = (centres[cluster] + half * normal(rows, dim)) * spread
        vectors[part, :-1] = own * length[:, np.newaxis]
        vectors[part, -1] = -0.09 * rank[part] + 0.06 * normal(rows)
    near = vectors[rng.integers(videos, size=(queries, 3)), :-1].mean(axis=1)
    asked = _unit(near) + np.float32(0.5) * normal(queries, dim) * spread
    asked = (
        _unit(asked)
        * np.float32(9.8)
        * np.exp(np.float32(0.3) * normal(queries, 1))
    )
    turn, _ = np.linalg.qr(normal(dim, dim))
    for start in range(0, videos, _CHUNK):
        part = slice(start, start + _CHUNK)
        vectors[part, :-1] = vectors[part, :-1] @ turn
    return vectors, asked @ turn


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / lengths)
