"""The axes of a corpus, and the corpus turned to them."""

import numpy as np

from models.principal_axes import principal_axes, turn_in_place, turned_on_disk


def test_axes_are_the_principal_ones():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    # The mean is no variance.
    vectors = rng.normal(size=(4000, 3)) * [1, 3, 9] @ turn.T + 50
    axes = principal_axes(vectors.astype(np.float32))
    # The longest first: the last column of the turn.
    np.testing.assert_allclose(
        np.abs(axes.T @ turn), np.eye(3)[::-1], atol=0.05
    )


def test_a_turned_corpus_has_the_same_scores_and_falling_variances(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("models.principal_axes._CHUNK", 7)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 4)).astype(np.float32)
    queries = rng.normal(size=(3, 4)).astype(np.float32)
    axes, turned = principal_axes(vectors), vectors.copy()
    turn_in_place(turned, axes)
    on_disk = turned_on_disk(vectors, axes, str(tmp_path))
    np.testing.assert_array_equal(on_disk, turned)
    np.testing.assert_allclose(
        (queries @ axes) @ turned.T, queries @ vectors.T, atol=1e-5
    )
    variances = turned.var(axis=0)
    assert (np.diff(variances) < 0).all()
    # Uncorrelated.
    covariance = np.cov(turned.T)
    np.testing.assert_allclose(
        covariance, np.diag(np.diag(covariance)), atol=1e-5
    )
