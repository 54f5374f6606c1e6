"""Which row goes where, on tables small enough to work by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.keras_setup import tf
from models.retrieval import RetrievalModel
from models.warm_start import (
    Grouping,
    WarmStart,
    keep_terms,
    moved_table,
    video_groupings,
)
from schemas.errors import ArtifactError
from schemas.features import Feature, FeatureSet
from schemas.model_config import RetrievalConfig
from schemas.vocabularies import Vocabulary, vocabulary_files

# Row i holds i.0 and i.5, so that a row tells where it is from.
OLD = np.array([[0, 0], [1, 1.5], [2, 2.5], [3, 3.5]], np.float32)


def initial(rows: int) -> np.ndarray:
    """What a new model begins with: row 0 is zero, row i is (-i, -i)."""
    return -np.repeat(np.arange(rows + 1, dtype=np.float32)[:, None], 2, 1)


def test_rows_follow_their_terms() -> None:
    # New ids 1, 2, 3 were 3, 0 (unknown), 1; the term of old id 2 is gone.
    moved = moved_table(OLD, initial(3), np.array([3, 0, 1]))
    np.testing.assert_array_equal(moved, [[0, 0], [3, 3.5], [-2, -2], [1, 1.5]])
    assert moved.dtype == np.float32


def grouping(old: list[tuple[int, int]], new: list[tuple[int, int]]):
    pairs = np.array(old, np.int64).reshape(-1, 2)
    others = np.array(new, np.int64).reshape(-1, 2)
    return Grouping(pairs[:, 0], pairs[:, 1], others[:, 0], others[:, 1])


def test_a_new_term_gets_its_channel_s_mean_else_its_topics() -> None:
    # Channel 7: old 1 and 3, mean (2, 2.5). Channel 8: nobody before.
    channels = grouping([(1, 7), (3, 7), (2, 9)], [(1, 7), (2, 7), (3, 8)])
    # Topic 4: old 1 and 2, mean (1.5, 2). Topic 5: old 3. Topic 6: nobody.
    topics = grouping(
        [(1, 4), (2, 4), (3, 5)], [(2, 5), (3, 4), (3, 5), (3, 6), (4, 6)]
    )
    # New id 1 is old 3: the channel's mean is not for it.
    old_ids = np.array([3, 0, 0, 0])
    moved = moved_table(OLD, initial(4), old_ids, (channels, topics))
    np.testing.assert_array_equal(
        moved,
        [
            [0, 0],
            [3, 3.5],
            [2, 2.5],  # Its channel's, although it has a topic.
            [2.25, 2.75],  # Mean of (1.5, 2) and (3, 3.5).
            [-4, -4],  # Nothing known: as it was.
        ],
    )


def test_biases_move_as_rows_do() -> None:
    channels = grouping([(1, 0), (2, 0)], [(1, 0)])
    old = np.array([0, 1, 4, 9], np.float32)
    zeros = np.zeros(3, np.float32)
    moved = moved_table(old, zeros, np.array([0, 3]), (channels,))
    np.testing.assert_array_equal(moved, [0, 2.5, 9])


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"received \(2,\).*\(3,\)"):
        moved_table(OLD, np.zeros((2, 3), np.float32), np.array([1]))


def test_channels_and_topics_of_a_video_table() -> None:
    old = Vocabulary.of_terms("video", ["a", "b"], [2, 1])
    new = Vocabulary.of_terms("video", ["c", "b", "d"], [3, 2, 1])
    videos = pa.table(
        {
            "video_id": ["a", "b", "c", "d", "never watched"],
            "channel_id": pa.array(["x", None, "x", "y", "x"], pa.string()),
            "topics": pa.array(
                [["t", "u"], ["u"], None, ["u", "t"], ["t"]],
                pa.list_(pa.string()),
            ),
        }
    )
    channels, topics = video_groupings(old, new, videos)

    def pairs(ids: np.ndarray, groups: np.ndarray) -> set[tuple[int, int]]:
        return set(zip(ids.tolist(), groups.tolist(), strict=True))

    (x,) = set(channels.old_groups)
    assert pairs(channels.old_ids, channels.old_groups) == {(1, x)}
    y = (set(channels.new_groups) - {x}).pop()
    assert pairs(channels.new_ids, channels.new_groups) == {(1, x), (3, y)}
    u = topics.old_groups[topics.old_ids == 2][0]
    t = (set(topics.old_groups) - {u}).pop()
    assert pairs(topics.old_ids, topics.old_groups) == {(1, t), (1, u), (2, u)}
    # New b is id 2, d id 3; c has no topics.
    assert pairs(topics.new_ids, topics.new_groups) == {(2, u), (3, u), (3, t)}
    assert video_groupings(old, new, None) == ()
    (only,) = video_groupings(old, new, videos.select(["video_id", "topics"]))
    np.testing.assert_array_equal(only.new_ids, topics.new_ids)


FEATURES = FeatureSet(
    (
        Feature("watch_history", "bag", "query", "video", 4),
        Feature("user_region", "categorical", "query", "region"),
        Feature("hour_of_day", "categorical", "query", "hour_of_day"),
    )
)
CONFIG = RetrievalConfig(
    embedding_dim=4,
    categorical_dim=2,
    recency_bags=(4, 1),
    hidden_units=(6,),
    num_negatives=5,
)
VIDEOS, REGIONS = ["a", "b", "c", "d"], ["DE", "FR"]


def vocabularies(folder: Path, videos: list[str], regions: list[str]) -> str:
    folder.mkdir()
    for space, terms in (("video", videos), ("region", regions)):
        counts = list(range(len(terms), 0, -1))
        files = vocabulary_files(str(folder), space)
        Vocabulary.of_terms(space, terms, counts).write(*files)
    return str(folder)


def model_of(
    videos: list[str],
    regions: list[str],
    seed: int,
    config: RetrievalConfig = CONFIG,
    features: FeatureSet = FEATURES,
) -> RetrievalModel:
    sizes = {"video": len(videos), "region": len(regions)}
    return RetrievalModel(features, sizes, config, seed, example_age=True)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A saved model whose every weight is its own."""
    model = model_of(VIDEOS, REGIONS, seed=1)
    model.output_biases.assign([0.0, 1.0, 2.0, 3.0, 4.0])
    for i, layer in enumerate(model.query_tower.towers[0].layers):
        layer.bias.assign(tf.random.stateless_normal(layer.bias.shape, [i, 1]))
    folder = str(tmp_path / "saved")
    model.save(folder)
    terms = vocabularies(tmp_path / "terms", VIDEOS, REGIONS)
    keep_terms(folder, model, terms)
    return folder


