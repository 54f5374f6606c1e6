"""What candidate generators beside the query tower look up: ready lists.

"What to Watch Next" (section 3) names several generators: videos that are
often watched together with the query video, videos of its topics, what is
popular. None needs a model: each is a list per key, made from the training
watches. In: watches, videos, users. Out: `<generator>.npz`, which the
`recommender` SavedModel carries as variables.
"""

import dataclasses
import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.io.filesystems import FileSystems
from scipy import sparse

from models.baselines import Watches, popularity_counts
from models.co_watch import CoWatch
from schemas.vocabularies import Vocabulary


@dataclasses.dataclass(frozen=True)
class CandidateLists:
    """The best M videos of each key 0..K, by falling score, ties by id.

    Attributes:
      ids: int32 [K + 1, M], 0 where a list is shorter.
      scores: float32 [K + 1, M], 0 where a list is shorter.
      keys_of_video: int32 [V + 1, n], the keys of a query video, 0 for none;
        None where the key is not the query video's. Row 0 is of no video.
    """

    ids: np.ndarray
    scores: np.ndarray
    keys_of_video: np.ndarray | None = None

    def save(self, path: str) -> None:
        arrays = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        }
        with FileSystems.create(path) as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: str) -> "CandidateLists":
        with FileSystems.open(path) as stream:
            content = io.BytesIO(stream.read())
        with np.load(content) as arrays:
            return cls(**arrays)


def co_watch_lists(watches: Watches, videos: int, most: int) -> CandidateLists:
    """Of each video those that others watched within five steps after it.

    Scores are n_ij / sqrt(n_i n_j), as `CoWatch` has them.
    """
    ids, scores = _best(CoWatch(watches, videos).links, most)
    every = np.arange(videos + 1, dtype=np.int32)[:, None]
    return CandidateLists(ids, scores, every)


def topic_lists(
    watches: Watches, topics_of_video: np.ndarray, topics: int, most: int
) -> CandidateLists:
    """Of each topic the videos that were watched most.

    Scores are shares of the watches of the topic's videos.

    Args:
      watches: those that count.
      topics_of_video: int32 [V + 1, n], 0 for none.
      topics: K.
      most: M.
    """
    videos = len(topics_of_video) - 1
    video, place = np.nonzero(topics_of_video[1:])
    pairs = np.stack([topics_of_video[1:][video, place] - 1, video])
    # A video may name a topic twice.
    key, video = np.unique(pairs, axis=1)
    counts = popularity_counts(watches, videos)[video]
    shares = _shares(counts, key, video, (topics, videos))
    return CandidateLists(*_best(shares, most), topics_of_video)


def popular_lists(
    watches: Watches,
    users: np.ndarray,
    region_of_user: np.ndarray,
    regions: int,
    videos: int,
    most: int,
) -> CandidateLists:
    """Of each region what its users watched most; key 0 is everybody's.

    Scores are shares of the region's watches.

    Args:
      watches: those that count.
      users: uint64 [n], distinct hashes of user ids.
      region_of_user: int [n], 1..K, 0 for none; others have none either.
      regions: K.
      videos: V.
      most: M.
    """
    order = np.argsort(users)
    users, region_of_user = users[order], region_of_user[order]
    place = np.searchsorted(users, watches.user)
    place = np.minimum(place, len(users) - 1)
    own = np.zeros(len(watches.user), np.int64)
    if len(users):
        there = users[place] == watches.user
        own = np.where(there, region_of_user[place], 0)
    video, known = watches.video - 1, own > 0
    # Each watch counts for everybody's list and for its region's.
    key = np.concatenate([np.zeros_like(own), own[known]])
    video = np.concatenate([video, video[known]])
    counts = np.ones(len(key))
    shares = _shares(counts, key, video, (regions + 1, videos))
    ids, scores = _best(shares, most)
    return CandidateLists(ids[1:], scores[1:])


def topics_of_videos(
    rows: pa.Table, videos: Vocabulary, topics: Vocabulary, most: int
) -> np.ndarray:
    """The first topics of each video.

    Args:
      rows: the videos table; `video_id` and `topics` are read.
      videos: V terms.
      topics: K terms.
      most: how many of a video's list count.

    Returns:
      int32 [V + 1, most], 0 for none; row 0 is of no video.
    """
    found = np.zeros((videos.size + 1, most), np.int32)
    video = videos.ids(rows["video_id"])
    lists = rows["topics"].combine_chunks()
    row = pc.list_parent_indices(lists).to_numpy()
    # The place of each within its list.
    starts = np.flatnonzero(np.diff(row, prepend=-1))
    lengths = np.diff(starts, append=len(row))
    place = np.arange(len(row)) - np.repeat(starts, lengths)
    kept = place < most
    topic = topics.ids(pc.list_flatten(lists))
    found[video[row[kept]], place[kept]] = topic[kept]
    found[0] = 0
    return found


def _shares(
    counts: np.ndarray,
    key: np.ndarray,
    video: np.ndarray,
    shape: tuple[int, int],
) -> sparse.csr_array:
    """Counts added up per key and video, over the sum of the key's."""
    table = sparse.csr_array((counts.astype(float), (key, video)), shape=shape)
    total = np.asarray(table.sum(axis=1)).ravel()
    table.data /= np.repeat(np.maximum(total, 1), np.diff(table.indptr))
    return table


def _best(table: sparse.csr_array, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest values of each row [K, V], after a row 0 of nothing.

    Returns:
      ids int32 and scores float32, [K + 1, most]; column j is id j + 1.
    """
    table.sort_indices()
    rows = table.shape[0]
    row = np.repeat(np.arange(rows), np.diff(table.indptr))
    value = table.data.astype(np.float32)
    order = np.lexsort((table.indices, -value, row))
    place = np.arange(len(row)) - np.repeat(
        table.indptr[:-1], np.diff(table.indptr)
    )
    kept = (place < most) & (value[order] > 0)
    ids = np.zeros((rows + 1, most), np.int32)
    scores = np.zeros((rows + 1, most), np.float32)
    ids[row[kept] + 1, place[kept]] = table.indices[order][kept] + 1
    scores[row[kept] + 1, place[kept]] = value[order][kept]
    return ids, scores
