"""The wide part against plain Python, and what it alone can learn."""

import itertools
import math

import numpy as np
import pytest

from models.crosses import Crosses
from models.keras_setup import tf
from models.ranking import RankingModel
from models.training_step import TrainingStep
from schemas.errors import UsageError
from schemas.features import Feature, FeatureSet
from schemas.model_config import ExpertsConfig, RankingConfig

C = 3  # Candidate slots per request.
SIZES = {"device": 3, "surface": 2, "video": 40_000, "channel": 5_000}
FEATURES = FeatureSet(
    (
        Feature("watch_history", "bag", "query", "video", 4),
        Feature("user_device", "categorical", "query", "device"),
        Feature("user_age", "continuous", "query", unit="years"),
        Feature("surface", "categorical", "request", "surface"),
        Feature("video", "categorical", "candidate", "video"),
        Feature("channel", "categorical", "candidate", "channel"),
    )
)
EXACT, HASHED = ("user_device", "surface"), ("user_device", "video", "channel")
CONFIG = RankingConfig(
    hidden_units=(4,),
    max_embedding_dim=2,
    wide=(EXACT, HASHED),
    wide_buckets=1000,
    position_tower=False,
    batch_size=4,
)
# Drawn by the cross's name. Others would be as good, but models that were
# saved depend on these.
MULTIPLIERS = (741_415_304, 1_436_008_197, 1_366_093_537)


def make_model(config: RankingConfig = CONFIG) -> RankingModel:
    labels = ("clicked", "watch_time_s")
    return RankingModel(
        FEATURES, SIZES, config, 3, labels=labels, positions=False
    )


def make_batch(seed: int = 0) -> dict[str, tf.Tensor]:
    """Four requests; out-of-vocabulary ids among them."""
    rng = np.random.default_rng(seed)
    clicked = rng.integers(0, 2, (4, C)).astype(np.float32)
    batch = {
        "watch_history": rng.integers(0, 9, (4, 4)),
        "user_device": np.array([0, 1, 2, 3]),
        "user_age": rng.random((4, 4), np.float32),
        "surface": np.array([1, 2, 1, 2]),
        "video": rng.choice([0, 1, 7, 39_999, 40_000], (4, C)),
        "channel": rng.choice([0, 1, 4_999, 5_000], (4, C)),
        "candidate_count": np.array([3, 2, 3, 1]),
        "clicked": clicked,
        "watch_time_s": clicked * 30,
        "example_index": np.arange(4),
    }
    return {name: tf.constant(values) for name, values in batch.items()}


def oracle_row(name: str, ids: tuple[int, ...]) -> int:
    """The documented formula in Python's integers."""
    if min(ids) < 1:
        return 0
    if name == "user_device_x_surface":
        device, surface = ids
        return 1 + (device - 1) * 2 + surface - 1
    total = sum(f * i for f, i in zip(MULTIPLIERS, ids, strict=True))
    return 1 + total % (2**31 - 1) % 1000


def oracle_addend(model: RankingModel, batch, b: int, c: int) -> np.ndarray:
    values = {
        name: int(
            batch[name].numpy()[b] if name in EXACT else batch[name][b, c]
        )
        for name in {*EXACT, *HASHED}
    }
    total = np.zeros(len(model.heads))
    for names, table in zip(
        (EXACT, HASHED), model.wide.table_variables, strict=True
    ):
        row = oracle_row("_x_".join(names), tuple(values[n] for n in names))
        total += table.numpy()[row]
    return total


def test_exact_crosses_give_each_combination_a_row_of_its_own() -> None:
    crosses = make_model().wide
    assert crosses.rows == {
        "user_device_x_surface": 3 * 2,
        "user_device_x_video_x_channel": 1000,
    }
    every = np.array(list(itertools.product((1, 2, 3), (1, 2))))
    rows = crosses.row(
        "user_device_x_surface", [tf.constant(column) for column in every.T]
    )
    assert rows.numpy().tolist() == [1, 2, 3, 4, 5, 6]


def test_hashed_crosses_are_the_stable_formula_and_fill_all_rows() -> None:
    crosses = make_model().wide
    rng = np.random.default_rng(1)
    name = "user_device_x_video_x_channel"
    ids = [rng.integers(1, SIZES[s] + 1, 20_000) for s in ("device", "video")]
    ids.append(rng.integers(1, SIZES["channel"] + 1, 20_000))
    rows = crosses.row(name, [tf.constant(i) for i in ids]).numpy()
    wanted = [
        oracle_row(name, tuple(map(int, of))) for of in zip(*ids, strict=True)
    ]
    assert rows.tolist() == wanted
    # Twenty expected in each of 1,000 rows, standard deviation 4.5.
    counts = np.bincount(rows, minlength=1001)
    assert counts[0] == 0
    assert counts[1:].min() >= 1 and counts.max() <= 20 + 6 * 4.5


def test_a_cross_with_an_unknown_member_says_nothing() -> None:
    crosses = make_model().wide
    for name, known in (
        ("user_device_x_surface", (1, 1)),
        ("user_device_x_video_x_channel", (1, 1, 1)),
    ):
        for place, unknown in itertools.product(range(len(known)), (0, -1)):
            ids = [[i] for i in known]
            ids[place] = [unknown]
            rows = crosses.row(name, [tf.constant(i, tf.int64) for i in ids])
            assert rows.numpy().tolist() == [0]


