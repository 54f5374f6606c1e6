"""Turns a corpus so that its variance falls from dimension to dimension.

Scores stay the same: queries are turned alike. Hashes can then spend their
bits where the variance is, and a piece's variances along the axes say how far
its rows reach in the direction of a query.
"""

import os

import numpy as np

# Rows turned at once.
_CHUNK = 100_000


def principal_axes(vectors: np.ndarray) -> np.ndarray:
    """Columns by falling variance, float32 [D, D], orthonormal."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    # The product first: no centred copy of the corpus.
    moments = (vectors.T @ vectors) / len(vectors)
    _, axes = np.linalg.eigh(moments - np.outer(mean, mean))
    return np.ascontiguousarray(axes[:, ::-1], np.float32)


def turned_on_disk(
    vectors: np.ndarray, axes: np.ndarray, folder: str
) -> np.ndarray:
    """Coordinates along the axes, float32 [V, D], in a mapped file."""
    turned = np.lib.format.open_memmap(
        os.path.join(folder, "turned.npy"), "w+", np.float32, vectors.shape
    )
    for start in range(0, len(vectors), _CHUNK):
        part = slice(start, start + _CHUNK)
        turned[part] = vectors[part] @ axes
    turned.flush()
    return turned


def turn_in_place(vectors: np.ndarray, axes: np.ndarray) -> None:
    """Makes [V, D] coordinates along the axes, without a second corpus."""
    for start in range(0, len(vectors), _CHUNK):
        part = slice(start, start + _CHUNK)
        vectors[part] = vectors[part] @ axes
