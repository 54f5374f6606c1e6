"""Hit rates by how much a user has watched, and by how old a video is.

The paper's users and videos are not alike: a mean over all hides a model that
fails newcomers, or the fresh videos that the example age is for (section 3.3).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from models.retrieval_metrics import checked_top_k
from models.retrieval_ranks import LabelRanks
from models.slice_buckets import OUT_OF_VOCABULARY, VIDEO_AGE, Bucket, masks
from schemas.split import DAY_US

# Distinct videos the user had watched before the case: name, from, below.
ACTIVITY: tuple[Bucket, ...] = (
    ("seen_0_to_5", 0, 6),
    ("seen_6_to_20", 6, 21),
    ("seen_21_to_100", 21, 101),
    ("seen_over_100", 101, np.inf),
)
# All, in the order to show them.
BUCKETS = (
    *(f"by_activity.{name}" for name, *_ in ACTIVITY),
    *(f"by_video_age.{name}" for name, *_ in VIDEO_AGE),
    f"by_video_age.{OUT_OF_VOCABULARY}",
)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of each case what the slices are cut by.

    Attributes:
      seen: int64 [cases], distinct videos watched before.
      time_us: int64 [cases], the moment just before the first label.
    """

    seen: np.ndarray
    time_us: np.ndarray


def slices(
    ranks: LabelRanks,
    moments: Moments,
    top_k: Sequence[int],
    upload_time_us: np.ndarray | None,
) -> dict[str, float]:
    """Hit rates per bucket; a bucket without a case is left out.

    By activity a case counts once, by its first label, as in the hit rate of
    all. By video age each distinct label counts once, since the labels of a
    case differ in age; those out of vocabulary, whose age is not known, are a
    bucket of misses: after an uncapped vocabulary, the videos uploaded since
    the training days.

    Args:
      ranks: of all cases.
      moments: of the same cases.
      top_k: each k.
      upload_time_us: float64 [V] of the videos 1..V, NaN where not known;
        None: no slices by video age.

    Returns:
      `by_activity.<bucket>.{cases,hit_rate_at_<k>}` and
      `by_video_age.<bucket>.{labels,hit_rate_at_<k>}`.
    """
    values: dict[str, float] = {}
    first = ranks.rank[ranks.first]
    for name, inside in masks(moments.seen, ACTIVITY):
        prefix = f"by_activity.{name}."
        values |= _hit_rates(prefix, "cases", first[inside], top_k)
    if upload_time_us is None:
        return values
    known = ranks.video > 0
    uploaded = upload_time_us[ranks.video[known] - 1]
    age_days = (moments.time_us[ranks.case[known]] - uploaded) / DAY_US
    for name, inside in masks(age_days, VIDEO_AGE):
        prefix = f"by_video_age.{name}."
        rank = ranks.rank[known][inside]
        values |= _hit_rates(prefix, "labels", rank, top_k)
    return values | _hit_rates(
        f"by_video_age.{OUT_OF_VOCABULARY}.",
        "labels",
        ranks.rank[~known],
        top_k,
    )


def _hit_rates(
    prefix: str, unit: str, rank: np.ndarray, top_k: Sequence[int]
) -> dict[str, float]:
    if not rank.size:
        return {}
    rates = {
        f"{prefix}hit_rate_at_{k}": float((rank <= k).mean())
        for k in checked_top_k(top_k)
    }
    return {f"{prefix}{unit}": float(rank.size), **rates}
