"""The wide part: crossed categorical features straight into the logits.

"Wide & Deep Learning for Recommender Systems" (Cheng et al. 2016): what a pair
of features says together, such as this device in this place, is memorised by
weights of its own, while embeddings and layers generalise. A cross of features
has a table [R + 1, T] with a weight for each of T heads; an impression adds one
row of it to its logits. Rows are zero at first and updated sparsely.

Where the values' product fits into the buckets each combination has its row
(an exact cross), otherwise they share rows by a hash of their ids. That is a
function of ids and the features' names alone, inside the graph: training and
serving agree by construction.
"""

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from models.embeddings import EmbeddingTables
from models.keras_setup import tf
from schemas.errors import UsageError
from schemas.features import Feature, FeatureSet
from schemas.hashing import mix

# Ids and multipliers are below it, so their product fits into 62 bits. Only
# multiplication, addition and remainder: every runtime has these for int64.
_PRIME = 2**31 - 1

Tensors = Mapping[str, tf.Tensor]


class Crosses(tf.Module):
    """Tables of crossed features, zero at first.

    A member that is out of vocabulary (id 0) or absent makes the whole cross
    say nothing: row 0 is zero and never trained, as in `EmbeddingTables`.

    Args:
      features: as declared.
      sizes: ID space -> vocabulary size V.
      crosses: names of the features of each cross.
      buckets: most rows of a table.
      heads: T.

    Raises:
      UsageError: a cross of fewer than two different categorical features,
        or the same cross twice.
    """

    def __init__(
        self,
        features: FeatureSet,
        sizes: Mapping[str, int],
        crosses: Sequence[Sequence[str]],
        buckets: int,
        heads: int,
    ) -> None:
        super().__init__(name="crosses")
        known = {
            f.name: f
            for f in features.select(
                "query", "request", "candidate", kind="categorical"
            )
        }
        _check(crosses, list(known))
        self._crosses = {
            "_x_".join(names): tuple(known[name] for name in names)
            for names in crosses
        }
        self._sizes = {
            name: [sizes[str(f.space)] for f in members]
            for name, members in self._crosses.items()
        }
        rows = {
            name: min(math.prod(of_members), buckets)
            for name, of_members in self._sizes.items()
        }
        self._tables = EmbeddingTables(
            {name: (count, heads) for name, count in rows.items()},
            seed=0,
            scale=0.0,
        )
        self.rows = rows

    @property
    def table_variables(self) -> tuple[tf.Variable, ...]:
        """A table float32 [R + 1, T] for each cross, in their order."""
        return self._tables.table_variables

    def __call__(self, features: Tensors, slots: tf.Tensor) -> tf.Tensor:
        """Returns what the crosses add to the logits, float32 [N, T].

        Args:
          features: ids by name, int64 [B] of requests, [B, C] of candidates.
          slots: int64 [N, 2], request and slot of each candidate.
        """
        return tf.add_n(
            [
                self._tables.lookup(
                    name, self.row(name, self._ids(name, features, slots))
                )
                for name in self._crosses
            ]
        )

    def row(self, name: str, ids: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the row of each combination, int64 [N].

        Exact: 1 + ((i_1 - 1) V_2 + i_2 - 1) V_3 ... Hashed: with a prime p,
        1 + (sum of a_j i_j mod p) mod R, the a_j fixed by the cross's name;
        two combinations share a row with probability about 1 / R (Carter and
        Wegman 1979).

        Args:
          name: of the cross: its features' names, joined by `_x_`.
          ids: int64 [N] of each member, 1..V; 0 or -1 gives row 0.
        """
        sizes, rows = self._sizes[name], self.rows[name]
        bucket = tf.zeros_like(ids[0])
        if math.prod(sizes) == rows:
            for size, member in zip(sizes, ids, strict=True):
                bucket = bucket * size + member - 1
        else:
            for factor, member in zip(
                _multipliers(name, len(ids)), ids, strict=True
            ):
                bucket = (bucket + factor * member) % _PRIME
            bucket %= max(rows, 1)
        known = tf.reduce_all(tf.stack(ids) > 0, axis=0)
        return tf.where(known, bucket + 1, 0)

    def _ids(
        self, name: str, features: Tensors, slots: tf.Tensor
    ) -> list[tf.Tensor]:
        return [_of_slots(f, features, slots) for f in self._crosses[name]]


def _of_slots(
    feature: Feature, features: Tensors, slots: tf.Tensor
) -> tf.Tensor:
    values = features[feature.name]
    if feature.scope == "candidate":
        return tf.gather_nd(values, slots)
    return tf.gather(values, slots[:, 0])


def _multipliers(name: str, count: int) -> list[int]:
    """Numbers from 1 to p - 1 that belong to a cross's name."""
    drawn = mix(zlib.crc32(name.encode()), np.arange(count))
    return [1 + int(d) % (_PRIME - 1) for d in drawn]


def _check(crosses: Sequence[Sequence[str]], known: Sequence[str]) -> None:
    as_sets = [frozenset(names) for names in crosses]
    for names, as_set in zip(crosses, as_sets, strict=True):
        different = 1 < len(as_set) == len(names)
        if not different or not as_set <= set(known):
            raise UsageError(
                "`ranking.wide` must have crosses of two or more different "
                f"categorical features, of {', '.join(known)}; received "
                f"{list(names)}."
            )
        if as_sets.count(as_set) > 1:
            raise UsageError(
                "`ranking.wide` must have each cross once; received "
                f"{list(names)} twice."
            )