def batch(videos: list[list[int]], regions: list[int]) -> dict[str, tf.Tensor]:
    return {
        "watch_history": tf.constant(videos, tf.int64),
        "user_region": tf.constant(regions, tf.int64),
        "hour_of_day": tf.constant([5] * len(regions), tf.int64),
    }


def test_the_same_vocabulary_gives_the_same_model(
    saved: str, tmp_path: Path
) -> None:
    new = model_of(VIDEOS, REGIONS, seed=2)
    same = vocabularies(tmp_path / "same", VIDEOS, REGIONS)
    inputs = batch([[1, 2, 0, -1], [4, 3, 3, 1]], [1, 2])
    old = RetrievalModel.load(saved)
    before = new.query_embedding(inputs).numpy()
    WarmStart.read(saved).apply(new, same, None)
    found = new.query_embedding(inputs).numpy()
    assert not np.allclose(before, found)
    np.testing.assert_array_equal(found, old.query_embedding(inputs))
    for a, b in zip(new.candidates(), old.candidates(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_model_moves_to_other_ids(saved: str, tmp_path: Path) -> None:
    """b and d keep their rows, a and c are gone, e is of b's channel."""
    new = model_of(["d", "e", "b"], ["FR", "IT", "DE"], seed=2)
    fresh = new.embeddings.tables["region"].numpy()
    folder = vocabularies(tmp_path / "new", ["d", "e", "b"], ["FR", "IT", "DE"])
    # a is gone from the vocabulary, but its row is known: (b + a) / 2.
    videos = pa.table(
        {"video_id": ["a", "b", "e"], "channel_id": ["x", "x", "x"]}
    )
    WarmStart.read(saved).apply(new, folder, videos)
    old = RetrievalModel.load(saved)
    # Old ids in the order of the new ones: d 4, e new, b 2.
    for before, after in (
        (old.embeddings.tables["video"], new.embeddings.tables["video"]),
        (old.output_embeddings, new.output_embeddings),
        (old.output_biases, new.output_biases),
    ):
        rows = before.numpy()
        mean = (rows[1] + rows[2]) / 2
        expected = np.stack([rows[0] * 0, rows[4], mean, rows[2]])
        np.testing.assert_allclose(after, expected, rtol=1e-6)
        np.testing.assert_array_equal(after[1], rows[4])
    assert new.output_biases[2] == 1.5
    regions = old.embeddings.tables["region"].numpy()
    np.testing.assert_array_equal(
        new.embeddings.tables["region"],
        [regions[0], regions[2], fresh[2], regions[1]],
    )
    # The same users, under their new ids, are the same queries.
    np.testing.assert_array_equal(
        new.query_embedding(batch([[1, 3, 0, -1]], [1])),
        old.query_embedding(batch([[4, 2, 0, -1]], [2])),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 5}, "retrieval.embedding_dim is 4, here it is 5"),
        ({"recency_bags": (4, 2)}, "recency_bags is [4, 1], here it is [4, 2]"),
        ({"output_activation": "relu"}, "output_activation is linear"),
    ],
)
def test_other_layers_are_refused(
    saved: str, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = CONFIG.model_copy(update=changes)
    new = model_of(VIDEOS, REGIONS, seed=2, config=config)
    same = vocabularies(tmp_path / "same", VIDEOS, REGIONS)
    with pytest.raises(ArtifactError) as refused:
        WarmStart.read(saved).apply(new, same, None)
    assert message in str(refused.value) and saved in str(refused.value)


def test_what_only_training_reads_may_differ(
    saved: str, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 7})
    new = model_of(VIDEOS, REGIONS, seed=2, config=config)
    same = vocabularies(tmp_path / "same", VIDEOS, REGIONS)
    WarmStart.read(saved).apply(new, same, None)
    assert new.output_biases[4] == 4.0


def test_other_features_are_refused(saved: str, tmp_path: Path) -> None:
    fewer = FeatureSet(FEATURES.features[:2])
    new = model_of(VIDEOS, REGIONS, seed=2, features=fewer)
    same = vocabularies(tmp_path / "same", VIDEOS, REGIONS)
    with pytest.raises(ArtifactError, match=r"query features is .*hour_of_day"):
        WarmStart.read(saved).apply(new, same, None)


def test_a_model_without_its_terms_is_refused(saved: str) -> None:
    path, _ = vocabulary_files(f"{saved}/vocabularies", "region")
    Path(path).write_text("DE\n")
    with pytest.raises(ArtifactError, match=r"region\.counts\.txt has 2"):
        WarmStart.read(saved)
    Path(path).unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        WarmStart.read(saved)


def test_a_model_keeps_its_vocabularies_only(saved: str) -> None:
    names = {p.name for p in Path(saved, "vocabularies").iterdir()}
    assert names == {
        f"{space}{kind}"
        for space in ("video", "region")
        for kind in (".txt", ".counts.txt")
    }
