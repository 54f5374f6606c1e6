"""Continuous features before and after normalisation (paper, section 4.1).

Before: what the knots of the transform graph say of all training rows. After:
x~ in the training examples, which a quantile normalisation spreads evenly,
but for atoms.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from beam_jobs.transform_graph import stored_knots
from models.inputs import dataset
from pipeline.pages.blocks import (
    Block,
    Folded,
    Grid,
    Missing,
    Plot,
    Table,
    Text,
)
from pipeline.pages.plots import Axis, Series, histogram
from pipeline.report.work_folder import Side, WorkFolder, titled
from schemas.artifacts import join
from schemas.examples import ranking_keys, retrieval_keys
from schemas.features import Feature

# Examples that are read, from the beginning: a file has users by their hash.
EXAMPLES = 20_000
_BATCH = 1_000
_BINS_BEFORE, _BINS_AFTER = 30, 20
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Where the picture of the raw values ends; the tail goes on for long.
_SHOWN_TO = 0.99

Knots = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Normalized:
    """x~ of a feature in examples.

    Attributes:
      values: float32 [n], of those that have it.
      missing: share of all that have it not.
    """

    values: np.ndarray
    missing: float


def features(sides: Sequence[Side]) -> Iterator[Block]:
    """A table and pictures of each side's features."""
    for side in sides:
        folder = side.folder
        title = titled("Continuous features", side, len(sides))
        if folder.stage("transform") is None or folder.stage("events") is None:
            yield Missing(f"{title}: nothing is transformed yet.")
            continue
        yield from _of_side(folder, title)


def _of_side(folder: WorkFolder, title: str) -> Iterator[Block]:
    knots = stored_knots(
        join(folder.needed("transform").path, "transform_fn"), folder.features
    )
    if knots is None:
        yield Missing(
            f"{title}: the transform graph does not tell the knots of requests "
            "from those of candidates, as there are as many of each."
        )
        return
    if not knots:
        yield Text(f"{title}: the log has none.")
        return
    normalized = normalized_values(folder)
    shown = [f for f in folder.features if f.name in knots]
    yield Table(
        title,
        [
            *("feature", "unit", "smallest"),
            *(f"{q:.0%}" for q in _QUANTILES),
            *("largest", "commonest value", "its share", "missing"),
        ],
        [_row(f, knots[f.name], normalized.get(f.name)) for f in shown],
        "Quantiles of the training rows, from the knots that the transform "
        "graph carries; missing values are counted in "
        f"{EXAMPLES:,} examples at most.",
        text_columns=2,
    )
    plots: list[Plot | Table] = []
    for feature in shown:
        plots += _pictures(feature, knots[feature.name], normalized)
    yield Folded(f"{title}, before and after normalisation", [Grid(plots)])


def normalized_values(folder: WorkFolder) -> dict[str, Normalized]:
    """Feature -> x~ in the first training examples, of either kind."""
    found: dict[str, Normalized] = {}
    with_examples = []
    if (examples := folder.stage("ranking_examples")) is not None:
        width = folder.max_candidates
        keys = ranking_keys(folder.features, folder.schema, width)
        with_examples.append((examples, keys))
    elif (examples := folder.stage("retrieval_examples")) is not None:
        keys = retrieval_keys(folder.features, "train", example_age=False)
        with_examples.append((examples, keys))
    for examples, keys in with_examples:
        names = {f.name for f in folder.features if f.kind == "continuous"}
        wanted = [
            k for k in keys if k.name in names or k.name == "candidate_count"
        ]
        batches = dataset(
            examples.files("train-"), wanted, _BATCH, padded_lengths={}
        )
        pieces: dict[str, list[np.ndarray]] = {}
        for batch in batches.take(EXAMPLES // _BATCH).as_numpy_iterator():
            count = batch.pop("candidate_count", None)
            for name, values in batch.items():
                if values.ndim == 3:
                    slots = np.arange(values.shape[1])
                    values = values[slots < count[:, None]]
                pieces.setdefault(name, []).append(values)
        for name, own in pieces.items():
            x = np.concatenate(own)
            missing = x[:, 3] > 0
            found[name] = Normalized(x[~missing, 0], float(missing.mean()))
    return found


def quantile(knots: np.ndarray, levels: np.ndarray, level: float) -> float:
    """The value below which such a share of the training rows lies."""
    # Each knot stands at two levels, with the atom between them.
    at = np.repeat(knots.astype(np.float64), 2)
    return float(np.interp(level, levels.reshape(-1), at))


def share_below(
    knots: np.ndarray, levels: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """P(X <= x) of values [n]."""
    at = np.repeat(knots.astype(np.float64), 2)
    found = np.interp(x, at, levels.reshape(-1).astype(np.float64))
    # At a knot itself the level is the one above its atom.
    nearest = np.maximum(np.searchsorted(knots, x, side="right") - 1, 0)
    shares: np.ndarray
    shares = np.where(knots[nearest] == x, levels[nearest, 1], found)
    return shares


def _row(
    feature: Feature, knots: Knots, normalized: Normalized | None
) -> list[str | float | None]:
    places, levels = knots
    start = [
        feature.name,
        feature.unit or "",
    ]
    missing = None if normalized is None else f"{normalized.missing:.1%}"
    if not len(places):
        return [*start, *[None] * (len(_QUANTILES) + 4), missing]
    atoms = levels[:, 1] - levels[:, 0]
    largest = int(np.argmax(atoms))
    return [
        *start,
        float(places[0]),
        *(quantile(places, levels, q) for q in _QUANTILES),
        float(places[-1]),
        float(places[largest]),
        f"{atoms[largest]:.1%}",
        missing,
    ]


def _pictures(
    feature: Feature, knots: Knots, normalized: Mapping[str, Normalized]
) -> Iterator[Plot]:
    places, levels = knots
    if not len(places):
        return
    low, high = float(places[0]), quantile(places, levels, _SHOWN_TO)
    if high > low:
        edges = np.linspace(low, high, _BINS_BEFORE + 1)
        shares = np.diff(share_below(places, levels, edges))
        shares[0] += levels[0, 1]  # The smallest value itself.
        title = f"{feature.name}, as it is"
        yield Plot(
            title,
            histogram(
                title,
                edges.tolist(),
                Axis(f"{feature.name} ({feature.unit})"),
                Axis("share of rows"),
                [Series("rows", shares.tolist())],
            ),
            f"Up to the {_SHOWN_TO:.0%} quantile.",
        )
    own = normalized.get(feature.name)
    if own is None or not len(own.values):
        return
    counts, edges = np.histogram(own.values, _BINS_AFTER, (0.0, 1.0))
    title = f"{feature.name}, normalised"
    yield Plot(
        title,
        histogram(
            title,
            edges.tolist(),
            Axis("x~"),
            Axis("share of rows"),
            [
                Series("rows", (counts / counts.sum()).tolist()),
                Series("even", [1 / _BINS_AFTER] * _BINS_AFTER, reference=True),
            ],
        ),
    )
