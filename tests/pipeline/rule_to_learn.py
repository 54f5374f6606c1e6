"""Examples with a rule to learn, and a model small enough to learn it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from models.keras_setup import tf
from models.retrieval import RetrievalModel
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
