"""Random numbers that are functions of their names alone.

Every draw is named by a seed, the training step and, where it belongs to an
example, the example's place in the global batch. So a resumed run, or one on
more workers, draws the same numbers, and XLA the same as TensorFlow: the
generator is Philox by name, and only its integers are asked for, since the
compiler makes other floats of the same integers.
"""

from typing import TypeAlias

from models.keras_setup import tf

PHILOX = 1  # tf.random.Algorithm.PHILOX, as the raw operations want it.
_WORDS_PER_COUNTER = 4  # One step of Philox's counter gives four uint32.
Number: TypeAlias = "tf.Tensor | int"


def uniform_float64(count: int, key: tuple[Number, Number]) -> tf.Tensor:
    """Draws float64 [count] in [0, 1), of 53 random bits each.

    Float32 has 24 bits: with them a tenth of a million ids has no u that
    leads to it.

    Args:
      count: static, for XLA.
      key: (seed, step).
    """
    seed = tf.stack([tf.cast(k, tf.int64) for k in key])
    philox_key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    return _to_float64(_bits([2, count], philox_key, counter))


def row_uniform_float64(
    rows: Number, width: int, key: tuple[Number, Number, Number], first: Number
) -> tf.Tensor:
    """Draws float64 [rows, width] in [0, 1); see `row_bits`."""
    bits = row_bits(tf.stack([rows, 2, width]), key, first)
    return _to_float64(tf.transpose(bits, [1, 0, 2]))


def row_uniform(
    shape: tf.Tensor, key: tuple[Number, Number, Number], first_row: Number
) -> tf.Tensor:
    """Draws float32 in [0, 1), of 24 random bits; see `row_bits`."""
    bits = tf.bitwise.right_shift(row_bits(shape, key, first_row), 8)
    return tf.cast(bits, tf.float32) * 2.0**-24


def row_bits(
    shape: tf.Tensor, key: tuple[Number, Number, Number], first_row: Number
) -> tf.Tensor:
    """Draws rows [first_row, first_row + B) of one endless random matrix.

    Philox is random access: its counter is set to where the first row
    begins, so a worker draws its own rows only, and they are those that a
    single worker would have drawn.

    Args:
      shape: int32 [rank], [B, ..., n]; a row is all but the first axis.
      key: (seed, step, salt) that name the matrix.
      first_row: int64 [].

    Returns:
      uint32 of that shape.
    """
    seed, step, salt = (tf.cast(k, tf.int64) for k in key)
    # 2^20 salts a step: more than any model has layers.
    stream = tf.stack([seed, step * 2**20 + salt])
    philox_key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=stream)
    width = tf.reduce_prod(shape[1:])
    # Rows begin at whole counter steps: the width is rounded up.
    steps = -(-width // _WORDS_PER_COUNTER)
    offset = tf.cast(first_row, tf.int64) * tf.cast(steps, tf.int64)
    drawn = _bits(
        tf.stack([shape[0], steps * _WORDS_PER_COUNTER]),
        philox_key,
        tf.stack([tf.cast(offset, tf.uint64), counter[1]]),
    )
    return tf.reshape(drawn[:, :width], shape)


def _bits(
    shape: tf.Tensor | list[int], key: tf.Tensor, counter: tf.Tensor
) -> tf.Tensor:
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape, key=key, counter=counter, alg=PHILOX, dtype=tf.uint32
    )


def _to_float64(bits: tf.Tensor) -> tf.Tensor:
    """uint32 [2, ...] -> float64 [...] of 27 high and 26 low bits."""
    high = tf.cast(tf.bitwise.right_shift(bits[0], 5), tf.float64)
    low = tf.cast(tf.bitwise.right_shift(bits[1], 6), tf.float64)
    return (high * 2.0**26 + low) * 2.0**-53