@pytest.mark.parametrize("experts", [None, ExpertsConfig(number=2, units=(4,))])
def test_predictions_are_those_without_it_times_the_rows(experts) -> None:
    config = CONFIG.model_copy(update={"experts": experts})
    model = make_model(config)
    plain = make_model(config.model_copy(update={"wide": ()}))
    batch = make_batch()
    # Zero at first: nothing is added.
    for name, values in plain.predict(batch).items():
        np.testing.assert_array_equal(values, model.predict(batch)[name])
    rng = np.random.default_rng(5)
    for table in model.wide.table_variables:
        rows = rng.normal(size=table.shape)
        rows[0] = 0.0
        table.assign(rows)
    found, before = model.predict(batch), plain.predict(batch)
    for b, count in enumerate((3, 2, 3, 1)):
        for c in range(count):
            watch_time, clicked = oracle_addend(model, batch, b, c)
            # e^(z + w) = e^z e^w; of the probability, the odds likewise.
            seconds = float(before["expected_watch_time_s"][b, c])
            assert float(found["expected_watch_time_s"][b, c]) == pytest.approx(
                seconds * math.exp(watch_time), rel=1e-4
            )
            p, q = (float(x["clicked"][b, c]) for x in (before, found))
            assert q / (1 - q) == pytest.approx(
                p / (1 - p) * math.exp(clicked), rel=1e-4
            )


def test_a_step_updates_the_rows_of_its_impressions_alone() -> None:
    model, batch = make_model(), make_batch()
    step = tf.function(TrainingStep(model, CONFIG))
    step(batch, tf.constant(0, tf.int64))
    for names, table in zip(
        (EXACT, HASHED), model.wide.table_variables, strict=True
    ):
        seen = set()
        for b, count in enumerate((3, 2, 3, 1)):
            for c in range(count):
                ids = [
                    int(batch[n][b] if n in EXACT else batch[n][b, c])
                    for n in names
                ]
                seen.add(oracle_row("_x_".join(names), tuple(ids)))
        moved = set(np.flatnonzero(np.abs(table.numpy()).sum(axis=1)))
        assert moved == seen - {0}
        assert moved  # Row 0, of unknown members, stays zero.
        assert 0 in seen


def test_saved_and_loaded_it_predicts_the_same(tmp_path) -> None:
    model, batch = make_model(), make_batch()
    for table in model.wide.table_variables:
        table.assign(np.random.default_rng(2).normal(size=table.shape))
    model.save(str(tmp_path))
    loaded = RankingModel.load(str(tmp_path))
    for name, values in model.predict(batch).items():
        np.testing.assert_array_equal(values, loaded.predict(batch)[name])


@pytest.mark.parametrize(
    ("wide", "message"),
    [
        ([("surface",)], "two or more different"),
        ([("surface", "surface")], "two or more different"),
        ([("surface", "watch_history")], "of user_device, surface, video"),
        ([("surface", "user_age")], "categorical features"),
        ([("surface", "nonsense")], r"received \['surface', 'nonsense'\]"),
        ([EXACT, EXACT[::-1]], r"once; received \['user_device', .* twice"),
    ],
)
def test_wrong_crosses_are_refused(wide, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Crosses(FEATURES, SIZES, wide, 10, 1)


XOR = FeatureSet(
    (
        Feature("user_device", "categorical", "query", "device"),
        Feature("surface", "categorical", "request", "surface"),
        Feature("video", "categorical", "candidate", "video"),
    )
)


def loss_of_xor(wide: tuple[tuple[str, ...], ...]) -> float:
    """Clicks exactly where one of two features is 2; mean log loss."""
    config = RankingConfig(
        # One rectified unit: a monotone function of p(device) + q(surface).
        hidden_units=(1,),
        max_embedding_dim=2,
        task_weights={"watch_time": 0.0},
        score_weights={"clicked": 1.0},
        wide=wide,
        position_tower=False,
        learning_rate=0.03,
        table_learning_rate=0.03,
        batch_size=4,
    )
    model = RankingModel(
        XOR,
        {"device": 2, "surface": 2, "video": 1},
        config,
        1,
        labels=("clicked", "watch_time_s"),
        positions=False,
    )
    clicked = np.float32([[0], [1], [1], [0]])
    batch = {
        "user_device": tf.constant([1, 1, 2, 2], tf.int64),
        "surface": tf.constant([1, 2, 1, 2], tf.int64),
        "video": tf.ones([4, 1], tf.int64),
        "candidate_count": tf.ones([4], tf.int64),
        "clicked": tf.constant(clicked),
        "watch_time_s": tf.constant(clicked),
        "example_index": tf.range(4, dtype=tf.int64),
    }
    step = tf.function(TrainingStep(model, config))
    for number in range(300):
        loss, _ = step(batch, tf.constant(number, tf.int64))
    return float(loss)


def test_what_two_features_say_together_needs_the_cross() -> None:
    # p + q over the diagonal and over the other one have equal sums, so one
    # threshold parts at most one case from the other three, which then are
    # told apart no more: 3/4 H(1/3) = 0.477 nats at best.
    assert loss_of_xor(()) > 0.47
    assert loss_of_xor((("user_device", "surface"),)) < 0.05
