"""Examples with a rule to learn, a model small enough, and its training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from models.inputs import max_lengths
from models.keras_setup import tf
from models.lanes import training_dataset
from models.retrieval import RetrievalModel
from pipeline.distribution import make_strategy
from pipeline.training import TrainingResult, train
from schemas.examples import retrieval_keys
from schemas.features import Feature, FeatureSet
from schemas.model_config import RetrievalConfig

VIDEOS, BATCH = 40, 32
FEATURES = FeatureSet((Feature("watch_history", "bag", "query", "video", 4),))
CONFIG = RetrievalConfig(
    embedding_dim=8,
    recency_bags=(4, 1),
    hidden_units=(16,),
    dropout=0.2,
    num_negatives=20,
    batch_size=BATCH,
    table_optimizer="lazy_adam",
    table_learning_rate=0.02,
    learning_rate=0.01,
    epochs=4,
    patience=4,
    checkpoint_every=7,
)


def next_video(video: int) -> int:
    """The rule to learn: each video is followed by one other."""
    return (video * 7) % VIDEOS + 1


def write_files(folder: Path) -> dict[str, int]:
    """330 examples in two files: 10 batches of 32 and 10 left over."""
    rng = np.random.default_rng(0)
    return {
        write_examples(
            folder / f"train-{i}.tfrecord",
            [
                rng.integers(1, VIDEOS + 1, size=rng.integers(1, 5))
                for _ in range(165)
            ],
            next_video,
        ): 165
        for i in range(2)
    }


def write_examples(
    path: Path, histories: list[np.ndarray], label: Callable[[int], int]
) -> str:
    """Writes an example of each history; returns the path."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for history in histories:
            writer.write(_example(history.tolist(), label(int(history[0]))))
    return str(path)


def _example(history: list[int], label: int) -> bytes:
    def ints(values: list[int]) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    weight = tf.train.FloatList(value=[1.0])
    user = tf.train.BytesList(value=[b"u"])
    feature = {
        "watch_history": ints(history),
        "label": ints([label]),
        "event_time_us": ints([0]),
        "user_id": tf.train.Feature(bytes_list=user),
        "example_weight": tf.train.Feature(float_list=weight),
    }
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def build(
    kind: type[RetrievalModel] = RetrievalModel, **changes: object
) -> RetrievalModel:
    """The model before its first step."""
    config = CONFIG.model_copy(update=changes)
    return kind(FEATURES, {"video": VIDEOS}, config, seed=1, example_age=False)


def hit_rate(model: RetrievalModel) -> dict[str, float]:
    """Share of videos whose successor is scored highest."""
    videos = np.arange(1, VIDEOS + 1)
    history = np.full((VIDEOS, 4), -1)
    history[:, 0] = videos
    queries = model.query_embedding({"watch_history": tf.constant(history)})
    embeddings, biases = model.candidates()
    best = np.argmax(queries @ tf.transpose(embeddings) + biases, axis=1) + 1
    return {"hit_rate": float(np.mean(best == (videos * 7) % VIDEOS + 1))}


def run(
    files: dict[str, int],
    workdir: Path,
    evaluate: Callable[[Any], dict[str, float]] = hit_rate,
    build_model: Callable[[], Any] = build,
    **options: Any,
) -> TrainingResult:
    config = CONFIG.model_copy(update=options.pop("changes", {}))
    options.setdefault("metric", "hit_rate")

    def make_dataset(epoch: int, skip: int) -> tf.data.Dataset:
        return training_dataset(
            files,
            retrieval_keys(FEATURES, "train", example_age=False),
            config.batch_size,
            padded_lengths=max_lengths(FEATURES),
            seed=1,
            epoch=epoch,
            skip_batches=skip,
        )

    return train(
        build_model,
        make_dataset,
        evaluate,
        config=config,
        workdir=str(workdir),
        strategy=make_strategy("one_device"),
        progress=False,
        **options,
    )


def weights(model: RetrievalModel) -> list[np.ndarray]:
    variables = (*model.table_variables, *model.dense_variables)
    return [v.numpy() for v in variables]


def assert_same_bits(one: RetrievalModel, other: RetrievalModel) -> None:
    for a, b in zip(weights(one), weights(other), strict=True):
        assert a.tobytes() == b.tobytes()
