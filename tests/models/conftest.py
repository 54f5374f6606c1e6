"""A small log, its transform graph, models and SavedModels, made once."""

import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import transform
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.lagged_statistics import LaggedStatistics
from models.candidate_lists import CandidateLists
from models.lagged_table import COLUMNS, LaggedTable
from models.ranking import RankingModel
from models.recommender import Catalogue, export_recommender
from models.retrieval import RetrievalModel
from models.serving import export_ranking, export_retrieval
from schemas.config import (
    BeamConfig,
    GeneratorConfig,
    NormalizationConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
    ServingConfig,
)
from schemas.events import EventSchema, ExtraColumn
from schemas.features import FIXED_SPACES, feature_set
from schemas.model_config import (
    ExpertsConfig,
    RankingConfig,
    RetrievalConfig,
    SequenceConfig,
)
from schemas.requests import raw_inputs
from schemas.vocabularies import Vocabulary, vocabulary_files

START_US = 1_600_000_000_000_000
VIDEOS, USERS, TOP_K, REQUESTS, CANDIDATES = 20, 8, 6, 5, 7
RETRIEVAL = RetrievalExamplesConfig(
    history_length=6, searches=3, search_tokens=8, max_list=2
)
# Seven candidates need three rows of the graph.
RANKING = RankingExamplesConfig(max_candidates=3, max_list=2)

SERVING = ServingConfig(
    candidates=TOP_K,
    top_k=4,
    generators=(
        GeneratorConfig(name="co_watch", candidates=2, logged_as="b"),
        GeneratorConfig(name="popular", candidates=1, logged_as="a"),
    ),
)
# Of the 17 videos of the vocabulary, in its order; row 0 is of none.
CHANNELS = np.array([0, *(1 + i % 3 for i in range(16)), 0], np.int32)


def candidate_lists():
    """Every video's next ones; what is popular anywhere, in r1 and in r0."""
    after = 1 + (np.arange(17)[:, None] + np.arange(1, 9)) % 17
    co_watch = np.concatenate([np.zeros((1, 8)), after]).astype(np.int32)
    falling = np.linspace(0.9, 0.2, 8, dtype=np.float32)
    popular = np.array([range(1, 9), range(9, 17), range(3, 11)], np.int32)
    return {
        "co_watch": CandidateLists(
            co_watch,
            np.where(co_watch > 0, falling, 0),
            np.arange(18, dtype=np.int32)[:, None],
        ),
        "popular": CandidateLists(
            popular, np.tile(falling / 10, (3, 1)).astype(np.float32)
        ),
    }


def event_tables(rng):
    """A small log with every kind of input the request can have."""
    videos = pa.table(
        {
            "video_id": [f"v{i}" for i in range(VIDEOS)],
            "channel_id": [None if i == 3 else f"c{i % 4}" for i in range(20)],
            "topics": [[f"t{i % 3}", f"t{i % 5}"] for i in range(VIDEOS)],
            "upload_time_us": pa.array(
                [START_US - i * 10**11 for i in range(20)]
            ),
            "duration_s": [30.0 + i for i in range(VIDEOS)],
        }
    )
    users = pa.table(
        {
            "user_id": [f"u{i}" for i in range(USERS)],
            "region": [f"r{i % 3}" for i in range(USERS)],
            "age": [20.0 + i for i in range(USERS)],
            "hobbies": [[f"h{i % 2}"] * (i % 3) for i in range(USERS)],
        }
    )

    def some(n):
        return {
            "user_id": [f"u{i}" for i in rng.integers(USERS, size=n)],
            # v19 is never shown or watched.
            "video_id": [f"v{i}" for i in rng.integers(VIDEOS - 1, size=n)],
            "event_time_us": START_US + rng.integers(10**11, size=n),
        }

    watches = pa.table(
        {
            **some(80),
            "watch_time_s": rng.uniform(1, 60, 80),
            "completed": rng.random(80) < 0.7,
            "source": ["search"] * 80,
        }
    )
    searches = pa.table(
        {
            "user_id": some(20)["user_id"],
            "query": rng.choice(["red cat", "blue dog", "cat"], 20).tolist(),
            "event_time_us": some(20)["event_time_us"],
        }
    )
    clicked = rng.random(150) < 0.4
    impressions = pa.table(
        {
            **some(150),
            "surface": rng.choice(["home", "next"], 150).tolist(),
            "clicked": clicked,
            "watch_time_s": np.where(clicked, rng.uniform(1, 60, 150), 0.0),
            "position": rng.integers(1, 9, 150),
            "candidate_source": rng.choice(["a", "b"], 150).tolist(),
            "candidate_score": rng.random(150),
            "query_video_id": [f"v{i}" for i in rng.integers(19, size=150)],
            "tags": [[f"g{i % 3}"] * (i % 3) for i in range(150)],
        }
    )
    return {
        "videos": videos,
        "users": users,
        "watches": watches,
        "searches": searches,
        "impressions": impressions,
    }


