"""Training examples as the arrays that torch-rechub's script trains on.

In: the examples of a work directory. Out: one `.npz` of integers, as that
script saves its own: the last 50 watches before the label, padded with 0, the
label, three negatives drawn once by count^0.75, and the user's columns.
"""

import argparse
import json

import numpy as np

from models.inputs import dataset, max_lengths
from pipeline.config import load_config
from pipeline.run import SAVED_CONFIG, Run
from pipeline.stages import DataStages
from schemas.artifacts import ArtifactStore, join
from schemas.examples import retrieval_keys

_NEGATIVES, _CHUNK = 3, 8192
# The peer's name of a user's column -> the key of our examples.
USER_COLUMNS = {
    "user_id": "user_id",
    "gender": "user_gender",
    "age": "user_age",
    "occupation": "user_occupation",
}


def read_columns(workdir: str) -> dict[str, np.ndarray]:
    """Returns key -> values [n, ...] of all training examples."""
    config = load_config(join(workdir, SAVED_CONFIG), [])
    data = DataStages(Run(config, ArtifactStore(workdir)))
    chunks = dataset(
        data.retrieval_examples().files("train-"),
        retrieval_keys(
            data.features,
            "train",
            example_age=config.retrieval_examples.example_age,
        ),
        _CHUNK,
        padded_lengths=max_lengths(data.features),
    )
    parts = list(chunks.as_numpy_iterator())
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def peer_arrays(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the peer's columns, int64 [n] or [n, length], 0 for padding."""
    labels = columns["label"]
    counts = np.bincount(labels)
    share = counts**0.75 * (counts > 0)
    negatives = np.random.default_rng(0).choice(
        len(counts), (len(labels), _NEGATIVES), p=share / share.sum()
    )
    arrays = {
        "movie_id": labels,
        "neg_items": negatives,
        "hist_movie_id": np.maximum(columns["watch_history"], 0),
    }
    for name, key in USER_COLUMNS.items():
        # Sparse there, whatever they are in ours: of the age one number tells.
        values = columns[key]
        values = values[:, 0] if values.ndim > 1 else values
        arrays[name] = 1 + np.unique(values, return_inverse=True)[1]
    return {name: a.astype(np.int64) for name, a in arrays.items()}


def main() -> None:
    """Writes the file; prints its number of examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir")
    parser.add_argument("output")
    args = parser.parse_args()
    arrays = peer_arrays(read_columns(args.workdir))
    np.savez(args.output, **arrays)
    print(json.dumps({"examples": len(arrays["movie_id"])}))


if __name__ == "__main__":
    main()
