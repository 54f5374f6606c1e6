"""Times the recommender's SavedModel in a C program, without Python.

A platform is simulated whose log knows some 100,000 videos; both models are
trained for an epoch, ranking with the 2016 paper's 1024-512-256 network, and
exported. Real requests of the validation part are then asked one at a time,
500 candidates ranked for each. Beside it, in the same C program, the ranking
network alone: the features of the same requests and candidates, as they come
out of the transform graph, in; scores out.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.processes import Measured
from models.keras_setup import tf
from models.ranking import COUNT, RankingModel
from models.recommender import EVERY_CANDIDATE
from models.saved_models import SERVING_DEFAULT, traced
from models.serving import RankingService
from models.serving_requests import CANDIDATES
from pipeline.event_stage import make_events
from pipeline.model_stages import ModelStages
from pipeline.run import LEARNT, PREPARED, Run
from pipeline.stages import prepare
from pipeline.validation_requests import ValidationRequests
from schemas.artifacts import ArtifactStore
from schemas.config import Config
from tests.serving import c_client

_RANKED, _WARM, _BATCH, _BATCHES = 500, 20, 32, 12
_CONFIG = Config.model_validate(
    {
        "simulator": {
            "num_users": 20_000,
            "num_videos": 155_000,
            "num_channels": 10_000,
            "num_days": 14,
            "requests_per_user_day": 0.3,
            # Searches reach far more videos than the feed shows.
            "organic_watches_per_request": 14.0,
        },
        "split": {"valid_days": 1, "test_days": 1},
        "retrieval": {"embedding_dim": 64, "epochs": 1},
        "ranking": {"hidden_units": [1024, 512, 256], "epochs": 1},
        "serving": {"candidates": _RANKED, "top_k": 20},
    }
)

Tensors = Mapping[str, np.ndarray]


def exported(workdir: Path) -> ModelStages:
    """Stages up to the export, found again below the folder or made there."""
    run = Run(_CONFIG, ArtifactStore(str(workdir)))
    run = run.building("events", *PREPARED, *LEARNT)
    events = make_events(run)
    prepare(run, events)
    model_stages = ModelStages(run, events=events)
    model_stages.export()
    return model_stages


def times(model_stages: ModelStages, requests: int, rounds: int) -> Measured:
    """Measures both SavedModels in turns."""
    export = model_stages.export()
    folder = f"{export.path}/recommender/1"
    raw = _requests(model_stages, requests + _BATCH * _BATCHES)
    single = [_rows(raw, i, 1) for i in range(requests)]
    batches = [
        _rows(raw, requests + i * _BATCH, _BATCH) for i in range(_BATCHES)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        program = c_client.build(Path(temporary))
        network = f"{temporary}/network"
        features = _network(model_stages, folder, single, network)
        taken: dict[str, list[float]] = {"recommender": [], "network": []}
        for _ in range(rounds):
            for name, path, asked in (
                ("recommender", folder, single),
                ("network", network, features),
            ):
                taken[name] += _seconds(program, path, asked)[_WARM:]
        batched = _seconds(program, folder, batches)[2:]
    alone, funnel = (np.array(taken[n]) for n in ("network", "recommender"))
    return {
        "recommender_vs_ranking_forward": _ms(funnel, 50) / _ms(alone, 50),
        "recommender_p99_over_p50": _ms(funnel, 99) / _ms(funnel, 50),
        "recommender_p50_ms": _ms(funnel, 50),
        "recommender_p99_ms": _ms(funnel, 99),
        "ranking_forward_p50_ms": _ms(alone, 50),
        "ranking_forward_p99_ms": _ms(alone, 99),
        "requests_per_s_at_batch_32": _BATCH / float(np.median(batched)),
        "videos": model_stages.index().counts["videos"],
        "requests": len(funnel),
    }


def _requests(model_stages: ModelStages, users: int) -> Tensors:
    found = ValidationRequests(model_stages.data, users).cases.requests
    received = len(found["request_time_us"])
    if received < users:
        raise ValueError(f"Expected requests of {users} users, got {received}.")
    return found


def _rows(raw: Tensors, first: int, count: int) -> dict[str, np.ndarray]:
    return {name: values[first : first + count] for name, values in raw.items()}


def _network(
    model_stages: ModelStages,
    recommender: str,
    requests: list[dict[str, np.ndarray]],
    folder: str,
) -> list[dict[str, np.ndarray]]:
    """Saves the ranking network alone; returns the requests as it takes them.

    Its candidates are those that the recommender ranks for the same request.
    """
    ask = tf.saved_model.load(recommender).signatures[EVERY_CANDIDATE]
    taken = ask.structured_input_signature[1]
    model = RankingModel.load(model_stages.ranking_model().path)
    graph = model_stages.data.transform_graph
    with tempfile.TemporaryDirectory() as assets:
        service = RankingService(
            model,
            graph,
            model_stages.raw_inputs,
            model_stages.lagged_table(),
            assets,
        )
        features = []
        for request in requests:
            found = ask(**{n: tf.constant(request[n]) for n in taken})
            candidates = {CANDIDATES: found["video_ids"]}
            raw = {i.name: request[i.name] for i in service.inputs}
            tensors = {n: tf.constant(v) for n, v in (raw | candidates).items()}
            made = service.features(tensors)
            used = {f.name for f in model.features} | {COUNT}
            features.append({n: made[n].numpy() for n in used})
    specs = {
        n: tf.TensorSpec([None, *v.shape[1:]], v.dtype, n)
        for n, v in features[0].items()
    }
    network = tf.Module()
    network.variables_of_model = [
        *model.table_variables,
        *model.dense_variables,
    ]
    signatures = {SERVING_DEFAULT: traced(model.predict, specs)}
    tf.saved_model.save(network, folder, signatures)
    return features


def _seconds(
    program: Path, folder: str, requests: list[dict[str, np.ndarray]]
) -> list[float]:
    loaded = tf.saved_model.load(folder).signatures[SERVING_DEFAULT]
    names = loaded.structured_input_signature[1]
    logs = [
        c_client.log("model", SERVING_DEFAULT, {n: r[n] for n in names})
        for r in requests
    ]
    answers = c_client.timed_in_c(program, folder, logs)
    refused = [answer for answer, _ in answers if isinstance(answer, str)]
    if refused:
        raise ValueError(f"A request was refused: {refused[0]}")
    return [seconds for _, seconds in answers]


def _ms(seconds: np.ndarray, percent: int) -> float:
    return float(np.percentile(seconds, percent)) * 1e3


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    model_stages = exported(args.workdir)
    print(json.dumps(times(model_stages, args.requests, args.rounds)))


if __name__ == "__main__":
    main()