def vocabulary_terms(space):
    known = {
        # v17 and v18 are out of vocabulary; the order is not that of the log.
        "video": [f"v{(i * 7) % 17}" for i in range(17)],
        "channel": ["c2", "c0", "c1"],
        "topic": ["t0", "t1", "t2", "t3"],
        "token": ["cat", "red", "red cat", "dog"],
        "region": ["r1", "r0"],
        "hobbies": ["h0", "h1"],
        "surface": ["home", "next"],
        "candidate_source": ["b", "a"],
        "tags": ["g1", "g2"],
    }
    return known[space]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A transform graph of the log, and untrained models with real weights."""
    root = tmp_path_factory.mktemp("world")
    tables = event_tables(np.random.default_rng(3))
    extras = {
        "users": (ExtraColumn("hobbies", "categorical_list"),),
        "impressions": (ExtraColumn("tags", "categorical_list"),),
    }
    schema = EventSchema.of_tables(tables, extras)
    tables = {n: t.cast(schema.arrow(n)) for n, t in tables.items()}
    files = {}
    for name, table in tables.items():
        files[name] = [str(root / f"{name}-00000-of-00001.parquet")]
        pq.write_table(table, files[name][0])
    features = feature_set(schema, RETRIEVAL, RANKING)
    sizes = {}
    for space in features.spaces("query", "request", "candidate"):
        if space not in FIXED_SPACES:
            terms = vocabulary_terms(space)
            sizes[space] = len(terms)
            Vocabulary.of_terms(space, terms, range(len(terms), 0, -1)).write(
                *vocabulary_files(str(root), space)
            )
    transform.run(
        files=files,
        vocabulary_folder=str(root),
        output=str(root),
        schema=schema,
        retrieval=RETRIEVAL,
        ranking=RANKING,
        normalization=NormalizationConfig(num_quantiles=20, sample_size=1000),
        shards=BeamConfig(num_shards=1),
        seed=1,
        train_end_us=START_US + 2 * 10**11,
        utc_offset_hours=0.0,
        options=PipelineOptions(["--runner=FnApiRunner"]),
    )
    retrieval = RetrievalModel(
        features,
        sizes,
        RetrievalConfig(
            embedding_dim=4,
            hidden_units=(8,),
            # Shorter than the request's history.
            sequence=SequenceConfig(length=3, layers=1),
        ),
        seed=1,
        example_age=True,
    )
    # Biases are zero before training; here they must matter.
    retrieval.output_biases.assign(np.linspace(-0.1, 0.1, 18))
    ranking = RankingModel(
        features,
        sizes,
        RankingConfig(
            hidden_units=(8,),
            position_tower=True,
            experts=ExpertsConfig(number=2, units=(4,)),
            # Exact, and hashed.
            wide=(("user_region", "surface"), ("user_region", "video")),
            wide_buckets=10,
        ),
        seed=1,
        labels=("clicked", "watch_time_s"),
        positions=True,
    )
    # Crosses are zero before training, too.
    for table in ranking.wide.table_variables:
        rows = np.random.default_rng(2).normal(0, 0.3, table.shape)
        table.assign(rows * (np.arange(len(rows)) > 0)[:, None])
    return SimpleNamespace(
        root=root,
        video_ids=str(root / "video.txt"),
        videos=[t.encode() for t in vocabulary_terms("video")],
        transform=str(root / "transform_fn"),
        tables=tables,
        inputs=raw_inputs(schema, RETRIEVAL, RANKING),
        top_k=TOP_K,
        features=features,
        sizes=sizes,
        retrieval=retrieval,
        ranking=ranking,
        lagged=LaggedTable.build(daily_statistics(), tables["videos"]),
        statistics=LaggedStatistics(
            daily_statistics(), VideoCatalogue.of_table(tables["videos"])
        ),
    )


def daily_statistics():
    """Three days; v99 is in no videos table, v3 has no channel."""
    return pa.table(
        {
            "video_id": ["v1", "v1", "v5", "v3", "v99"],
            "day": [1, 2, 2, 3, 3],
            "impressions": [10, 5, 4, 2, 1],
            "clicks": [3, 2, 1, 0, 1],
            "watch_time_s": [30.5, 12.25, 8.0, 0.0, 5.0],
        }
    )


@pytest.fixture(scope="session")
def raw(world):
    """Raw requests: full lists, short ones, empty ones and unknown terms."""
    rng = np.random.default_rng(5)
    request = {}
    for i in world.inputs:
        shape = (REQUESTS, *i.shape)
        if i.axis == "candidate":
            shape = (REQUESTS, CANDIDATES, *shape[2:])
        if i.dtype == "string":
            values = np.array(some_terms(i.name), object)
            array = rng.choice(values, shape)
        elif i.dtype == "int64":
            array = START_US + rng.integers(10**11, size=shape)
        else:
            array = rng.uniform(0, 40, shape).astype(np.float32)
        request[i.name] = array
    request["request_time_us"][:] = START_US + 2 * 10**11
    request["candidate_position"] = rng.integers(0, 9, (REQUESTS, CANDIDATES))
    # Request 1: two watches, no searches, no impressions; 2: no history.
    for i in world.inputs:
        if i.axis in ("watch", "search", "impression"):
            keep = {"watch": 2}.get(i.axis, 0)
            request[i.name][1, keep:] = i.absent
            request[i.name][2] = i.absent
    # Request 3 has five candidates, request 4 one missing in the middle.
    for i in world.inputs:
        if i.axis == "candidate":
            request[i.name][3, 5:] = i.absent
            request[i.name][4, 2] = i.absent
    return request


def some_terms(name):
    if name.endswith("video_id"):
        return [f"v{i}".encode() for i in (*range(VIDEOS), 99)]
    if name == "search_query":
        return [b"Red  cat!", b"dog", "ünknown".encode()]
    space = {"user_region": "region", "user_hobbies": "hobbies"}.get(
        name, name.removeprefix("impression_")
    )
    return [*(t.encode() for t in vocabulary_terms(space)), b"unknown", b""]


@pytest.fixture(scope="session")
def exported(world, tmp_path_factory):
    """Both SavedModels; the transform folder they were made from is gone."""
    folder = tmp_path_factory.mktemp("export")
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(world.transform, copy / "transform_fn")
    shutil.copy(world.root / "video.txt", copy / "video.txt")
    transform_fn, video_ids = str(copy / "transform_fn"), copy / "video.txt"
    retrieval = export_retrieval(
        world.retrieval,
        transform_fn,
        world.inputs,
        str(video_ids),
        str(folder / "retrieval"),
        3,
        top_k=TOP_K,
    )
    ranking = export_ranking(
        world.ranking,
        transform_fn,
        world.inputs,
        world.lagged,
        str(folder / "ranking"),
        3,
    )
    recommender = export_recommender(
        world.retrieval,
        world.ranking,
        transform_fn,
        world.inputs,
        Catalogue(str(video_ids), candidate_lists(), CHANNELS),
        world.lagged,
        str(folder / "recommender"),
        3,
        SERVING,
    )
    shutil.rmtree(copy)
    return SimpleNamespace(
        retrieval=retrieval, ranking=ranking, recommender=recommender
    )


@pytest.fixture(scope="session")
def retrieval_raw(world, raw):
    """What a client sends to retrieve."""
    return {i.name: raw[i.name] for i in world.inputs if not i.ranking_only}


@pytest.fixture(scope="session")
def ranking_raw(world, raw):
    """What a client sends to rank."""
    left_out = {*COLUMNS, "candidate_position"}
    return {n: v for n, v in raw.items() if n not in left_out}
