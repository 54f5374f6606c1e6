"""How likely a video is by its age: the model's view, the log's, the truth.

The model's: over fixed contexts only the example age is swept, the softmax is
over all videos, and the mean over the contexts is a video's probability at
that moment. The log's: its share of a day's completed watches.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.keras_setup import tf
from models.query_tower import AGE
from models.retrieval import RetrievalModel
from schemas.split import DAY_US, SplitBounds
from schemas.vocabularies import Vocabulary

# Of each day the probability is the mean over so many moments: the log's
# share, beside it, is that of the whole day too.
MOMENTS_A_DAY = 4


def day_ages(bounds: SplitBounds) -> np.ndarray:
    """The example age at the moments of each day of the training window.

    Returns:
      float32 [days, MOMENTS_A_DAY], as the examples have it: 1 at the
      window's start, 0 at its end.
    """
    window_us = bounds.train_end_us - bounds.log_start_us
    days = window_us // DAY_US
    moment = (np.arange(days * MOMENTS_A_DAY) + 0.5) / MOMENTS_A_DAY
    ages = (window_us - moment * DAY_US) / window_us
    return ages.astype(np.float32).reshape(days, MOMENTS_A_DAY)


def swept_probabilities(
    model: RetrievalModel,
    contexts: Mapping[str, tf.Tensor],
    ages: np.ndarray,
    videos: np.ndarray,
) -> np.ndarray:
    """Mean softmax probability of videos on each day.

    Args:
      model: trained, with or without the example age.
      contexts: query features by name, [B, ...].
      ages: float32 [days, M], the moments of each.
      videos: int64 [n], ids from 1.

    Returns:
      float64 [n, days], the mean over contexts and moments.
    """
    embeddings, biases = map(np.asarray, model.candidates())
    count = int(contexts["watch_history"].shape[0])
    found = np.empty((len(videos), ages.size))
    for column, age in enumerate(ages.ravel()):
        queries = model.query_embedding(
            {**contexts, AGE: tf.fill([count], tf.constant(age, tf.float32))}
        )
        logits = np.asarray(queries) @ embeddings.T + biases
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits)
        weights /= weights.sum(axis=1, keepdims=True)
        found[:, column] = weights.mean(axis=0, dtype=np.float64)[videos - 1]
    of_days = found.reshape(len(videos), *ages.shape)
    return np.asarray(of_days.mean(axis=2))


def daily_shares(
    watches: pa.Table, vocabulary: Vocabulary, bounds: SplitBounds
) -> np.ndarray:
    """Each video's share of a day's completed watches.

    Args:
      watches: of the training window.
      vocabulary: of videos, V terms.
      bounds: of the window.

    Returns:
      float64 [V, days].
    """
    watches = watches.filter(pc.field("completed"))
    ids = vocabulary.ids(watches["video_id"].combine_chunks())
    times_us = watches["event_time_us"].to_numpy()
    day = (times_us - bounds.log_start_us) // DAY_US
    days = (bounds.train_end_us - bounds.log_start_us) // DAY_US
    inside = (ids > 0) & (day >= 0) & (day < days)
    counts = np.zeros((vocabulary.size, days))
    np.add.at(counts, (ids[inside] - 1, day[inside]), 1)
    return np.asarray(counts / np.maximum(counts.sum(axis=0), 1))


def true_shares(
    truth: pa.Table, vocabulary: Vocabulary, days: int
) -> np.ndarray:
    """Each video's share of a day's attractiveness, of the simulator's truth.

    Returns:
      float64 [V, days].
    """
    ids = vocabulary.ids(truth["video_id"].combine_chunks())
    day = truth["day"].to_numpy()
    known = (ids > 0) & (day < days)
    shares = np.zeros((vocabulary.size, days))
    share = truth["expected_popularity"].to_numpy()
    shares[ids[known] - 1, day[known]] = share[known]
    return shares


def correlations(curves: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each pair of rows [n, A].

    Returns:
      float64 [n]; 0 where one of both is constant, and it is undefined.
    """
    found = np.zeros(len(curves))
    for row, (one, other) in enumerate(zip(curves, others, strict=True)):
        if np.ptp(one) > 0 and np.ptp(other) > 0:
            found[row] = np.corrcoef(one, other)[0, 1]
    return found


def by_days_since_upload(
    curves: np.ndarray, upload_day: np.ndarray
) -> dict[int, float]:
    """Mean over the videos by whole days since their upload.

    Args:
      curves: float64 [n, days], by day of the log.
      upload_day: int64 [n].

    Returns:
      days since upload (below 0 before it) -> mean over the videos for which
      that day lies in the window, of those days that half of them have.
    """
    videos, days = curves.shape
    since = np.arange(days) - upload_day[:, None]
    return {
        int(age): float(curves[since == age].mean())
        for age in range(int(since.min()), int(since.max()) + 1)
        if 2 * np.count_nonzero(since == age) >= videos
    }
