"""Search queries to tokens: the one tokenizer of vocabulary and graph.

In go the texts of queries, out come unigrams and bigrams, "an unordered bag"
once looked up (paper, section 3.3). Everything is TensorFlow operations, so
that the vocabulary is counted by exactly what the SavedModel runs.
"""

import numpy as np
import tensorflow as tf

# Letters with their combining marks (a Devanagari vowel sign is a mark) and
# digits make words; everything else separates them.
_SEPARATORS = r"[^\p{L}\p{M}\p{N}]+"
_MAX_BATCH = 8192


def tokenize(queries: tf.Tensor) -> tf.RaggedTensor:
    """Splits queries into lower-case unigrams, then bigrams.

    "Deep  Learning, 2016" gives deep, learning, 2016, "deep learning",
    "learning 2016". A query of n words has n unigrams and n - 1 bigrams; an
    empty one has none. Repeated words stay repeated.

    Args:
      queries: string [n], UTF-8; bytes that are no UTF-8 separate words.

    Returns:
      string [n, (tokens)], row_splits int64.
    """
    # Most slots of a padded batch are "": work once per distinct text.
    distinct, index = tf.unique(queries, out_idx=tf.int64)
    # Separators go first: lower-casing would end a text at a NUL byte.
    texts = tf.strings.unicode_transcode(distinct, "UTF-8", "UTF-8")
    texts = tf.strings.regex_replace(texts, _SEPARATORS, " ")
    texts = tf.strings.lower(texts, encoding="utf-8")
    words = tf.strings.split(texts)
    return tf.gather(_with_bigrams(words), index)


def _with_bigrams(words: tf.RaggedTensor) -> tf.RaggedTensor:
    """Appends to each row [n, (words)] its pairs of neighbours.

    On flat values, because each ragged operation is dozens of plain ones:
    unigram i of row r moves behind all bigrams of earlier rows, bigram k
    behind all unigrams up to its own row's.
    """
    rows, splits = words.value_rowids(), words.row_splits
    inside = rows[1:] == rows[:-1]
    pairs = tf.strings.join(
        [words.flat_values[:-1], words.flat_values[1:]], separator=" "
    )
    bigrams, owners = pairs[inside], rows[1:][inside]
    numbers = tf.maximum(words.row_lengths() - 1, 0)
    bigram_splits = tf.concat([[0], tf.cumsum(numbers)], axis=0)
    unigram_places = tf.range(splits[-1]) + tf.gather(bigram_splits, rows)
    bigram_places = tf.range(bigram_splits[-1]) + tf.gather(splits[1:], owners)
    tokens = tf.dynamic_stitch(
        [tf.cast(unigram_places, tf.int32), tf.cast(bigram_places, tf.int32)],
        [words.flat_values, bigrams],
    )
    return tf.RaggedTensor.from_row_splits(
        tokens, splits + bigram_splits, validate=False
    )


def query_tokens(queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Applies `tokenize` eagerly, as the vocabulary does.

    Args:
      queries: object [n] of bytes or str.

    Returns:
      Tokens of all queries one after another, object [t] of bytes, and int64
      [n + 1] row splits: query i has tokens[splits[i]:splits[i + 1]].
    """
    tokens, lengths = [np.empty(0, object)], [np.zeros(1, np.int64)]
    for start in range(0, len(queries), _MAX_BATCH):
        batch = tf.constant(queries[start : start + _MAX_BATCH], tf.string)
        ragged = tokenize(batch)
        tokens.append(ragged.flat_values.numpy())
        lengths.append(ragged.row_lengths().numpy())
    return np.concatenate(tokens), np.cumsum(np.concatenate(lengths))
