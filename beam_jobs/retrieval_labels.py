"""Which watches become labels: the next watches, a fixed number a user.

Training: up to N labels per user, chosen and ordered by a stable hash, so that
neither shards nor runs matter. Evaluation: one case a user. In go the events
of a shard, out come rows of its watches and their order.
"""

import dataclasses

import numpy as np

from beam_jobs.example_files import Ragged
from beam_jobs.histories import TimeIndex
from beam_jobs.user_shards import UserShard
from beam_jobs.watch_rows import PartName, completed_rows
from schemas.config import RetrievalExamplesConfig
from schemas.hashing import hash_strings, mix
from schemas.split import SplitBounds


@dataclasses.dataclass(frozen=True)
class Labels:
    """Chosen training labels of a shard, in the order they are written.

    Attributes:
      rows: int64 [E], rows of the shard's watches.
      ids: int64 [E], 1 .. V.
      weights: float32 [E].
      out_of_vocabulary: watches left out because their video has no id.
    """

    rows: np.ndarray
    ids: np.ndarray
    weights: np.ndarray
    out_of_vocabulary: int


@dataclasses.dataclass(frozen=True)
class Cases:
    """Evaluation cases of a shard, one a user, in the order of users.

    Attributes:
      users, times_us: int64 [E]; the case is the user just before the time.
      labels: ids of the completed watches of the part, in time order; 0 is
        out of vocabulary.
      seen: distinct ids watched before, ascending.
    """

    users: np.ndarray
    times_us: np.ndarray
    labels: Ragged
    seen: Ragged


def choose_labels(
    shard: UserShard,
    ids: np.ndarray,
    bounds: SplitBounds,
    config: RetrievalExamplesConfig,
    seed: int,
    since_us: int | None = None,
) -> Labels:
    """Chooses up to N training labels of each user.

    A label is a completed, dated watch of the training part that ended in it,
    of a video in the vocabulary; with a `label_stride`, every so many of a
    user's, the latest among them. Of more than N, those with the smallest hash
    of (seed, user, video, time) are taken: a draw without replacement that
    nothing but the watches themselves decides.

    Args:
      shard: the users' events.
      ids: int64 [n], the vocabulary id of each watch's video.
      bounds: of the split.
      config: N (`examples_per_user`) and the weights.
      seed: of the draw.
      since_us: only watches that began then or later; None takes all.

    Returns:
      Labels in the order of that hash: the file is a shuffled one.
    """
    rows = completed_rows(shard, "train", bounds.train_end_us)
    if since_us is not None:
        rows = rows[shard.times_us("watches")[rows] >= since_us]
    known = rows[ids[rows] > 0]
    users = shard.user_codes["watches"][known]
    priority = label_priority(shard, known, seed)
    times_us = shard.times_us("watches")[known]
    chosen, weights = draw_labels(users, times_us, priority, config)
    labels = known[chosen]
    return Labels(labels, ids[labels], weights, rows.size - known.size)


def label_priority(shard: UserShard, rows: np.ndarray, seed: int) -> np.ndarray:
    """The hash of (seed, user, video, time) of watches, uint64 [m]."""
    users = shard.user_codes["watches"][rows]
    return mix(
        seed,
        hash_strings(shard.user_ids)[users],
        hash_strings(shard.arrow("watches", "video_id").take(rows)),
        shard.times_us("watches")[rows],
    )


def draw_labels(
    users: np.ndarray,
    times_us: np.ndarray,
    priority: np.ndarray,
    config: RetrievalExamplesConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Takes the up to N labels of each user with the smallest priorities.

    Args:
      users: int64 [n] codes of the labels' users, in the order of their ids.
      times_us: int64 [n], of the labels.
      priority: uint64 [n]; equal ones are taken in the order of the rows.
      config: N (`examples_per_user`), `label_stride` and the weights.

    Returns:
      chosen: int64 [E], rows in the order of the priorities.
      weights: float32 [E].
    """
    rows = np.arange(users.size)
    if config.label_stride > 1:
        latest_first = np.lexsort((priority, -times_us, users))
        behind = _position(users[latest_first])
        rows = np.sort(latest_first[behind % config.label_stride == 0])
    order = rows[np.lexsort((priority[rows], users[rows]))]
    limit = config.examples_per_user or users.size
    chosen = order[_position(users[order]) < limit]
    chosen = chosen[np.argsort(priority[chosen], kind="stable")]
    weights = np.ones(chosen.size, np.float32)
    if config.equal_user_weights and config.examples_per_user:
        emitted = np.bincount(users[chosen])[users[chosen]]
        weights = (config.examples_per_user / emitted).astype(np.float32)
    return chosen, weights


def _position(groups: np.ndarray) -> np.ndarray:
    """Place of each element in its group of equal, ascending values."""
    first = np.searchsorted(groups, groups, side="left")
    return np.arange(groups.size) - first


def choose_cases(shard: UserShard, ids: np.ndarray, part: PartName) -> Cases:
    """One case per user with a completed, dated watch in the part.

    The case is just before the first of them; all of them are its labels.
    """
    rows = completed_rows(shard, part)
    users, times = shard.user_codes["watches"], shard.times_us("watches")
    owners, first, counts = np.unique(
        users[rows], return_index=True, return_counts=True
    )
    case_times = times[rows[first]]
    labels = Ragged(ids[rows], np.concatenate(([0], np.cumsum(counts))))
    start, end = TimeIndex(users, times).before(owners, case_times)
    return Cases(owners, case_times, labels, _seen(ids, start, end))


def _seen(ids: np.ndarray, start: np.ndarray, end: np.ndarray) -> Ragged:
    """Distinct known ids of the rows start .. end - 1 of each case."""
    lengths = end - start
    case = np.repeat(np.arange(start.size), lengths)
    first = np.cumsum(lengths) - lengths
    rows = np.arange(case.size) - np.repeat(first - start, lengths)
    found = ids[rows]
    case, found = case[found > 0], found[found > 0]
    pairs = np.unique(np.stack([case, found], axis=1), axis=0)
    counts = np.bincount(pairs[:, 0], minlength=start.size)
    splits = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return Ragged(np.ascontiguousarray(pairs[:, 1]), splits)
