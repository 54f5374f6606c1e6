"""What the ranking model's first layer reads: looked-up and plain features.

In: transformed features of B requests and their candidates. Out: a request's
part [B, Q] and a candidate's part [N, P] of the first layer's input (paper,
section 4.1).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from models.embeddings import EmbeddingTables
from models.keras_setup import tf
from schemas.features import (
    CONTINUOUS_WIDTH,
    FIXED_SPACES,
    Feature,
    FeatureSet,
)

_HISTORY = "watch_history"
# Embeddings of so few terms are learnt from many examples each.
_FEW_TERMS = 100
# x~ and is_missing.
_PLAIN_WIDTH = 2

Tensors = Mapping[str, tf.Tensor]


def embedding_dim(vocabulary_size: int, largest: int) -> int:
    """Dimension of a space: grows with ln V (paper, section 4.1), capped.

    2 ceil(log2(V + 1)): 2 for one term, 8 for 15, 26 for 7,471.
    """
    return min(largest, max(1, 2 * math.ceil(math.log2(vocabulary_size + 1))))


class RankingInputs:
    """Looks up and concatenates; has the embedding tables.

    Args:
      features: as declared; all scopes are used.
      sizes: ID space -> vocabulary size V; fixed spaces need not be named.
      largest_dim: of any table.
      seed: of the tables' initial values.
      powers: whether to read the square and the root of a continuous value.

    Raises:
      ValueError: a space without a size, or no candidate features.
    """

    def __init__(
        self,
        features: FeatureSet,
        sizes: Mapping[str, int],
        largest_dim: int,
        seed: int,
        powers: bool = True,
    ) -> None:
        self._of_request = features.select("query", "request")
        self._of_candidate = features.select("candidate")
        self.sizes = {**FIXED_SPACES, **sizes}
        self._largest_dim, self._powers = largest_dim, powers
        spaces = features.spaces("query", "request", "candidate")
        if not self._of_candidate or set(spaces) - set(self.sizes):
            raise ValueError(
                "Expected candidate features (does the log have impressions?) "
                f"and a vocabulary size for each of {', '.join(spaces)}; "
                f"received {len(self._of_candidate)} such features and "
                f"{dict(sizes)}."
            )
        self.embeddings = EmbeddingTables(
            {s: (self.sizes[s], self._dim(s)) for s in spaces}, seed
        )
        features_read = (*self._of_request, *self._of_candidate)
        # Features that `embedding_dropout` drops.
        self.dropped = [
            f.name
            for f in features_read
            if f.space is not None and self.sizes[f.space] > _FEW_TERMS
        ]
        # Number in `dropped` of the feature that each input belongs to, or
        # their count: int [Q] and [P].
        self.request_owner = self._owners(self._of_request)
        self.candidate_owner = self._owners(self._of_candidate)

    @property
    def widths(self) -> dict[str, int]:
        """Feature -> its share of the first layer's input."""
        features = (*self._of_request, *self._of_candidate)
        return {f.name: self._width(f) for f in features}

    @property
    def request_width(self) -> int:
        """Q."""
        return sum(map(self._width, self._of_request))

    def terms(self, name: str) -> int:
        """Size of a request feature's vocabulary, 0 if there is none."""
        spaces = {f.name: f.space for f in self._of_request}
        return self.sizes[str(spaces[name])] if name in spaces else 0

    def shape(self, features: Tensors) -> tf.Tensor:
        """[B, C] as int64 [2]."""
        values = features[self._of_candidate[0].name]
        return tf.shape(values, out_type=tf.int64)[:2]

    def request(self, features: Tensors) -> tf.Tensor:
        """The part of the requests, float32 [B, Q]."""
        return tf.concat(
            [self._part(f, features[f.name]) for f in self._of_request], axis=1
        )

    def candidate(self, features: Tensors, slots: tf.Tensor) -> tf.Tensor:
        """The part of the candidates, float32 [N, P].

        Args:
          features: by name.
          slots: int64 [N, 2], request and slot of each candidate.
        """
        return tf.concat(
            [
                self._part(f, tf.gather_nd(features[f.name], slots))
                for f in self._of_candidate
            ],
            axis=1,
        )

    def _part(self, feature: Feature, values: tf.Tensor) -> tf.Tensor:
        """A feature's share, [rows, width]."""
        if feature.space is None:
            return values if self._powers else _without_powers(values)
        if feature.kind == "categorical":
            return self.embeddings.lookup(feature.space, values)
        if feature.name != _HISTORY:
            return self.embeddings.mean_bag(feature.space, values)
        # The last watch says more than the mean of fifty.
        bags = self.embeddings.mean_bags(feature.space, values, (None, 1))
        return tf.reshape(bags, [-1, self._width(feature)])

    def _owners(self, features: Sequence[Feature]) -> np.ndarray:
        numbers = {name: i for i, name in enumerate(self.dropped)}
        owners = [numbers.get(f.name, len(numbers)) for f in features]
        return np.repeat(owners, [self._width(f) for f in features])

    def _width(self, feature: Feature) -> int:
        if feature.space is None:
            return CONTINUOUS_WIDTH if self._powers else _PLAIN_WIDTH
        bags = 2 if feature.name == _HISTORY else 1
        return bags * self._dim(feature.space)

    def _dim(self, space: str) -> int:
        return embedding_dim(self.sizes[space], self._largest_dim)


def _without_powers(values: tf.Tensor) -> tf.Tensor:
    """Keeps x~ and is_missing of [..., 4], not x~ squared and its root."""
    return tf.gather(values, [0, CONTINUOUS_WIDTH - 1], axis=-1)
