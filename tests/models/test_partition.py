"""Leaves cut into pieces, and how many of them must be read."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from models.partition import DEVIATIONS, PADDING, cut


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    rows=st.integers(1, 120),
    dim=st.integers(1, 5),
    leaves=st.integers(1, 9),
    width=st.integers(1, 40),
    distinct=st.integers(1, 120),
    seed=st.integers(0, 99),
)
def test_every_row_is_in_one_piece_of_its_leaf(
    rows, dim, leaves, width, distinct, seed
):
    rng = np.random.default_rng(seed)
    # Duplicates too: `distinct` vectors for all rows.
    vectors = rng.normal(size=(distinct, dim))[
        rng.integers(distinct, size=rows)
    ]
    vectors = vectors.astype(np.float32)
    leaf = rng.integers(leaves, size=rows)
    partition = cut(vectors, leaf, width)
    assert partition.members.shape[1] == width
    assert partition.num_rows == rows
    seen = []
    for number, piece in enumerate(partition.members):
        own = piece[piece != PADDING]
        assert (piece[len(own) :] == PADDING).all()
        assert len(set(leaf[own])) == 1
        np.testing.assert_allclose(
            partition.centroids[number], vectors[own].mean(axis=0), atol=1e-5
        )
        assert (partition.piece_of_row()[own] == number).all()
        seen += own.tolist()
    assert sorted(seen) == list(range(rows))
    # No more pieces than the leaves' sizes ask for.
    sizes = np.bincount(leaf)
    assert len(partition.members) == np.ceil(sizes / width).sum()


def test_pieces_of_a_leaf_are_of_equal_size_and_apart():
    # One leaf, a line of 100 rows in no order: 4 pieces of 25 neighbours.
    order = np.random.default_rng(0).permutation(100)
    vectors = np.stack([order, 0.01 * order % 3], axis=1).astype(np.float32)
    partition = cut(vectors, np.zeros(100, int), 30)
    found = {
        tuple(sorted(order[piece[piece != PADDING]].tolist()))
        for piece in partition.members
    }
    assert found == {tuple(range(n, n + 25)) for n in (0, 25, 50, 75)}


def test_promise_by_hand():
    # Piece 0: (0, 0) and (2, 0): mean (1, 0), variance 1 along x.
    # Piece 1: (0, 5) twice: mean (0, 5), no variance.
    vectors = np.array([[0, 0], [2, 0], [0, 5], [0, 5]], np.float32)
    partition = cut(vectors, np.array([0, 0, 1, 1]), 2)
    promised = partition.promise(np.array([[3, 1], [0, 1]], np.float32))
    # A mean piece has a variance of 0.5 along x, the first twice that: 3 * 1
    # and DEVIATIONS * 3 * 1; 5. Then 0 and 5.
    np.testing.assert_allclose(partition.profile, [0.5, 0])
    np.testing.assert_allclose(partition.spreads, [np.sqrt(2), 0])
    np.testing.assert_allclose(
        promised, [[3 + 3 * DEVIATIONS, 5], [0, 5]], rtol=1e-6
    )
    needed = partition.needed_pieces(
        np.array([[3, 1], [0, 1]], np.float32), np.array([[1, 2], [1, 2]])
    )
    # Row 1 is in piece 0, row 2 in piece 1.
    assert needed.tolist() == [[1, 2], [2, 1]]


def test_a_piece_s_width_counts_where_queries_look():
    # Piece 0: variance 1 along x, piece 1: 4 along y; (0.5, 2) on the mean.
    vectors = np.array([[0, 0], [2, 0], [0, 3], [0, 7]], np.float32)
    leaf = np.array([0, 0, 1, 1])
    for squares, widths in (
        (None, [1 / 2.5, 4 / 2.5]),
        ([1, 1], [1 / 2.5, 4 / 2.5]),
        # Queries along x: 1 and 0, of 0.5.
        ([9, 0], [2, 0]),
        # 2 * 1 and 3 * 4, of 2 * 0.5 + 3 * 2 = 7.
        ([2, 3], [2 / 7, 12 / 7]),
    ):
        given = None if squares is None else np.array(squares)
        spreads = cut(vectors, leaf, 2, given).spreads
        np.testing.assert_allclose(spreads, np.sqrt(widths), rtol=1e-6)


def test_refuses_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(5, 2\) and \(4,\)"):
        cut(np.ones((5, 2), np.float32), np.zeros(4, int), 2)
