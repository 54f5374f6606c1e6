"""Joining candidates in the graph against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.candidate_lists import CandidateLists
from models.generators import (
    ListLookup,
    first_distinct,
    joined,
    spread_over_channels,
)
from models.keras_setup import tf

rows = st.lists(
    st.lists(st.integers(0, 6), min_size=9, max_size=9), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(rows, st.lists(st.integers(-1, 6), max_size=3), st.integers(1, 9))
def test_first_distinct_is_the_first_of_each(ids, excluded, number):
    places, found = first_distinct(
        tf.constant(ids, tf.int32),
        number,
        tf.constant([excluded] * len(ids), tf.int64, [len(ids), len(excluded)]),
    )
    for row, place, there in zip(
        ids, places.numpy(), found.numpy(), strict=True
    ):
        wanted = [
            i
            for i, video in enumerate(row)
            if video and video not in excluded and video not in row[:i]
        ][:number]
        assert place[there].tolist() == wanted
        assert there.tolist() == [i < len(wanted) for i in range(number)]


def test_a_video_counts_for_the_first_that_offers_it():
    def offer(ids, scores):
        return tf.constant([ids], tf.int32), tf.constant([scores])

    ids, scores, which = joined(
        [
            offer([4, 0], [0.5, 0.0]),
            offer([2, 4, 3], [9.0, 8.0, 7.0]),
            offer([3, 1, 2, 5, 6], [5.0, 4.0, 3.0, 2.0, 1.0]),
        ],
        5,
    )
    np.testing.assert_array_equal(ids, [[4, 2, 3, 1, 5]])
    np.testing.assert_array_equal(scores, [[0.5, 9.0, 7.0, 4.0, 2.0]])
    np.testing.assert_array_equal(which, [[0, 1, 1, 2, 2]])


def test_what_nobody_offers_is_no_video():
    none = tf.zeros([2, 3], tf.int32), tf.zeros([2, 3])
    ids, scores, which = joined([none], 3)
    assert not ids.numpy().any()
    assert np.isneginf(scores.numpy()).all() and (which.numpy() == -1).all()


def test_a_lookup_merges_a_video_s_lists_without_what_was_watched():
    lists = CandidateLists(
        np.array([[0, 0, 0], [5, 6, 7], [8, 5, 9]], np.int32),
        np.array([[0, 0, 0], [0.9, 0.3, 0.2], [0.5, 0.4, 0.1]], np.float32),
        # Video 1 has both keys, video 2 the second, video 3 none.
        np.array([[0, 0], [1, 2], [2, 0], [0, 0]], np.int32),
    )
    lookup = ListLookup(lists, "topics", 3)
    ids, scores = lookup(
        tf.constant([1, 2, 3], tf.int64),
        tf.constant([[6, -1], [8, -1], [-1, -1]], tf.int64),
    )
    np.testing.assert_array_equal(ids, [[5, 8, 7], [5, 9, 0], [0, 0, 0]])
    np.testing.assert_allclose(
        scores, [[0.9, 0.5, 0.2], [0.4, 0.1, 0], [0, 0, 0]]
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-1, 3), min_size=7, max_size=7),
    st.permutations(range(7)),
    st.integers(1, 4),
)
def test_channels_are_spread_as_by_a_greedy_loop(channels, order, most):
    kept, exceeding, blank = [], [], []
    for place in order:
        channel = channels[place]
        taken = sum(channels[p] == channel for p in kept)
        if channel < 0:
            blank.append(place)
        elif channel > 0 and taken >= most:
            exceeding.append(place)
        else:
            kept.append(place)
    spread = spread_over_channels(
        tf.constant([order], tf.int32), tf.constant([channels], tf.int32), most
    )
    assert spread.numpy()[0].tolist() == [*kept, *exceeding, *blank]


@pytest.mark.parametrize("number", [1, 3])
def test_a_key_of_its_own_needs_no_video(number):
    lists = CandidateLists(
        np.array([[3, 1, 2], [2, 3, 0]], np.int32),
        np.array([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]], np.float32),
    )
    lookup = ListLookup(lists, "popular", number)
    nothing = tf.zeros([2, 0], tf.int64)
    ids, _ = lookup(tf.constant([0, 1], tf.int64), nothing)
    np.testing.assert_array_equal(ids, np.array(lists.ids)[:, :number])
