"""Writes the files of a corpus as a trained model makes it.

Its figures and their origin: `pipeline/experiments/corpus.py`.
"""

import sys
from pathlib import Path

import numpy as np

from pipeline.experiments.corpus import corpus


def main() -> None:
    """Writes `vectors.npy` and `queries.npy`: FOLDER VIDEOS DIM QUERIES."""
    folder = Path(sys.argv[1])
    videos, dim, queries = map(int, sys.argv[2:])
    folder.mkdir(parents=True, exist_ok=True)
    vectors, asked = corpus(videos, dim, queries)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", asked)
    print("{}")


if __name__ == "__main__":
    main()
