"""The lists of candidate generators against counting by hand."""

import numpy as np
import pyarrow as pa
import pytest

from models.baselines import Watches
from models.candidate_lists import (
    CandidateLists,
    co_watch_lists,
    popular_lists,
    topic_lists,
    topics_of_videos,
)
from schemas.vocabularies import Vocabulary


def watches_of(*rows):
    """Rows of user, video; the time is the place."""
    user, video = np.array(rows).T
    return Watches(user.astype(np.uint64), video, np.arange(len(rows)))


def test_co_watch_counts_what_others_watched_after():
    # User 1: 1 2 3; user 2: 1 3; user 3: 4 alone.
    watches = watches_of((1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 4))
    lists = co_watch_lists(watches, 5, 2)
    # 1 -> 3 twice, 1 -> 2 once; n_1 = n_3 = 2, n_2 = 1.
    np.testing.assert_array_equal(
        lists.ids, [[0, 0], [3, 2], [3, 0], [0, 0], [0, 0], [0, 0]]
    )
    np.testing.assert_allclose(
        lists.scores[1:3], [[2 / 2, 1 / 2**0.5], [1 / 2**0.5, 0]], rtol=1e-6
    )
    np.testing.assert_array_equal(lists.keys_of_video[:, 0], range(6))


def test_topics_list_their_most_watched_videos():
    topics = np.array([[0, 0], [1, 2], [1, 0], [2, 2], [0, 0]], np.int32)
    watches = watches_of((1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (4, 3))
    lists = topic_lists(watches, topics, 3, 2)
    # Topic 1: video 2 twice, 1 once. Topic 2: 3 three times, 1 once; that 3
    # names it twice changes nothing. Topic 3 and video 4 have nothing.
    np.testing.assert_array_equal(lists.ids, [[0, 0], [2, 1], [3, 1], [0, 0]])
    np.testing.assert_allclose(lists.scores[1], [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(lists.scores[2], [3 / 4, 1 / 4], rtol=1e-6)
    assert lists.keys_of_video is topics


def test_regions_list_what_their_users_watch_and_key_0_everybody():
    watches = watches_of((7, 1), (7, 2), (8, 2), (9, 3), (9, 3), (9, 2))
    lists = popular_lists(
        watches,
        np.array([9, 8, 7, 5], np.uint64),
        np.array([0, 1, 1, 2]),
        2,
        3,
        3,
    )
    np.testing.assert_array_equal(lists.ids, [[2, 3, 1], [2, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(lists.scores[0], [3 / 6, 2 / 6, 1 / 6], 1e-6)
    np.testing.assert_allclose(lists.scores[1], [2 / 3, 1 / 3, 0], 1e-6)
    assert lists.keys_of_video is None


def test_random_lists_are_the_sorted_counts():
    rng = np.random.default_rng(5)
    watches = Watches(
        rng.integers(50, size=3000).astype(np.uint64),
        1 + (rng.random(3000) ** 2 * 40).astype(np.int64),
        np.arange(3000),
    )
    # Of the user 49 nothing is known.
    users = rng.permutation(49)
    lists = popular_lists(watches, users.astype(np.uint64), users % 4, 3, 40, 7)
    for region in range(4):
        theirs = (watches.user % 4 == region) & (watches.user < 49)
        own = watches.video[(region == 0) | theirs]
        counts = np.bincount(own, minlength=41)[1:]
        best = np.argsort(-counts, kind="stable")[:7]
        np.testing.assert_array_equal(lists.ids[region], best + 1)
        np.testing.assert_allclose(
            lists.scores[region], counts[best] / counts.sum(), rtol=1e-6
        )


@pytest.mark.parametrize("keys", [None, np.ones((3, 2), np.int32)])
def test_lists_are_read_as_they_were_written(tmp_path, keys):
    written = CandidateLists(
        np.array([[1, 2]], np.int32), np.array([[0.5, 0.25]], np.float32), keys
    )
    written.save(str(tmp_path / "popular.npz"))
    read = CandidateLists.load(str(tmp_path / "popular.npz"))
    np.testing.assert_array_equal(read.ids, written.ids)
    np.testing.assert_array_equal(read.scores, written.scores)
    assert (read.keys_of_video is None) == (keys is None)


def test_topics_are_read_by_vocabulary():
    rows = pa.table(
        {
            "video_id": ["b", "a", "x", "c"],
            "topics": [["t", "s", "t"], None, ["t"], ["?", "s"]],
        }
    )
    videos = Vocabulary.of_terms("video", ["a", "b", "c"], [3, 2, 1])
    topics = Vocabulary.of_terms("topic", ["s", "t"], [2, 1])
    found = topics_of_videos(rows, videos, topics, 2)
    np.testing.assert_array_equal(found, [[0, 0], [0, 0], [2, 1], [0, 1]])


def test_without_users_only_everybody_has_a_list():
    nobody = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    lists = popular_lists(watches_of((7, 2), (8, 2), (8, 1)), *nobody, 0, 3, 2)
    np.testing.assert_array_equal(lists.ids, [[2, 1]])
