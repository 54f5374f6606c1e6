"""The position's bias as the shallow tower learns it, beside the true one."""

from collections.abc import Mapping, Sequence

import numpy as np

from models.ranking import RankingModel
from models.ranking_metrics import auc
from models.ranking_predictions import of_impressions
from pipeline.experiments.bench import Bench
from pipeline.experiments.exhibits import Exhibit, plot, series, spread_text
from pipeline.experiments.experiment import Experiment, Results, Setting
from pipeline.experiments.verdicts import Check, above, at_least
from pipeline.pages.blocks import Plot, Table
from pipeline.pages.plots import Axis, lines
from schemas.vocabularies import read_vocabulary

POSITIONS = 10
TOWER, WITHOUT = "tower", "without"
_BOTH = (
    "ranking.tasks=[clicked]",
    "ranking.hidden_units=[256, 128]",
    # Each cell of the bias gets few impressions.
    "ranking.learning_rate=0.003",
    # Videos learnt by heart leave less for the position to explain.
    "ranking.embedding_dropout=0.3",
    # A twentieth of the requests is shuffled: enough of them to judge by.
    "split.test_days=4",
)
_SIDES = {
    "learnt": "learnt by the tower",
    "clicks": "click rate, uncorrected",
    "true": "true",
}


class PositionBiasAgainstTruth(Experiment):
    """How much likelier a click is by position alone, on each device."""

    name = "position_bias"
    title = "Position bias, learnt and true"
    source = "Zhao et al. 2019, sections 4.3 and 5.4"
    claim = (
        "A shallow tower of position and device learns the selection bias of "
        "an impression's place: the learnt bias falls with the position. The "
        "rest of the network is then free of it."
    )
    protocol = (
        "Per device, the mean click probability of the test's impressions if "
        "all were at a position, over that if all were at the first, by the "
        "tower's logits; the simulator's true factor of it; and the plain "
        "click rate of a position over that of the first, which the "
        "logging recommender's own order makes fall faster. Error is the mean "
        "of |ln(learnt / true)| over devices and positions 2 to 10. Clicks "
        "are ranked where the simulator shuffled what it showed: there the "
        "order says nothing of the videos. Of four test days."
    )
    caveat = (
        "What the logging recommender knew of a video and the features do "
        "not tell looks like an effect of the position it gave it. Far "
        "positions have few clicks."
    )
    stages = ("ranking_examples", "ranking_holdout")
    sections = ("ranking", "ranking_examples")
    version = 2

    def settings(self, quick: bool) -> Sequence[Setting]:
        return (
            Setting(
                TOWER, "shallow tower", (*_BOTH, "ranking.position_tower=true")
            ),
            Setting(
                WITHOUT, "without it", (*_BOTH, "ranking.position_tower=false")
            ),
        )

    def measure(self, bench: Bench) -> dict[str, float]:
        model = bench.train_ranking()
        found = {"auc_shuffled": _auc_where_shuffled(bench, model)}
        if bench.setting == TOWER:
            found |= self._bias(bench, model)
        return found

    def _bias(self, bench: Bench, model: RankingModel) -> dict[str, float]:
        """The tower's factors, the click rates' and the true ones."""
        devices = read_vocabulary(bench.data.vocabularies().path, "device")
        terms = devices.terms.to_pylist()
        shown, clicked = _counts(bench, len(terms))
        truth = _truth(bench, terms)
        assert model.position_bias is not None  # The setting's own.
        learnt = click_ratios(
            model.position_bias.logits.numpy(),
            *_clicks_expected(bench, model),
            len(terms),
        )
        rates = clicked.sum(axis=2) / np.maximum(shown.sum(axis=2), 1)
        sides = {
            "learnt": learnt,
            "clicks": rates / rates[:, :1],
            "true": truth,
        }
        found: dict[str, float] = {}
        for side, factors in sides.items():
            for device, row in zip(terms, factors, strict=True):
                found |= dict(
                    zip(_names(side, device), map(float, row), strict=True)
                )
        for side in ("learnt", "clicks"):
            found[f"error.{side}"] = mean_log_error(sides[side], truth)
        found["correlation"] = float(
            np.corrcoef(learnt[:, 1:].ravel(), truth[:, 1:].ravel())[0, 1]
        )
        return found

    def checks(self, results: Results) -> list[Check]:
        return [
            at_least(
                "The learnt bias correlates with the true one: 0.95 or more",
                results.of(TOWER, "correlation"),
                0.95,
            ),
            above(
                "It is nearer to the truth than plain click rates are",
                results.of(TOWER, "error.clicks"),
                results.of(TOWER, "error.learnt"),
                3,
            ),
            above(
                "Where positions were shuffled, clicks are ranked better with "
                "the tower than without (AUC)",
                results.of(TOWER, "auc_shuffled"),
                results.of(WITHOUT, "auc_shuffled"),
            ),
        ]

    def exhibit(self, results: Results, quick: bool) -> Exhibit:
        devices = sorted(
            {name.partition(".")[0] for name in results.names("true.")}
        )
        positions = [float(p) for p in range(1, POSITIONS + 1)]
        plots: list[Plot] = []
        for device in devices:
            plots += plot(
                f"Factor of the click's probability on {device}",
                lambda device=device: lines(  # type: ignore[misc]
                    f"Position bias on {device}",
                    Axis("position"),
                    Axis("factor, 1 at position 1"),
                    [
                        series(
                            title,
                            results,
                            [(TOWER, n) for n in _names(side, device)],
                            positions,
                            side == "true",
                        )
                        for side, title in _SIDES.items()
                    ],
                ),
            )
        errors = [
            [_SIDES[side], spread_text(results.of(TOWER, f"error.{side}"), 3)]
            for side in ("learnt", "clicks")
        ]
        aucs = [
            [
                setting.title,
                spread_text(results.of(setting.name, "auc_shuffled")),
            ]
            for setting in self.settings(quick)
        ]
        return Exhibit(
            plots,
            (
                Table("", ["", "error"], errors),
                Table("", ["", "click AUC where shuffled"], aucs),
            ),
        )


