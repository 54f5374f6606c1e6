"""Candidates of several generators, joined in the graph, in stock operations.

Each generator offers ids by falling score; a video that several offer counts
for the first of them. Ids are those of the video vocabulary, 0 is no video.
Letters: B requests, L entries of a list, C candidates.
"""

from collections.abc import Sequence

import numpy as np

from models.candidate_lists import CandidateLists
from models.keras_setup import tf
from schemas.config import GeneratorName

TOWER = "query_tower"
# They ask the index, as the tower does; the others look lists up.
BY_INDEX: tuple[GeneratorName, ...] = ("context", "sequence")

# Ids int32 and scores float32, both [B, L].
Offer = tuple[tf.Tensor, tf.Tensor]


class ListLookup(tf.Module):
    """A generator that looks its candidates up by the request's key.

    Args:
      lists: become variables.
      name: of the generator.
      number: how many it offers.
    """

    def __init__(self, lists: CandidateLists, name: str, number: int) -> None:
        super().__init__(name=name)
        self._number = number
        self._ids = tf.Variable(lists.ids, trainable=False)
        self._scores = tf.Variable(lists.scores, trainable=False)
        keys = lists.keys_of_video
        self.by_video = keys is not None
        if keys is not None:
            self._keys = tf.Variable(keys, trainable=False)

    def __call__(self, key: tf.Tensor, excluded: tf.Tensor) -> Offer:
        """The best of a key's list, or of all lists of a video.

        Args:
          key: int [B], the video if `by_video`, else the list.
          excluded: int [B, E], ids that are not offered.

        Returns:
          [B, number]; where fewer are left, id 0 and score 0.
        """
        keys = tf.gather(self._keys, key) if self.by_video else key[:, None]
        ids, scores = (
            tf.reshape(tf.gather(table, keys), [tf.shape(key)[0], -1])
            for table in (self._ids, self._scores)
        )
        # Several lists become one; stable, as a single one is in order.
        order = tf.argsort(scores, direction="DESCENDING", stable=True)
        ids = tf.gather(ids, order, batch_dims=1)
        scores = tf.gather(scores, order, batch_dims=1)
        places, found = first_distinct(ids, self._number, excluded)
        return _taken(ids, places, found), _taken(scores, places, found)


def joined(
    offers: Sequence[Offer], number: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The first `number` different videos of the offers, one by one.

    Args:
      offers: in the order in which they are taken; at least `number` entries.
      number: C.

    Returns:
      [B, C] each: ids int32, scores float32 (of the first that offers the
      video), and which offer that is, int32. Where fewer videos were offered:
      id 0, score -inf, offer -1.
    """
    ids = tf.concat([ids for ids, _ in offers], axis=1)
    scores = tf.concat([scores for _, scores in offers], axis=1)
    lengths = [tf.shape(offered)[1] for offered, _ in offers]
    which = tf.repeat(tf.range(len(offers)), lengths)
    places, found = first_distinct(ids, number)
    return (
        _taken(ids, places, found),
        tf.where(found, _taken(scores, places, found), -np.inf),
        tf.where(found, tf.gather(which, places), -1),
    )


def first_distinct(
    ids: tf.Tensor, number: int, excluded: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the first different ids of each row are.

    Args:
      ids: int [B, L], 0 is no video.
      number: at most L.
      excluded: int [B, E], ids to pass over.

    Returns:
      places int32 [B, number], rising, and found bool [B, number]: whether
      there is one.
    """
    usable = tf.logical_and(ids > 0, tf.logical_not(_seen_before(ids)))
    if excluded is not None:
        excluded = tf.cast(excluded, ids.dtype)
        equal = ids[:, :, None] == excluded[:, None, :]
        usable = tf.logical_and(usable, ~tf.reduce_any(equal, axis=2))
    length = tf.shape(ids)[1]
    # The earlier, the larger; equal ones, the unusable, come last.
    rank = tf.where(usable, length - tf.range(length), 0)
    best, places = tf.math.top_k(rank, number)
    return places, best > 0


def spread_over_channels(
    order: tf.Tensor, channels: tf.Tensor, most: int
) -> tf.Tensor:
    """Puts what exceeds `most` videos of a channel behind all others.

    Args:
      order: int32 [B, C], places of a list by falling score.
      channels: int32 [B, C] of the list; 0 is no channel, of which there may
        be any number, -1 no video, which stays last.
      most: at least 1.

    Returns:
      The new order; else nothing changes its turn.
    """
    sorted_channels = tf.gather(channels, order, batch_dims=1)
    by_channel = tf.argsort(sorted_channels, stable=True)
    grouped = tf.gather(sorted_channels, by_channel, batch_dims=1)
    group_start = tf.searchsorted(grouped, grouped)
    earlier = tf.range(tf.shape(order)[1]) - group_start
    earlier = tf.gather(earlier, tf.argsort(by_channel), batch_dims=1)
    exceeds = tf.logical_and(earlier >= most, sorted_channels > 0)
    turn = tf.where(sorted_channels < 0, 2, tf.cast(exceeds, tf.int32))
    return tf.gather(order, tf.argsort(turn, stable=True), batch_dims=1)


def _seen_before(ids: tf.Tensor) -> tf.Tensor:
    """Whether an equal id stands before, bool [B, L]."""
    order = tf.argsort(ids, stable=True)
    ordered = tf.gather(ids, order, batch_dims=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    same = tf.pad(same, [[0, 0], [1, 0]])
    return tf.gather(same, tf.argsort(order), batch_dims=1)


def _taken(values: tf.Tensor, places: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    taken = tf.gather(values, places, batch_dims=1)
    return tf.where(found, taken, tf.zeros_like(taken))
