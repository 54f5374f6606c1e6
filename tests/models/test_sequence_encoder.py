"""The sequence encoder against NumPy, and what it must not see."""

import numpy as np
import pytest

from models.keras_setup import tf
from models.sequence_encoder import SequenceEncoder

LENGTH, DIM, HEADS = 7, 6, 2


def encoder(dropout: float = 0.0, layers: int = 2) -> SequenceEncoder:
    """One whose every weight is drawn: zeros would hide what they multiply."""
    built = SequenceEncoder(LENGTH, DIM, layers, HEADS, dropout, seed=1)
    rng = np.random.default_rng(0)
    for variable in built.trainable_variables:
        shift = 1.0 if "gamma" in variable.name else 0.0
        variable.assign(rng.normal(shift, 0.4, variable.shape))
    return built


def histories(rows: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    present = np.ones((rows, LENGTH), np.float32)
    present[1, 3:] = 0  # Three watches.
    present[2, 1] = 0  # An unknown one amid others.
    present[3] = 0  # None.
    vectors = rng.normal(size=(rows, LENGTH, DIM)).astype(np.float32)
    return vectors * present[..., None], present


def normalised(x: np.ndarray, norm: tf.Module) -> np.ndarray:
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    return x * norm.gamma.numpy() + norm.beta.numpy()


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def moment_by_moment(
    built: SequenceEncoder, vectors: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """One history [L, D]: loops over moments, heads and older watches."""
    x = vectors * np.sqrt(DIM)
    width = DIM // HEADS
    for layer in built.layers:
        kernel, bias = (w.numpy() for w in layer.inward.weights)
        out_kernel, out_bias = (w.numpy() for w in layer.outward.weights)
        parts = [silu(normalised(row, layer.norm) @ kernel + bias) for row in x]
        gate, values, queries, keys = np.split(np.stack(parts), 4, axis=1)
        changed = []
        for j in range(LENGTH):
            attended = np.zeros(DIM)
            for head in range(HEADS):
                part = slice(head * width, (head + 1) * width)
                for k in range(j, LENGTH):
                    if not present[k]:
                        continue
                    bias = layer.distance_biases.numpy()[head, k - j]
                    weight = silu(queries[j, part] @ keys[k, part] + bias)
                    attended[part] += weight / LENGTH * values[k, part]
            gated = normalised(attended, layer.attended_norm) * gate[j]
            changed.append(x[j] + gated @ out_kernel + out_bias)
        x = np.stack(changed)
    return np.stack([normalised(row, built.norm) for row in x])


def test_it_equals_a_loop_over_moments_and_watches() -> None:
    built, (vectors, present) = encoder(), histories()
    found = built(vectors, present)
    for row in range(len(vectors)):
        expected = moment_by_moment(built, vectors[row], present[row])
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


@pytest.mark.parametrize("changed", [0, 2, 5])
def test_a_moment_knows_nothing_of_later_watches(changed: int) -> None:
    built, (vectors, present) = encoder(), histories()
    before = built(vectors, present).numpy()
    # Not by a constant: layer normalisation would take it out.
    vectors[0, changed, 0] += 1.0
    after = built(vectors, present).numpy()
    # Most recent first: moments after `changed` came before that watch.
    np.testing.assert_array_equal(
        before[0, changed + 1 :], after[0, changed + 1 :]
    )
    same = np.isclose(before[0, : changed + 1], after[0, : changed + 1])
    assert not same.all(axis=1).any()


def test_padding_changes_nothing() -> None:
    built, (vectors, present) = encoder(), histories()
    before = built(vectors, present).numpy()
    vectors[1, 3:] = 9.0
    vectors[2, 1] = 9.0
    after = built(vectors, present).numpy()
    np.testing.assert_array_equal(before[1, :3], after[1, :3])
    np.testing.assert_array_equal(before[2, 2:], after[2, 2:])
    # Moment 0 attends to watch 1, which is absent; through it, nothing comes.
    np.testing.assert_array_equal(before[2, 0], after[2, 0])


def test_dropout_of_two_workers_is_that_of_one() -> None:
    built, (vectors, present) = encoder(dropout=0.5), histories()

    def run(rows: slice, step: int = 3) -> np.ndarray:
        return built(
            vectors[rows],
            present[rows],
            training=True,
            step=step,
            first_row=rows.start,
        ).numpy()

    halves = np.concatenate([run(slice(0, 2)), run(slice(2, 4))])
    np.testing.assert_allclose(run(slice(0, 4)), halves, atol=1e-6)
    assert not np.allclose(run(slice(0, 4)), run(slice(0, 4), step=4))
    assert not np.allclose(run(slice(0, 4)), built(vectors, present))


def test_heads_must_divide_the_dimension() -> None:
    with pytest.raises(ValueError, match=r"sequence\.heads.*6 and 4"):
        SequenceEncoder(LENGTH, DIM, 1, 4, 0.0, seed=1)
