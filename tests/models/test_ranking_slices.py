"""Buckets of impressions, by hand."""

import numpy as np

from models.ranking_slices import Context, VideoFacts, deciles, slices

DAY_US = 86_400_000_000
# Videos 1, 2, 3 and, twice, one out of vocabulary; surface 0 likewise.
CONTEXT = Context(
    watched=np.array([0, 5, 6, 20, 21]),
    video=np.array([1, 2, 3, 0, 0]),
    surface=np.array([1, 2, 0, 2, 1]),
    time_us=np.array([10, 10, 10, 10, 10]) * DAY_US,
)


def members(found):
    return {n: list(np.flatnonzero(m)) for n, m in found if m.any()}


def test_every_slice_by_hand():
    facts = VideoFacts(
        upload_time_us=np.array([9.0, 8.0, np.nan]) * DAY_US,
        duration_s=np.array([59.0, 60.0, 1200.0]),
        surfaces=["watch next", "home"],
    )
    assert members(slices(CONTEXT, facts)) == {
        "by_activity.watched_0_to_5": [0, 1],
        "by_activity.watched_6_to_20": [2, 3],
        "by_activity.watched_over_20": [4],
        # One and two days old; of video 3 it is not known.
        "by_video_age.under_2_days": [0],
        "by_video_age.2_to_7_days": [1],
        "by_video_age.out_of_vocabulary": [3, 4],
        "by_duration.under_1_minute": [0],
        "by_duration.1_to_5_minutes": [1],
        "by_duration.over_20_minutes": [2],
        "by_duration.out_of_vocabulary": [3, 4],
        "by_surface.watch_next": [0, 4],
        "by_surface.home": [1, 3],
        "by_surface.out_of_vocabulary": [2],
    }


def test_what_the_log_does_not_tell_has_no_slices():
    facts = VideoFacts(None, None, [])
    context = Context(*(np.zeros(2, np.int64) for _ in range(4)))
    assert members(slices(context, facts)) == {
        "by_activity.watched_0_to_5": [0, 1],
        "by_surface.out_of_vocabulary": [0, 1],
    }


def test_deciles_part_the_predictions_and_keep_equal_ones_together():
    values = np.random.default_rng(0).permutation(20).astype(float)
    found = members(deciles(values))
    assert [sorted(values[rows]) for rows in found.values()] == [
        [2.0 * i, 2.0 * i + 1.0] for i in range(10)
    ]
    alike = members(deciles(np.ones(7)))
    assert list(alike.values()) == [list(range(7))]