def click_ratios(
    bias: np.ndarray,
    probability: np.ndarray,
    device: np.ndarray,
    surface: np.ndarray,
    devices: int,
) -> np.ndarray:
    """How much rarer the same impressions are clicked at a later position.

    Args:
      bias: [> POSITIONS, devices + 1, surfaces + 1], the tower's logits; 0 is
        "not known".
      probability: [n], of a click where the position is not known.
      device, surface: int64 [n].
      devices: how many there are.

    Returns:
      float64 [devices, POSITIONS], the mean probability at each position over
      that at the first.
    """
    bias = bias.astype(np.float64)
    logit = np.log(probability) - np.log1p(-probability)
    rest = logit - bias[0, device, surface]
    ratios = np.empty((devices, POSITIONS))
    for row in range(devices):
        own = device == row + 1
        at = bias[1 : POSITIONS + 1, row + 1][:, surface[own]]
        means = (1.0 / (1.0 + np.exp(-rest[own] - at))).mean(axis=1)
        ratios[row] = means / means[0]
    return ratios


def _clicks_expected(
    bench: Bench, model: RankingModel
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the test's impressions: click probability, device, surface; [n]."""
    parts: dict[str, list[np.ndarray]] = {}
    holdout = bench.data.ranking_holdout()
    for batch in bench.trainer.ranking_batches(holdout, "test"):
        wanted = {
            "clicked": model.predict(batch)["clicked"],
            "device": batch["user_device"],
            "surface": batch["surface"],
        }
        for name, values in of_impressions(batch, wanted):
            parts.setdefault(name, []).append(values)
    clicked, device, surface = map(np.concatenate, parts.values())
    return clicked.astype(np.float64), device, surface


def _auc_where_shuffled(bench: Bench, model: RankingModel) -> float:
    """Click AUC on the test's impressions of shuffled positions."""
    shown = bench.trainer.predict_ranking(
        model, bench.data.ranking_holdout(), "test", detailed=True
    )
    assert shown.propensity is not None  # Simulated logs have it.
    # 1 where the recommender's own order was shown.
    shuffled = shown.where(shown.propensity < 1.0)
    return auc(shuffled.outputs["clicked"], shuffled.labels["clicked"]).value


def mean_log_error(factors: np.ndarray, truth: np.ndarray) -> float:
    """Mean |ln(factor / truth)| over devices and positions from 2 on."""
    ratio = np.maximum(factors[:, 1:], 1e-6) / truth[:, 1:]
    return float(np.abs(np.log(ratio)).mean())


def _counts(bench: Bench, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Impressions and clicks, [devices, positions, surfaces + 1] each."""
    surfaces = bench.data.sizes["surface"]
    shape = (devices + 1, POSITIONS + 1, surfaces + 1)
    shown, clicked = np.zeros(shape), np.zeros(shape)
    examples = bench.data.ranking_examples()
    for batch in bench.trainer.ranking_batches(examples, "train"):
        position = np.asarray(batch["position"])
        slots = np.arange(position.shape[1])
        inside = slots < np.asarray(batch["candidate_count"])[:, None]
        inside &= (position > 0) & (position <= POSITIONS)
        where = [
            np.broadcast_to(np.asarray(values), position.shape)[inside]
            for values in (
                np.asarray(batch["user_device"])[:, None],
                position,
                np.asarray(batch["surface"])[:, None],
            )
        ]
        np.add.at(shown, tuple(where), 1)
        clicks = np.nan_to_num(np.asarray(batch["clicked"])[inside])
        np.add.at(clicked, tuple(where), clicks)
    return shown[1:, 1:], clicked[1:, 1:]


def _truth(bench: Bench, devices: Sequence[str]) -> np.ndarray:
    """The simulator's factors, float64 [devices, positions]."""
    rows = bench.truth("position_truth").to_pylist()
    factors: Mapping[tuple[str, int], float] = {
        (row["device"], row["position"]): row["effect"] for row in rows
    }
    return np.array(
        [
            [factors[device, p] for p in range(1, POSITIONS + 1)]
            for device in devices
        ]
    )


def _names(side: str, device: str) -> list[str]:
    """Names of a side's factors by position."""
    return [f"{side}.{device}.{p:02d}" for p in range(1, POSITIONS + 1)]
