"""Distribution of the draws, and the sampled loss against the full one."""

import math

import numpy as np
import pytest

from models.keras_setup import tf
from models.sampling import Negatives, Sampler, sampled_softmax_loss


def shares(kind: str, size: int) -> np.ndarray:
    """p(id) of ids 1..V, from the definition."""
    if kind == "uniform":
        return np.full(size, 1.0 / size)
    ids = np.arange(1, size + 1)
    return np.log1p(1.0 / ids) / np.log(size + 1)


@pytest.mark.parametrize("kind", ["log_uniform", "uniform"])
def test_draws_follow_the_distribution(kind: str) -> None:
    size, draws = 50, 200_000
    ids = Sampler(kind, size, draws, seed=3).draw(0).ids.numpy()
    assert ids.min() >= 1 and ids.max() <= size
    counts = np.bincount(ids, minlength=size + 1)[1:]
    expected = draws * shares(kind, size)
    # Chi-square of 49 degrees: mean 49, sd 9.9; 99.9 % lie below 85.4.
    assert ((counts - expected) ** 2 / expected).sum() < 85.4


@pytest.mark.parametrize("kind", ["log_uniform", "uniform"])
def test_log_expected_is_of_s_times_p(kind: str) -> None:
    size, draws = 1_000_000, 700
    sampler = Sampler(kind, size, draws, seed=3)
    expected = np.log(draws * shares(kind, size))
    all_ids = tf.range(1, size + 1, dtype=tf.int64)
    found = sampler.log_expected(all_ids).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)
    drawn = sampler.draw(5)
    np.testing.assert_allclose(
        drawn.log_expected, expected[drawn.ids.numpy() - 1], atol=2e-6
    )


def test_the_tail_of_a_million_is_reached() -> None:
    size, low, draws = 1_000_000, 999_001, 10_000_000
    sampler = Sampler("log_uniform", size, draws, seed=11)
    # As a graph, what is not asked for is not computed.
    ids = tf.function(lambda: sampler.draw(0).ids)().numpy()
    counts = np.bincount(ids[ids >= low] - low, minlength=1000)
    # Each is expected 1e7 x 1e-6 / 13.8 = .724 times: P(0) = e^-.724 = .485; of
    # 1,000 ids 485 are missed, sd 15.8. Float32 has 2^23 u in [0, 1): one for
    # each 1.2e-7, and an id of the tail is 7.2e-8 wide: 400 would be out of
    # reach and e^-(.724 / .6) = .30 of the others missed, 580 in all.
    missed = int((counts == 0).sum())
    assert abs(missed - 485) < 4 * 15.8
    # The ends of the range are among them now and then.
    assert ids.min() == 1 and ids.max() > 999_990


def test_every_id_of_a_million_has_a_u_that_leads_to_it() -> None:
    # The inverse is floor(exp(u L)): ids i and i + 1 begin at u's that differ
    # by ln(1 + 1/i) / L, 7.2e-8 at the end. 53 bits resolve that 6e8 times.
    ids = np.arange(900_000, 1_000_001)
    length = math.log(1_000_001)
    begins = np.log(ids) / length
    middle = (begins[:-1] + begins[1:]) / 2
    middle = np.round(middle * 2**53) / 2**53
    assert np.array_equal(np.floor(np.exp(middle * length)), ids[:-1])
    coarse = np.arange(np.floor(begins[0] * 2**23), np.ceil(begins[-1] * 2**23))
    reached = np.unique(np.floor(np.exp(coarse / 2**23 * length)))
    # What the 23 bits of float32 would do, to show that the test can tell.
    assert len(reached) < 0.7 * len(ids)


def test_draws_are_a_function_of_seed_and_step() -> None:
    def ids(seed: int, step: int) -> np.ndarray:
        return Sampler("log_uniform", 10_000, 200, seed).draw(step).ids.numpy()

    np.testing.assert_array_equal(ids(1, 7), ids(1, 7))
    assert (ids(1, 7) != ids(1, 8)).mean() > 0.9
    assert (ids(1, 7) != ids(2, 7)).mean() > 0.9
    sampler = Sampler("log_uniform", 10_000, 200, 1)
    inside = tf.function(lambda step: sampler.draw(step).ids)
    np.testing.assert_array_equal(
        inside(tf.constant(7, tf.int64)).numpy(), ids(1, 7)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zipf", 10, 5, 0), "received 'zipf'"),
        (("uniform", 0, 5, 0), "0 and 5"),
        (("uniform", 10, 0, 0), "10 and 0"),
    ],
)
def test_wrong_settings_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampler(*arguments)


