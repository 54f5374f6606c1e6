"""Publishes an export, if it passes the gates.

All gates are measured before a byte is copied: the fingerprints of the parts,
the index's recall, the ranking's calibration, what the SavedModels answer to
requests of the validation part, and how they compare with the version that
serves. The test part is not read: it is for `evaluate`.

Both versions are asked the same requests. The retrieval SavedModel answers raw
ones, whatever its vocabulary. The ranking SavedModel carries the newest lagged
statistics, which know what happened in the validation part; so both ranking
models are given their own transform graphs' features, with the statistics of
the day before.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from beam_jobs.ranking_requests import RankingBatch
from beam_jobs.transform_graph import TransformGraph
from models import ranking_evaluation, ranking_predictions
from models.ranking import RankingModel
from models.serving import RANKING, RECOMMENDER, RETRIEVAL
from models.serving_requests import CANDIDATES
from pipeline import gates
from pipeline.console import say
from pipeline.gates import Answers, Gate
from pipeline.lineage import mismatches
from pipeline.model_stages import ModelStages
from pipeline.model_training import Trainer, Workers
from pipeline.publishing import (
    is_published,
    models_of,
    publish,
    published,
    record_of,
)
from pipeline.serve.served_models import LoadedVersion
from pipeline.validation_requests import Cases, ValidationRequests
from schemas.artifacts import Artifact, join
from schemas.errors import InputError, WatchnextError

# Requests a SavedModel is asked at once; and that are ranked, which costs
# `serving.candidates` times as much.
_AT_ONCE, _RANKED = 64, 256
_RECALLS = {
    "index.recall_at_100": "index.recall",
    "index.stock_recall_at_100": "index.stock_recall",
}

_LOSS = "ranking.weighted_per_user_loss"

Arrays = Mapping[str, np.ndarray]
Shown = Sequence[tuple[RankingBatch, dict[str, np.ndarray]]]


def push(stages: ModelStages) -> dict[str, str]:
    """Publishes the newest export; see `pipeline.publishing.publish`.

    Returns:
      model -> folder of its newest version.

    Raises:
      ArtifactError: a gate is closed; nothing published was touched.
    """
    export, workdir = stages.export(), stages.run.workdir
    if is_published(export, workdir):
        return publish(export, workdir)
    parts = stages.parts() | {"export": export}
    measured = measure(stages, parts)
    gates.refuse(measured)
    for gate in measured:
        if gate.bound is None:
            say(f"gate: {gate}")
    passed = sum(gate.bound is not None for gate in measured)
    say(f"gates: {passed} of {len(measured)} measured, all passed")
    record = {
        "gates": [dataclasses.asdict(gate) for gate in measured],
        "parts": {name: part.fingerprint() for name, part in parts.items()},
    }
    return publish(export, workdir, record)


def measure(stages: ModelStages, parts: Mapping[str, Artifact]) -> list[Gate]:
    """Measures every gate of an export.

    Args:
      stages: of the run.
      parts: stage -> version, the export among them.
    """
    wrong = mismatches(parts)
    if wrong:
        # What is measured of strangers together says nothing.
        return [gates.parts_gate(wrong)]
    config = stages.run.config
    requests = ValidationRequests(stages.data, config.publishing.users)
    recalls = parts["index"].metrics
    return [
        gates.parts_gate(wrong),
        *gates.index_gates(
            {name: recalls[key] for key, name in _RECALLS.items()}, config.index
        ),
        *_gates_of_answers(stages, parts["export"], requests.cases),
        *(_gates_of_ranking(stages, requests) if stages.has_ranking else ()),
    ]


def _gates_of_answers(
    stages: ModelStages, export: Artifact, cases: Cases
) -> list[Gate]:
    """What the SavedModels answer, and what the one that serves would."""
    config, workdir = stages.run.config.publishing, stages.run.workdir
    models = models_of(export)
    folders = {m: join(export.path, m, "1") for m in models}
    found = _ask(RETRIEVAL, folders[RETRIEVAL], cases.requests)
    served = published(workdir, RETRIEVAL)
    beside: float | str = "nothing is published yet to compare with"
    if served is not None:
        beside = _served_hit_rate(served, cases)
    said = [
        *gates.answer_gates(RETRIEVAL, _videos(found, "scores"), config),
        gates.hit_rate_gate(hit_rate(found, cases), beside, config),
    ]
    few = {n: values[:_RANKED] for n, values in cases.requests.items()}
    if RANKING in models:
        ids = found["video_ids"][:_RANKED]
        ranked = _ask(RANKING, folders[RANKING], {**few, CANDIDATES: ids})
        answers = Answers(ranked, ids != b"", "score")
        said += gates.answer_gates(RANKING, answers, config)
    if RECOMMENDER in models:
        ranked = _ask(RECOMMENDER, folders[RECOMMENDER], few)
        answers = _videos(ranked, "score")
        said += gates.answer_gates(RECOMMENDER, answers, config)
    return said


def hit_rate(found: Arrays, cases: Cases) -> float:
    """Share of requests whose next watch was found: as `evaluate` has it."""
    hits = np.any(found["video_ids"] == cases.watched[:, None], axis=1)
    return float(np.mean(hits))


def _served_hit_rate(folder: str, cases: Cases) -> float | str:
    """Of the version that serves, or why it cannot be asked."""
    try:
        return hit_rate(_ask(RETRIEVAL, folder, cases.requests), cases)
    except WatchnextError as error:
        return f"{folder} does not answer the requests of this log: {error}"


def _ask(model: str, folder: str, requests: Arrays) -> dict[str, np.ndarray]:
    """Asks a SavedModel's default signature.

    Raises:
      ArtifactError: it does not load.
      InputError: it wants what the requests do not have.
    """
    version = LoadedVersion(model, int(folder.rsplit("/", 1)[-1]), folder)
    names = version.specs()
    missing = sorted(set(names) - set(requests))
    if missing:
        raise InputError(f"{folder} wants {', '.join(missing)}.")
    count = len(next(iter(requests.values())))
    answers = [
        version.predict(
            {n: requests[n][start : start + _AT_ONCE] for n in names}
        )
        for start in range(0, count, _AT_ONCE)
    ]
    return {
        name: np.concatenate([answer[name] for answer in answers])
        for name in answers[0]
    }


def _videos(found: Arrays, ordered_by: str) -> Answers:
    """Answers of a model that chooses the videos."""
    ids = found["video_ids"]
    numbers = {n: v for n, v in found.items() if v.dtype.kind == "f"}
    return Answers(numbers, ids != b"", ordered_by, ids)


def _gates_of_ranking(
    stages: ModelStages, requests: ValidationRequests
) -> list[Gate]:
    """Calibration, and the order beside that of the version that serves."""
    config = stages.run.config.publishing
    trainer = Trainer(stages.run, stages.data, Workers())
    model = RankingModel.load(stages.ranking_model().path)
    examples = stages.data.ranking_examples()
    try:
        metrics = trainer.evaluate_ranking(model, examples, "valid")
    except ValueError:  # A prediction is NaN, of which there is no measure.
        metrics = {"ranking.calibration": math.nan, _LOSS: math.nan}
    calibration = metrics.get("ranking.calibration")
    loss, beside = _losses(stages, requests, metrics.get(_LOSS, math.nan))
    return [
        gates.calibration_gate(calibration, config),
        gates.ranking_loss_gate(loss, beside, config),
    ]


def _losses(
    stages: ModelStages, requests: ValidationRequests, alone: float
) -> tuple[float, float | str]:
    """The new model's and the published one's on the same requests.

    Args:
      stages: of the run.
      requests: of the validation part.
      alone: the new model's, for where there is nothing to compare with.

    Returns:
      `weighted_per_user_loss` of both, the second or why it is not known.
    """
    earlier = _earlier_parts(stages)
    if isinstance(earlier, str):
        return alone, earlier
    shown = list(requests.impressions())
    try:
        beside = _ranking_loss(stages, shown, *earlier)
    except (KeyError, ValueError) as error:
        return alone, f"the published model takes other requests: {error}"
    if math.isnan(beside):
        return alone, "these users' requests have no click beside a miss"
    if math.isnan(alone):
        return alone, beside
    ours = stages.ranking_model(), stages.data.transform()
    return _ranking_loss(stages, shown, *ours), beside


def _earlier_parts(stages: ModelStages) -> tuple[Artifact, Artifact] | str:
    """Ranking model and transform graph of what serves, or why not."""
    folder = published(stages.run.workdir, RANKING)
    if folder is None:
        return "nothing is published yet to compare with"
    wanted = record_of(folder).get("parts", {})
    found = []
    for stage in ("ranking_model", "transform"):
        versions = [
            version
            for version in stages.run.store.versions(stage)
            if version.fingerprint() == wanted.get(stage)
        ]
        if not versions:
            return (
                f"the {stage} that {folder} was made of is no longer in "
                f"{stages.run.workdir}/{stage}"
            )
        versions[-1].verify()
        found.append(versions[-1])
    return found[0], found[1]


def _ranking_loss(
    stages: ModelStages,
    shown: Shown,
    model: Artifact,
    transform: Artifact,
) -> float:
    """`weighted_per_user_loss` of a model, by the features of its own graph.

    NaN where there is no pair to order.
    """
    if not shown:
        return math.nan
    loaded = RankingModel.load(model.path)
    scopes = loaded.features.select("query", "request", "candidate")
    graph = TransformGraph(
        join(transform.path, "transform_fn"), [f.name for f in scopes]
    )
    examples = (
        {**graph(batch.raw), **labels, **_about(batch)}
        for batch, labels in shown
    )
    by_request = stages.data.schema.has("impressions", "request_id")
    predictions = ranking_predictions.collect_predictions(
        loaded,
        examples,
        ranking_predictions.group_by(by_request),
        utc_offset_hours=stages.run.config.split.utc_offset_hours,
    )
    found = ranking_evaluation.measure(predictions, "")
    return found.get("weighted_per_user_loss", math.nan)


def _about(batch: RankingBatch) -> dict[str, Any]:
    """What an example has beside features and labels."""
    return {
        "candidate_count": batch.candidate_count,
        "position": np.zeros(batch.rows.shape, np.int64),
        "example_index": np.arange(len(batch.user_id)),
        "user_id": batch.user_id,
        "request_key": batch.request_key,
        "request_time_us": batch.raw["request_time_us"],
    }
