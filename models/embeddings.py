"""Shared embedding tables, one per ID space (paper, sections 3.2 and 4.1).

In: ids as the transform graph emits them: 1..V, 0 out of vocabulary, -1
padding. Out: their vectors, and means over bags of them. A video has one
vector wherever it occurs as an input: in the watch history, as the video
being watched, as the candidate of an impression.
"""

import zlib
from collections.abc import Mapping, Sequence

from models.keras_setup import tf
from models.random_rows import PHILOX
from models.rows import sum_prefixes


class EmbeddingTables(tf.Module):
    """One trainable table [V + 1, D] per ID space.

    Row 0 is the zero vector of everything out of vocabulary. Ids 0 and -1
    give zeros and no gradient, so row 0 stays zero for ever.

    Args:
      spaces: ID space -> (vocabulary size V, dimension D).
      seed: initial values follow from (seed, space) alone, so adding a space
        leaves the others as they were.
      scale: initial values are uniform in [-scale, scale).
    """

    def __init__(
        self,
        spaces: Mapping[str, tuple[int, int]],
        seed: int,
        *,
        scale: float = 0.05,
    ) -> None:
        super().__init__(name="embedding_tables")
        self.tables = {
            space: initial_table(size, dim, seed, space, scale)
            for space, (size, dim) in spaces.items()
        }

    @property
    def table_variables(self) -> tuple[tf.Variable, ...]:
        """The tables, in the order of their spaces."""
        return tuple(self.tables.values())

    def dim(self, space: str) -> int:
        """The dimension D of a space's vectors."""
        return int(self._table(space).shape[1])

    def lookup(self, space: str, ids: tf.Tensor) -> tf.Tensor:
        """Returns the vectors of ids.

        Args:
          space: the ID space.
          ids: int64 [...].

        Returns:
          float32 [..., D]; zeros for ids 0 and -1.
        """
        known = tf.cast(ids > 0, tf.float32)
        return self._rows(space, ids) * known[..., None]

    def mean_bag(
        self, space: str, ids: tf.Tensor, first: int | None = None
    ) -> tf.Tensor:
        """Returns the mean vector of each bag.

        Args:
          space: the ID space.
          ids: int64 [..., L], -1 is padding.
          first: only the first so many entries; None takes all.

        Returns:
          float32 [..., D]: the sum over known ids divided by the number of
          entries, unknown ones included; zeros for an empty bag.
        """
        return self.mean_bags(space, ids, (first,))[..., 0, :]

    def mean_bags(
        self, space: str, ids: tf.Tensor, firsts: Sequence[int | None]
    ) -> tf.Tensor:
        """Returns means over several prefixes of the same bags.

        Each distinct row is gathered once; see `models.rows`.

        Args:
          space: the ID space.
          ids: int64 [..., L], most recent first, -1 is padding.
          firsts: prefix lengths; None means L.

        Returns:
          float32 [..., number of prefixes, D].
        """
        slots = tf.range(tf.shape(ids)[-1])
        lengths = []
        for first in firsts:
            inside = slots < first if first else slots >= 0
            entries = tf.cast((ids >= 0) & inside, tf.float32)
            lengths.append(tf.reduce_sum(entries, axis=-1))
        sums = sum_prefixes(
            local_component(self._table(space)),
            tf.reshape(ids, [-1, tf.shape(ids)[-1]]),
            firsts,
        )
        lengths = tf.stack(lengths, axis=-1)[..., None]
        shape = tf.concat([tf.shape(lengths)[:-1], [self.dim(space)]], axis=0)
        return tf.reshape(sums, shape) / tf.maximum(lengths, 1.0)

    def _rows(self, space: str, ids: tf.Tensor) -> tf.Tensor:
        # Padding reads row 0; whoever calls gives that row the weight zero.
        table = local_component(self._table(space))
        return tf.gather(table, tf.maximum(ids, 0))

    def _table(self, space: str) -> tf.Variable:
        if space not in self.tables:
            raise ValueError(
                f"Expected one of the ID spaces {', '.join(self.tables)}, "
                f"received {space!r}. Declare its size when building."
            )
        return self.tables[space]


def initial_table(
    size: int, dim: int, seed: int, name: str, scale: float
) -> tf.Variable:
    """Creates a table float32 [size + 1, dim] whose row 0 is zero.

    Raises:
      ValueError: size is negative or dim is not positive.
    """
    if size < 0 or dim < 1:
        raise ValueError(
            f"Table {name!r} needs a size of at least 0 and a dimension of "
            f"at least 1, received {size} and {dim}."
        )
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(
        seed=tf.constant([seed, zlib.crc32(name.encode())], tf.int64)
    )
    shape = tf.constant([size + 1, dim])
    rows = _initial_rows(shape, key, counter, tf.constant(scale))
    return tf.Variable(rows, name=f"{name}_table")


@tf.function
def _initial_rows(
    shape: tf.Tensor, key: tf.Tensor, counter: tf.Tensor, scale: tf.Tensor
) -> tf.Tensor:
    """Uniform rows and a zero first one, in the memory of the result.

    As a graph each operation works in the buffer of the one before it; step by
    step, a table of gigabytes would need its memory several times.
    """
    uniform = tf.raw_ops.StatelessRandomUniformV2(
        shape=shape, key=key, counter=counter, alg=PHILOX
    )
    known = tf.cast(tf.range(shape[0]) > 0, tf.float32)[:, None]
    return (uniform * (2.0 * scale) - scale) * known


def local_component(variable: tf.Variable) -> tf.Variable:
    """Returns this replica's own copy of a variable under a strategy.

    Gathering from a mirrored variable reads the whole table first; gathering
    from the copy reads the rows. Gradients are with respect to the copy. A
    plain variable is its own copy.
    """
    component = getattr(variable, "_get_on_device_or_primary", None)
    return variable if component is None else component()