class Corpus:
    """A small corpus with its full softmax in NumPy."""

    def __init__(self, size: int = 60, dim: int = 5, batch: int = 16) -> None:
        rng = np.random.default_rng(0)
        table = rng.normal(size=(size + 1, dim)).astype(np.float32)
        biases = rng.normal(size=size + 1).astype(np.float32)
        self.table, self.biases = tf.Variable(table), tf.Variable(biases)
        queries = rng.normal(size=(batch, dim)).astype(np.float32)
        self.queries = tf.constant(queries)
        # Popular ids are labels most often.
        p = shares("log_uniform", size)
        self.labels = tf.constant(1 + rng.choice(size, size=batch, p=p))
        self.size, self.batch = size, batch

    def lookup(self, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(self.table, ids), tf.gather(self.biases, ids)

    def loss(
        self, negatives: Negatives, label_log_expected: tf.Tensor
    ) -> tf.Tensor:
        return sampled_softmax_loss(
            self.queries,
            self.labels,
            negatives,
            self.lookup,
            label_log_expected,
        )

    def full(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Losses [B] and the gradients of their sum, by hand."""
        u = self.queries.numpy().astype(np.float64)
        v = self.table.numpy()[1:].astype(np.float64)
        logits = u @ v.T + self.biases.numpy()[1:]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        rows = np.arange(self.batch), self.labels.numpy() - 1
        losses = -np.log(p[rows])
        p[rows] -= 1.0  # d loss / d logit = p - 1[label].
        table = np.zeros((self.size + 1, v.shape[1]))
        table[1:] = p.T @ u
        biases = np.concatenate([[0.0], p.sum(0)])
        return losses, table, biases


def test_every_class_once_is_the_full_softmax() -> None:
    corpus = Corpus()
    ids = tf.range(1, corpus.size + 1, dtype=tf.int64)
    negatives = Negatives(ids, tf.zeros([corpus.size]))
    with tf.GradientTape() as tape:
        losses = corpus.loss(negatives, tf.zeros([corpus.batch]))
        total = tf.reduce_sum(losses)
    found = tape.gradient(total, [corpus.table, corpus.biases])
    expected = corpus.full()
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    for gradient, want in zip(found, expected[1:], strict=True):
        dense = tf.convert_to_tensor(gradient).numpy()
        np.testing.assert_allclose(dense, want, atol=1e-5)


def test_the_corrected_logits_by_hand() -> None:
    corpus = Corpus(batch=2)
    corpus.labels = tf.constant([3, 8], tf.int64)
    negatives = Negatives(
        tf.constant([5, 3, 5], tf.int64), tf.constant([0.3, -1.0, 0.3])
    )
    found = corpus.loss(negatives, tf.constant([-1.0, 0.7]))
    u, v = corpus.queries.numpy(), corpus.table.numpy()
    b = corpus.biases.numpy()

    def logit(row: int, j: int, log_expected: float) -> float:
        return float(u[row] @ v[j] + b[j] - log_expected)

    # Row 0: its label 3 is among the negatives, and left out there.
    five = math.exp(logit(0, 5, 0.3))
    own = math.exp(logit(0, 3, -1.0))
    first = -math.log(own / (own + 2 * five))
    five = math.exp(logit(1, 5, 0.3))
    three, own = math.exp(logit(1, 3, -1.0)), math.exp(logit(1, 8, 0.7))
    second = -math.log(own / (own + 2 * five + three))
    np.testing.assert_allclose(found, [first, second], rtol=1e-5)


def test_an_accidental_hit_has_no_probability_and_no_gradient() -> None:
    corpus = Corpus(batch=3)
    corpus.labels = tf.constant([4, 4, 4], tf.int64)
    hits = Negatives(tf.constant([4, 4], tf.int64), tf.constant([-50.0, 0.0]))
    with tf.GradientTape() as tape:
        losses = corpus.loss(hits, tf.zeros([3]))
        total = tf.reduce_sum(losses)
    # Nothing but the label is left: -ln 1, whatever E says.
    np.testing.assert_array_equal(losses, np.zeros(3))
    gradient = tape.gradient(total, corpus.table)
    np.testing.assert_array_equal(
        tf.convert_to_tensor(gradient), np.zeros(corpus.table.shape)
    )


# The sampled gradient is biased by about 1/S: cosines with the full one, from
# a NumPy simulation of this corpus, are .964 at S = 30, .991 at 100, .9999 at
# 1,000; without the correction .893, .912, .923.
DRAWS = 300


def mean_gradient(corpus: Corpus, corrected: bool, steps: int) -> np.ndarray:
    sampler = Sampler("log_uniform", corpus.size, DRAWS, seed=9)

    @tf.function
    def gradient(step: tf.Tensor) -> tf.Tensor:
        negatives = sampler.draw(step)
        label_log_expected = sampler.log_expected(corpus.labels)
        if not corrected:
            negatives = Negatives(negatives.ids, tf.zeros([DRAWS]))
            label_log_expected = tf.zeros([corpus.batch])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(corpus.loss(negatives, label_log_expected))
        return tf.convert_to_tensor(tape.gradient(loss, corpus.table))

    total = np.zeros(corpus.table.shape)
    for step in range(steps):
        total += gradient(tf.constant(step, tf.int64)).numpy()
    return total / steps


def test_the_expected_corrected_gradient_is_the_full_one() -> None:
    corpus = Corpus()
    full = corpus.full()[1]

    def cosine(found: np.ndarray) -> float:
        product = (found * full).sum()
        return product / np.linalg.norm(found) / np.linalg.norm(full)

    corrected = mean_gradient(corpus, True, 200)
    assert cosine(corrected) > 0.99
    length = np.linalg.norm(corrected) / np.linalg.norm(full)
    assert abs(length - 1.0) < 0.1
    # Without the correction popular negatives are pushed down too hard.
    assert cosine(mean_gradient(corpus, False, 200)) < 0.95
