"""The ranking baselines on examples whose answers are known."""

import sys

import numpy as np
import pytest

from models.boosted_trees import BoostedTrees, Objective
from models.ranking_baselines import (
    LightGbm,
    LinearRanking,
    Popularity,
)
from models.ranking_table import LABELS, Table, read_table
from schemas.errors import UsageError
from schemas.features import Feature

FEATURES = (
    Feature("surface", "categorical", "request", "surface"),
    Feature("recent_watches", "continuous", "request", unit="watches"),
    Feature("video", "categorical", "candidate", "video"),
    Feature("duration_s", "continuous", "candidate", unit="s"),
)
BATCH = {
    "request_key": np.array([11, 12]),
    "candidate_count": np.array([2, 1]),
    "surface": np.array([3, 0]),
    # x~, x~ squared, sqrt(x~), is_missing.
    "recent_watches": np.array([[0.5, 0.25, 0.7, 0], [0, 0, 0, 1]], "f4"),
    "video": np.array([[1, 2], [1, 9]]),
    "duration_s": np.array(
        [[[0.1, 0, 0, 0], [0, 0, 0, 1]], [[0.3, 0, 0, 0], [9, 9, 9, 0]]], "f4"
    ),
    "clicked": np.array([[1, 0], [1, 9]], "f4"),
    "watch_time_s": np.array([[60, 0], [np.nan, 9]], "f4"),
}


def test_the_table_has_a_row_an_impression():
    table = read_table([BATCH, BATCH], FEATURES)
    nan = np.nan
    np.testing.assert_array_equal(
        table.matrix(list(table.columns)),
        np.tile(
            np.array(
                [[3, 0.5, 1, 0.1], [3, 0.5, 2, nan], [0, nan, 1, 0.3]], "f4"
            ),
            (2, 1),
        ),
    )
    assert list(table.columns) == [f.name for f in FEATURES]
    assert table.ids() == ["surface", "video"]
    clicked, seconds = table.labels.values()
    np.testing.assert_array_equal(clicked, [1, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(seconds, [60, 0, nan, 60, 0, nan])
    with pytest.raises(ValueError, match="received none"):
        read_table([BATCH], FEATURES, share=0.0)


def test_a_share_takes_whole_requests():
    keys = np.arange(1000)
    batch = {
        **{name: np.repeat(v[:1], 1000, axis=0) for name, v in BATCH.items()},
        "request_key": keys,
    }
    table = read_table([batch], FEATURES, share=0.3)
    assert len(table.labels["clicked"]) % 2 == 0
    assert 500 < len(table.labels["clicked"]) < 700
    # A larger share has all that a smaller has.
    more = read_table([batch], FEATURES, share=0.6)
    assert len(more.labels["clicked"]) > len(table.labels["clicked"])


def test_popularity_by_hand():
    # Video 1: 2 clicks of 2 impressions; video 2: none of 1; mean 2/3. With
    # twenty impressions of the mean: (2 + 40/3) / 22 and (40/3) / 21.
    popularity = Popularity([BATCH], num_videos=3)
    table = read_table([BATCH], FEATURES)
    outputs = popularity.outputs(table)
    first, second = (2 + 40 / 3) / 22, (40 / 3) / 21
    np.testing.assert_allclose(outputs["clicked"], [first, second, first])
    np.testing.assert_array_equal(outputs["score"], outputs["clicked"])
    # Never shown, or out of vocabulary: the mean.
    unseen = {"video": np.array([3, 0])}
    np.testing.assert_allclose(
        popularity.outputs(Table(unseen, table.labels))["clicked"],
        2 / 3,
    )


def learnable(rng, count):
    """Half of the impressions are clicked more and watched 4 times as long."""
    kind = rng.integers(0, 2, count)
    x = rng.random(count).astype(np.float32)
    x[rng.random(count) < 0.2] = np.nan
    clicked = rng.random(count) < np.where(kind == 1, 0.6, 0.2)
    seconds = clicked * rng.exponential(np.where(kind == 1, 80.0, 20.0))
    columns = {"kind": kind + 1, "noise": x}
    labels = clicked.astype("f4"), seconds.astype("f4")
    return Table(columns, dict(zip(LABELS, labels, strict=True)))


def check(baseline, rel):
    test = learnable(np.random.default_rng(2), 4000)
    found = baseline.outputs(test)
    for kind, chance, seconds in ((1, 0.2, 4.0), (2, 0.6, 48.0)):
        own = test.columns["kind"] == kind
        assert found["clicked"][own].mean() == pytest.approx(chance, abs=0.05)
        expected_s = found["expected_watch_time_s"][own].mean()
        assert expected_s == pytest.approx(seconds, rel=rel)
    np.testing.assert_array_equal(
        found["score"], found["expected_watch_time_s"]
    )
    # An id that was not there in training is no error.
    unseen = {**test.columns, "kind": np.full(4000, 99)}
    strange = baseline.outputs(Table(unseen, test.labels))
    assert np.isfinite(strange["score"]).all()


def test_logistic_regressions_find_chances_and_seconds():
    check(LinearRanking(learnable(np.random.default_rng(0), 8000)), 0.15)


def test_trees_find_chances_and_seconds_and_the_seed_names_them():
    try:
        import lightgbm  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"LightGBM cannot be loaded: {error}")
    train = learnable(np.random.default_rng(0), 4000)
    valid = learnable(np.random.default_rng(1), 2000)
    trees = LightGbm(train, valid, seed=1)
    # They stop early, before the rarer seconds are down from the mean, 26.
    check(trees, 0.5)
    again = LightGbm(train, valid, seed=1).outputs(valid)
    np.testing.assert_array_equal(trees.outputs(valid)["score"], again["score"])


def test_without_lightgbm_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    table = learnable(np.random.default_rng(0), 50)
    with pytest.raises(UsageError, match=r"watchnext\[lightgbm\]"):
        LightGbm(table, table, seed=1)


def test_trees_weigh_clicks_by_seconds_and_learn_no_single_ids():
    """Odds of the weighted regression: sum T (clicked) / not clicked."""
    pytest.importorskip("lightgbm", exc_type=(ImportError, OSError))
    rng = np.random.default_rng(0)
    train, valid = learnable(rng, 8000), learnable(rng, 4000)
    for table in (train, valid):
        # 1,000 ids that say nothing.
        count = len(table.labels["clicked"])
        table.columns["video"] = rng.integers(1, 1001, count)
    weighted = Objective("binary", "clicked", weight="watch_time_s")
    trees = BoostedTrees(train, valid, weighted, seed=1)
    assert trees.columns == ["kind", "noise"]
    probability = trees.predict(valid)
    for kind, clicked, seconds in ((1, 0.2, 20.0), (2, 0.6, 80.0)):
        found = probability[valid.columns["kind"] == kind].mean()
        odds = clicked * seconds / (1.0 - clicked)
        assert found / (1.0 - found) == pytest.approx(odds, rel=0.25)
