"""The arrays that the peer trains on are those of our examples."""

import numpy as np

from beam_jobs.sources.mapping import load_mapping
from benchmarks.train_arrays import USER_COLUMNS, peer_arrays
from pipeline.config import load_mapping_file
from schemas.config import Config
from schemas.examples import retrieval_keys
from schemas.features import feature_set


def test_the_examples_have_what_the_peer_is_given() -> None:
    mapping = load_mapping(load_mapping_file("movielens-1m", "/logs").content)
    config = Config()
    features = feature_set(
        mapping.event_schema(),
        config.retrieval_examples,
        config.ranking_examples,
    )
    keys = retrieval_keys(features, "train", example_age=False)
    names = {key.name for key in keys}
    assert names >= {"label", "watch_history", *USER_COLUMNS.values()}


def test_the_peer_s_arrays_hold_the_examples() -> None:
    columns = {
        "label": np.array([3, 1, 3, 3]),
        "watch_history": np.array([[1, 2, -1], [3, 0, -1], [1, -1, -1]] * 2)[
            :4
        ],
        "user_id": np.array([b"u9", b"u2", b"u9", b"u9"], object),
        "user_gender": np.array([2, 1, 2, 2]),
        "user_age": np.array([[0.5, 0, 0, 0], [0.1, 0, 0, 0]] * 2),
        "user_occupation": np.array([7, 7, 7, 7]),
    }
    found = peer_arrays(columns)
    assert {values.dtype for values in found.values()} == {np.dtype(np.int64)}
    assert found["movie_id"].tolist() == [3, 1, 3, 3]
    # 0 is padding there.
    assert found["hist_movie_id"].tolist() == [
        [1, 2, 0],
        [3, 0, 0],
        [1, 0, 0],
        [1, 2, 0],
    ]
    # Codes from 1 on, by order.
    assert found["user_id"].tolist() == [2, 1, 2, 2]
    assert found["age"].tolist() == [2, 1, 2, 1]
    assert found["occupation"].tolist() == [1, 1, 1, 1]
    # Only what is a label is a negative.
    assert found["neg_items"].shape == (4, 3)
    assert set(found["neg_items"].flat) <= {1, 3}


def test_negatives_are_drawn_by_the_count_to_three_quarters() -> None:
    n = 30_000
    columns = {
        "label": np.where(np.arange(n) % 17 == 0, 2, 1),
        "watch_history": np.ones((n, 1), np.int64),
        "user_id": np.zeros(n),
        "user_gender": np.zeros(n),
        "user_age": np.zeros((n, 4)),
        "user_occupation": np.zeros(n),
    }
    # Counts are as 16 : 1, their powers as 8 : 1.
    share = np.mean(peer_arrays(columns)["neg_items"] == 2)
    assert abs(share - 1 / 9) < 0.005
