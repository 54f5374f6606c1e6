"""The position's bias as the shallow tower learns it, beside the true one."""

from collections.abc import Mapping, Sequence

import numpy as np

from models.ranking import RankingModel
from models.ranking_metrics import auc
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
        "Per device, e to the power of the learnt logit of a position less "
        "that of the first, surfaces weighted by their impressions; the "
        "simulator's true factor of the click probability; and the plain "
        "click rate of a position over that of the first, which the "
        "logging recommender's own order makes fall faster. Error is the mean "
        "of |ln(learnt / true)| over devices and positions 2 to 10. Clicks "
        "are ranked where the simulator shuffled what it showed: there the "
        "order says nothing of the videos. Of four test days."
    )
    caveat = (
        "The truth multiplies probabilities, the tower multiplies odds: for "
        "small probabilities that is the same. Far positions have few clicks."
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
        learnt = relative_bias(model, shown)
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
                f"Factor of the click's odds on {device}",
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


def relative_bias(model: RankingModel, shown: np.ndarray) -> np.ndarray:
    """What the position multiplies the click's odds by, 1 at position 1.

    Args:
      model: with a position tower.
      shown: [devices, positions, surfaces + 1], impressions: the weights of
        the surfaces, 0 of which is unknown.

    Returns:
      float64 [devices, positions].
    """
    assert model.position_bias is not None
    logits = model.position_bias.logits.numpy().astype(np.float64)
    devices, positions, _ = shown.shape
    # [positions, devices, surfaces], without "not known".
    known = logits[1 : positions + 1, 1 : devices + 1].transpose(1, 0, 2)
    factors = np.exp(known - known[:, :1])
    weights = shown.sum(axis=1, keepdims=True)
    return np.asarray((factors * weights).sum(axis=2) / weights.sum(axis=2))


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
