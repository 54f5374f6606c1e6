"""torch-rechub's YoutubeDNN, as its own example script trains it.

Run by an interpreter that has torch and torch_rechub, and none of our packages:
model, trainer, loader and their settings are those of the script
`examples/matching/run_ml_youtube_dnn.py` of that project.
"""

import argparse
import json
import time

import numpy as np
import torch
import torch_rechub
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.matching import YoutubeDNN
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator

from benchmarks.processes import total_cpu_s

_USER = ("user_id", "gender", "age", "occupation")
_DIM, _TOWER, _BATCH = 16, [128, 64, 16], 2048


def build(x: dict[str, np.ndarray]) -> YoutubeDNN:
    """The model for these columns."""

    def movies(name: str, pooling: str) -> SequenceFeature:
        return SequenceFeature(
            name,
            vocab_size=sizes["movie_id"],
            embed_dim=_DIM,
            pooling=pooling,
            shared_with="movie_id",
        )

    sizes = {name: int(values.max()) + 1 for name, values in x.items()}
    users = [
        SparseFeature(name, vocab_size=sizes[name], embed_dim=_DIM)
        for name in _USER
    ]
    movie = SparseFeature(
        "movie_id", vocab_size=sizes["movie_id"], embed_dim=_DIM
    )
    return YoutubeDNN(
        [*users, movies("hist_movie_id", "mean")],
        [movie],
        [movies("neg_items", "concat")],
        user_params={"dims": _TOWER},
        temperature=0.02,
    )


def measure(path: str, epochs: int, loaders: int) -> dict[str, object]:
    """Trains one epoch to warm up and `epochs` more; times these.

    Reading the file is over before the clock starts.
    """
    torch.manual_seed(2022)
    with np.load(path) as arrays:
        x = dict(arrays)
    y = np.zeros(len(x["movie_id"]), np.int64)
    few = {name: values[:8] for name, values in x.items()}
    loader, _, _ = MatchDataGenerator(x=x, y=y).generate_dataloader(
        few, few, batch_size=_BATCH, num_workers=loaders
    )
    model = build(x)
    trainer = MatchTrainer(
        model, mode=2, optimizer_params={"lr": 1e-4, "weight_decay": 1e-6}
    )
    losses = [trainer.train_one_epoch(loader)]
    cpu_s, seconds = total_cpu_s(), []
    for _ in range(epochs):
        started = time.perf_counter()
        losses.append(trainer.train_one_epoch(loader))
        seconds.append(time.perf_counter() - started)
    return {
        "examples": len(y) * epochs,
        "seconds": sum(seconds),
        "cpu_s": total_cpu_s() - cpu_s,
        "epoch_seconds": seconds,
        "train_loss": losses,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loader_processes": loaders,
        "versions": {
            "torch": torch.__version__,
            "torch-rechub": torch_rechub.__version__,
        },
    }


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arrays")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--loaders", type=int, default=8)
    args = parser.parse_args()
    print(json.dumps(measure(args.arrays, args.epochs, args.loaders)))


if __name__ == "__main__":
    main()
