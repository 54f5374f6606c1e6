"""A small simulated platform, its examples, and what is published of it.

The TFRecords are those of the real jobs, the requests those of a front end
that knows the events; the SavedModels are exported and published once.
"""

import shutil
from collections import defaultdict
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from models import serving
from models.inputs import dataset, max_lengths
from models.lagged_table import LaggedTable
from models.ranking import RankingModel
from models.recommender import Catalogue, export_recommender
from models.retrieval import RetrievalModel
from pipeline.event_stage import simulate
from pipeline.publishing import publish
from pipeline.run import PREPARED, Run
from pipeline.stages import DataStages
from schemas.artifacts import ArtifactStore, stage_key
from schemas.config import Config, ServingConfig
from schemas.examples import ranking_keys, ranking_labels, retrieval_keys
from schemas.model_config import RankingConfig, RetrievalConfig
from schemas.requests import raw_inputs
from tests.serving import c_client
from tests.serving.front_end import (
    CANDIDATES,
    DAY_US,
    OFFSET_US,
    ROWS,
    TOP_K,
    FrontEnd,
)

# Many histories are longer than the lists; requests of ten impressions are
# continued in a second example; no day begins at midnight of UTC.
CONFIG = Config.model_validate(
    {
        "simulator": {
            "num_users": 150,
            "num_videos": 150,
            "num_channels": 25,
            "num_topics": 8,
            "num_days": 7,
            "requests_per_user_day": 1.0,
        },
        "split": {"utc_offset_hours": 5.5},
        "beam": {"num_shards": 2},
        "retrieval_examples": {
            "history_length": 20,
            "searches": 5,
            "search_tokens": 12,
        },
        "ranking_examples": {"max_candidates": 8},
    }
)


@pytest.fixture(scope="session")
def platform(tmp_path_factory):
    """Events, what the training jobs made of them, and models."""
    folder = tmp_path_factory.mktemp("parity")
    store = ArtifactStore(str(folder / "work"))
    run = Run(CONFIG, store, (), frozenset(("events", *PREPARED)))
    simulate(run)
    data = DataStages(run)
    tables = {
        name: pa.concat_tables(
            map(pq.read_table, data.events.files(f"{name}-"))
        )
        for name in data.schema.columns
    }
    inputs = raw_inputs(
        data.schema, CONFIG.retrieval_examples, CONFIG.ranking_examples
    )
    return SimpleNamespace(
        folder=folder,
        data=data,
        tables=tables,
        inputs=inputs,
        retrieval_inputs=[i for i in inputs if not i.ranking_only],
        front_end=FrontEnd(tables, inputs),
        retrieval=retrieval_model(data),
        ranking=ranking_model(data),
    )


def retrieval_model(data):
    """Untrained, with weights that let every input through."""
    config = RetrievalConfig(embedding_dim=8, hidden_units=(16,))
    return RetrievalModel(
        data.features, data.sizes, config, seed=1, example_age=True
    )


def ranking_model(data):
    return RankingModel(
        data.features,
        data.sizes,
        RankingConfig(hidden_units=(16,)),
        seed=1,
        labels=ranking_labels(data.schema),
        positions=True,
    )


def parsed(files, keys, features):
    """All examples as training reads them, key -> [n, ...]."""
    lengths = max_lengths(features)
    (batch,) = dataset(files, keys, 10**6, padded_lengths=lengths)
    return {name: value.numpy() for name, value in batch.items()}


def ranking_cases(platform, part, every):
    """Stored examples and their requests, from `every`-th on, ROWS rows."""
    data = platform.data
    keys = ranking_keys(
        data.features, data.schema, CONFIG.ranking_examples.max_candidates
    )
    files = data.ranking_examples().files(f"{part}-")
    stored = parsed(files, keys, data.features)
    rows, requests, started = [], [], defaultdict(int)
    for row, count in enumerate(stored["candidate_count"]):
        user_id = stored["user_id"][row].decode()
        key = user_id, int(stored["request_time_us"][row])
        first = started[key]
        started[key] += count
        if row % every == 0:
            shown = platform.front_end.shown[key][first : first + count]
            rows.append(row)
            requests.append(platform.front_end.request(*key, shown))
    return {name: values[rows] for name, values in stored.items()}, requests


def retrieval_cases(platform):
    data = platform.data
    keys = retrieval_keys(data.features, "train", example_age=True)
    files = data.retrieval_examples().files("train-")
    stored = parsed(files, keys, data.features)
    stored = {name: values[:ROWS] for name, values in stored.items()}
    requests = [
        platform.front_end.request(user_id.decode(), int(time_us))
        for user_id, time_us in zip(
            stored["user_id"], stored["event_time_us"], strict=True
        )
    ]
    return stored, requests


@pytest.fixture(scope="session")
def cases(platform):
    """Name -> what training reads, and the requests of the same moments."""
    return {
        "train": ranking_cases(platform, "train", 3),
        "valid": ranking_cases(platform, "valid", 1),
        "watches": retrieval_cases(platform),
    }


@pytest.fixture(scope="session")
def published(platform):
    """Model -> folder of its published version."""
    data, store = platform.data, platform.data.run.store
    first = (
        platform.retrieval,
        data.transform_graph,
        platform.inputs,
        data.vocabularies().file("video.txt"),
    )
    second = (
        platform.ranking,
        data.transform_graph,
        platform.inputs,
        statistics_before_validation(platform),
    )
    with store.write("export", {}, 1, {}) as writer:
        serving.export_retrieval(
            *first, writer.file("retrieval"), 1, top_k=CANDIDATES
        )
        serving.export_ranking(*second, writer.file("ranking"), 1)
        export_recommender(
            platform.retrieval,
            platform.ranking,
            *first[1:3],
            Catalogue(first[3]),
            second[-1],
            writer.file("recommender"),
            1,
            ServingConfig(candidates=CANDIDATES, top_k=TOP_K),
        )
    export = store.find("export", stage_key("export", {}, 1, {}))
    return publish(export, str(platform.folder))


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """The C program that loads and asks a SavedModel."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not on PATH: no C program to load models with")
    return c_client.build(tmp_path_factory.mktemp("program"))


def statistics_before_validation(platform):
    """What an exported model has on the first day after its training."""
    data = platform.data
    path = data.ranking_examples().file("statistics.parquet")
    day = (data.bounds.train_end_us + OFFSET_US) // DAY_US
    statistics = pq.read_table(path, filters=pc.field("day") < day)
    return LaggedTable.build(statistics, platform.tables["videos"])
