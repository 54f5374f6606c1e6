"""The model's training, from TFRecords on disk, in a process of its own.

The product's own loop on the stages of a work directory; the model's size is
that of torch-rechub's YoutubeDNN on MovieLens-1M.
"""

import argparse
import json
import shutil
import tempfile
import time
from itertools import pairwise

from benchmarks.contest import peak_rss_gib
from benchmarks.processes import total_cpu_s
from models.inputs import max_lengths
from models.keras_setup import tf
from models.lanes import training_dataset
from models.retrieval import RetrievalModel
from pipeline.config import load_config
from pipeline.distribution import make_strategy
from pipeline.run import SAVED_CONFIG, Run
from pipeline.stages import DataStages
from pipeline.training import train
from schemas.artifacts import ArtifactStore, join
from schemas.examples import retrieval_keys
from schemas.model_config import RetrievalConfig

SIZE = {
    "embedding_dim": 16,
    "categorical_dim": 16,
    "recency_bags": (50,),
    "hidden_units": (128, 64),
    "dropout": 0.0,
    "negatives": "list_wise",
    "num_negatives": 3,
    "table_optimizer": "lazy_adam",
    "batch_size": 2048,
}


def measure(workdir: str, epochs: int) -> dict[str, object]:
    """Trains one epoch to warm up and `epochs` more; times these.

    An epoch's time is from the end of the one before it: opening the files,
    reading, parsing, all steps, and writing the checkpoint.
    """
    config = load_config(join(workdir, SAVED_CONFIG), [])
    data = DataStages(Run(config, ArtifactStore(workdir)))
    files = data.retrieval_examples().records("train-")
    section = RetrievalConfig(**SIZE, epochs=epochs + 1, patience=epochs + 1)
    keys = retrieval_keys(
        data.features,
        "train",
        example_age=config.retrieval_examples.example_age,
    )
    ends: list[tuple[float, float]] = []

    def batches(epoch: int, skip: int) -> tf.data.Dataset:
        return training_dataset(
            files,
            keys,
            section.batch_size,
            padded_lengths=max_lengths(data.features),
            seed=config.seed,
            epoch=epoch,
            skip_batches=skip,
            num_lanes=section.lanes,
        )

    def build() -> RetrievalModel:
        return RetrievalModel(
            data.features,
            data.sizes,
            section,
            config.seed,
            example_age=config.retrieval_examples.example_age,
        )

    def note_the_end(_: RetrievalModel) -> dict[str, float]:
        ends.append((time.perf_counter(), total_cpu_s()))
        return {"epoch": float(len(ends))}

    folder = tempfile.mkdtemp()
    try:
        result = train(
            build,
            batches,
            note_the_end,
            metric="epoch",
            config=section,
            workdir=folder,
            strategy=make_strategy("one_device"),
            progress=False,
        )
    finally:
        shutil.rmtree(folder)
    model = result.model
    weights = (*model.table_variables, *model.dense_variables)
    steps = sum(files.values()) // section.batch_size
    return {
        "examples": steps * section.batch_size * epochs,
        "seconds": ends[-1][0] - ends[0][0],
        "cpu_s": ends[-1][1] - ends[0][1],
        "epoch_seconds": [
            end - start for (start, _), (end, _) in pairwise(ends)
        ],
        "train_loss": [epoch["train_loss"] for epoch in result.history],
        "parameters": sum(int(tf.size(v)) for v in weights),
        "peak_rss_gib": peak_rss_gib(),
    }


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir")
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    print(json.dumps(measure(args.workdir, args.epochs)))


if __name__ == "__main__":
    main()
