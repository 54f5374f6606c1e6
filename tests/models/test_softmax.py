"""The sampled losses against the full softmax and by hand."""

import math

import numpy as np

from models.keras_setup import tf
from models.sampling import Negatives, Sampler
from models.softmax import in_batch_softmax_loss, sampled_softmax_loss


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
        ids = np.arange(1, size + 1)
        p = np.log1p(1.0 / ids) / np.log(size + 1)
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


def softmax_rows(logits: list[list[float]]) -> np.ndarray:
    """-ln of the first's probability in each row."""
    rows = [np.array(row) for row in logits]
    return np.array([np.log(np.exp(row - row[0]).sum()) for row in rows])


def test_list_wise_is_one_positive_and_the_row_s_own_negatives() -> None:
    corpus = Corpus(batch=2)
    corpus.labels = tf.constant([3, 8], tf.int64)
    ids = [[5, 3, 9], [7, 7, 1]]
    log_expected = [[0.3, -1.0, 0.1], [0.4, 0.4, 2.0]]
    negatives = Negatives(tf.constant(ids, tf.int64), tf.constant(log_expected))
    found = corpus.loss(negatives, tf.constant([-1.0, 0.7]))
    u, v = corpus.queries.numpy(), corpus.table.numpy()
    score = u @ v.T + corpus.biases.numpy()
    # Label 3 is among its own negatives and left out.
    expected = softmax_rows(
        [
            [score[0, 3] + 1.0, score[0, 5] - 0.3, score[0, 9] - 0.1],
            [score[1, 8] - 0.7, *[score[1, 7] - 0.4] * 2, score[1, 1] - 2.0],
        ]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_in_batch_and_mixed_by_hand() -> None:
    corpus = Corpus(batch=3)
    corpus.labels = tf.constant([4, 9, 4], tf.int64)
    weights = np.array([1.0, 2.0, 0.5], np.float32)
    # Far below the 1e-6 at which the task's own correction would clip.
    log_expected = np.full(61, -20.0, np.float32)
    log_expected[9], log_expected[50] = -16.0, -25.0
    u, v = corpus.queries.numpy(), corpus.table.numpy()
    score = u @ v.T + corpus.biases.numpy() - log_expected
    for extra, others in (
        (None, []),
        (tf.constant([50, 9], tf.int64), [50, 9]),
    ):
        with tf.GradientTape() as tape:
            found = in_batch_softmax_loss(
                corpus.queries,
                corpus.labels,
                tf.constant(weights),
                corpus.lookup,
                lambda ids: tf.gather(log_expected, ids),
                extra,
            )
        # A 4 is no negative of another 4, nor 9 of 9.
        losses = softmax_rows(
            [
                [score[0, 4], *(score[0, j] for j in [9, *others])],
                [
                    score[1, 9],
                    *(score[1, j] for j in [4, 4, *others] if j != 9),
                ],
                [score[2, 4], *(score[2, j] for j in [9, *others])],
            ]
        )
        np.testing.assert_allclose(found, (weights * losses).sum(), rtol=1e-4)
        gradient = tf.convert_to_tensor(tape.gradient(found, corpus.biases))
        assert set(np.flatnonzero(gradient.numpy())) == {4, 9, *others}


def test_an_accidental_hit_in_the_batch_has_no_gradient() -> None:
    corpus = Corpus(batch=3)
    corpus.labels = tf.constant([4, 4, 4], tf.int64)
    with tf.GradientTape() as tape:
        loss = in_batch_softmax_loss(
            corpus.queries,
            corpus.labels,
            tf.ones([3]),
            corpus.lookup,
            lambda ids: tf.zeros(tf.shape(ids)),
        )
    assert float(loss) == 0.0
    gradient = tf.convert_to_tensor(tape.gradient(loss, corpus.table))
    assert not np.any(gradient)


# The sampled gradient is biased by about 1/S: cosines with the full one, from
# a NumPy simulation of this corpus, are .964 at S = 30, .991 at 100, .9999 at
# 1,000; without the correction .893, .912, .923.
DRAWS = 300


def mean_gradient(
    corpus: Corpus, corrected: bool, steps: int, draws: int = DRAWS
) -> np.ndarray:
    sampler = Sampler("log_uniform", corpus.size, draws, seed=9)

    @tf.function
    def gradient(step: tf.Tensor) -> tf.Tensor:
        negatives = sampler.draw(step)
        label_log_expected = sampler.log_expected(corpus.labels)
        if not corrected:
            negatives = Negatives(negatives.ids, tf.zeros([draws]))
            label_log_expected = tf.zeros([corpus.batch])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(corpus.loss(negatives, label_log_expected))
        return tf.convert_to_tensor(tape.gradient(loss, corpus.table))

    total = np.zeros(corpus.table.shape)
    for step in range(steps):
        total += gradient(tf.constant(step, tf.int64)).numpy()
    return total / steps


def test_4096_draws_give_the_full_gradient() -> None:
    corpus = Corpus()
    full = corpus.full()[1]

    def cosine(corrected: bool) -> float:
        found = mean_gradient(corpus, corrected, 10, 4096)
        product = (found * full).sum()
        return product / np.linalg.norm(found) / np.linalg.norm(full)

    assert cosine(True) > 0.99
    assert cosine(False) < 0.97


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
