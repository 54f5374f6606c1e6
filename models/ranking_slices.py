"""Who and what a ranking is good at: the impressions, cut by what they are.

The paper's users and videos are not alike: a mean over all hides a model that
fails newcomers, or the fresh videos (section 3.3).
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from models.slice_buckets import OUT_OF_VOCABULARY, VIDEO_AGE, Bucket, masks
from schemas.split import DAY_US

# Watches in the request, which carries only so many.
ACTIVITY: tuple[Bucket, ...] = (
    ("watched_0_to_5", 0, 6),
    ("watched_6_to_20", 6, 21),
    ("watched_over_20", 21, np.inf),
)
# Seconds.
DURATION: tuple[Bucket, ...] = (
    ("under_1_minute", -np.inf, 60),
    ("1_to_5_minutes", 60, 300),
    ("5_to_20_minutes", 300, 1200),
    ("over_20_minutes", 1200, np.inf),
)
_DECILES = 10


@dataclasses.dataclass(frozen=True)
class Context:
    """Of each impression what it is cut by.

    Attributes:
      watched: int64 [n], watches that the request carries.
      video: int64 [n], 1..V, 0 out of vocabulary.
      surface: int64 [n], likewise of the surfaces.
      time_us: int64 [n], of the request.
    """

    watched: np.ndarray
    video: np.ndarray
    surface: np.ndarray
    time_us: np.ndarray


@dataclasses.dataclass(frozen=True)
class VideoFacts:
    """What the slices need of the vocabularies' terms.

    Attributes:
      upload_time_us: float64 [V] of the videos 1..V, NaN where not known;
        None: no slices by video age.
      duration_s: likewise, seconds; None: no slices by duration.
      surfaces: names of the surfaces 1, 2, ...
    """

    upload_time_us: np.ndarray | None
    duration_s: np.ndarray | None
    surfaces: Sequence[str]


def slices(
    context: Context, facts: VideoFacts
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields `by_<slice>.<bucket>` and which impressions, bool [n], it has.

    Age and duration of videos out of vocabulary are not known to a trained
    model; those videos are a bucket of their own: after an uncapped
    vocabulary, the ones uploaded since the training days.
    """
    for name, inside in masks(context.watched, ACTIVITY):
        yield f"by_activity.{name}", inside
    unknown = context.video == 0
    if facts.upload_time_us is not None:
        uploaded = _of_videos(facts.upload_time_us, context.video)
        age_days = (context.time_us - uploaded) / DAY_US
        for name, inside in masks(age_days, VIDEO_AGE):
            yield f"by_video_age.{name}", inside
        yield f"by_video_age.{OUT_OF_VOCABULARY}", unknown
    if facts.duration_s is not None:
        duration_s = _of_videos(facts.duration_s, context.video)
        for name, inside in masks(duration_s, DURATION):
            yield f"by_duration.{name}", inside
        yield f"by_duration.{OUT_OF_VOCABULARY}", unknown
    names = np.array(
        [OUT_OF_VOCABULARY, *(re.sub(r"\W", "_", n) for n in facts.surfaces)]
    )[context.surface]
    for surface in np.unique(names):
        yield f"by_surface.{surface}", names == surface


def deciles(predicted: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields `by_prediction.decile_<1..10>`, the lowest tenth first.

    Equal predictions are in one decile, so that some may be empty.
    """
    levels = np.arange(1, _DECILES) / _DECILES
    edges = np.quantile(predicted, levels)
    decile = np.searchsorted(edges, predicted, side="right")
    for number in range(_DECILES):
        yield f"by_prediction.decile_{number + 1}", decile == number


def _of_videos(values: np.ndarray, video: np.ndarray) -> np.ndarray:
    """The values [V] of videos [n]; NaN out of vocabulary."""
    return np.append(np.nan, values)[video]
