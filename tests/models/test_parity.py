"""What was learnt from is what is served: features and answers, row by row.

The TFRecords are those of the real jobs on a simulated platform. The requests
are put together here from the events alone, one at a time, as a front end
would: what was before, newest first. Another process answers them.
"""

import subprocess
import sys
from collections import defaultdict
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from beam_jobs.transform_graph import TransformGraph
from models.inputs import dataset, max_lengths
from models.lagged_table import COLUMNS, LaggedTable
from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from models.serving import export_ranking, export_retrieval
from pipeline.run import PREPARED, Run
from pipeline.stages import DataStages, simulate
from schemas.artifacts import ArtifactStore
from schemas.config import Config, RankingConfig, RetrievalConfig
from schemas.examples import ranking_keys, ranking_labels, retrieval_keys
from schemas.requests import raw_inputs

ROWS, AWAY = 1000, 100
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
DAY_US, OFFSET_US = 86_400_000_000, 19_800_000_000
# The same whatever the user did before.
IMPERSONAL = {"user_age", "duration_s", "video_age_days", "candidate_score"}
PREFIXES = ("watch_history_", "impression_history_", "search_", "candidate_")


class FrontEnd:
    """Has the events as rows, and builds requests by their definition."""

    def __init__(self, tables, inputs):
        self.inputs = inputs
        self.rows = {n: by_user(t) for n, t in tables.items() if n != "videos"}
        videos = tables["videos"]
        self.channels = dict(
            zip(
                videos["video_id"].to_pylist(),
                videos["channel_id"].to_pylist(),
                strict=True,
            )
        )
        named = defaultdict(list)
        for row in tables["impressions"].to_pylist():
            named[row["request_id"]].append(row)
        # (user, time) -> impressions in their order on the screen.
        self.shown = {}
        for rows in named.values():
            key = rows[0]["user_id"], min(r["event_time_us"] for r in rows)
            assert key not in self.shown
            rows.sort(key=lambda r: (r["position"], r["video_id"]))
            self.shown[key] = rows
        self.totals = {}

    def request(self, user_id, time_us, shown=()):
        """name -> value, or list of as many values as there are."""
        user = self.rows["users"][user_id][0]
        once = {f"user_{n}": v for n, v in user.items()}
        once["request_time_us"] = time_us
        if shown:
            once |= {n: shown[0][n] for n in ("surface", "query_video_id")}
        lists = {
            "watch": self._newest("watches", user_id, time_us),
            "search": self._newest("searches", user_id, time_us),
            "impression": self._newest("impressions", user_id, time_us),
            "candidate": [r | self._lagged(r, time_us) for r in shown],
        }
        return {
            i.name: cell(once[i.name], i)
            if i.axis == "request"
            else [cell(value_of(i.name, row), i) for row in lists[i.axis]]
            for i in self.inputs
            if shown or not i.ranking_only
        }

    def _newest(self, table, user_id, time_us):
        """What the user did before, newest first."""
        name = "query" if table == "searches" else "video_id"
        rows = [
            row | {"watch_time_s": known_watch_time_s(row, time_us)}
            for row in self.rows[table][user_id]
            if row["event_time_us"] < time_us
        ]
        rows.sort(key=lambda r: (r["event_time_us"], r[name]), reverse=True)
        return rows

    def _lagged(self, row, time_us):
        """Sums over everybody's impressions up to midnight."""
        midnight_us = (time_us + OFFSET_US) // DAY_US * DAY_US - OFFSET_US
        if midnight_us not in self.totals:
            self.totals[midnight_us] = self._totals(midnight_us)
        keys = {
            "video": row["video_id"],
            "channel": self.channels[row["video_id"]],
        }
        lagged = {}
        for group, key in keys.items():
            shown, clicked, watched_us = self.totals[midnight_us][group, key]
            rates = [None, None]
            if shown:
                rates = [clicked / shown, watched_us / 1e6 / shown]
            lagged[f"{group}_lagged_impressions"] = shown
            lagged[f"{group}_lagged_click_rate"] = rates[0]
            lagged[f"{group}_lagged_watch_time_s"] = rates[1]
        return lagged

    def _totals(self, before_us):
        totals = defaultdict(lambda: [0, 0, 0])
        for row in chain(*self.rows["impressions"].values()):
            if row["event_time_us"] >= before_us:
                continue
            video = row["video_id"]
            # Whole microseconds: the level of a value jumps where many rows
            # have it, and a sum of floats could come to lie just beside.
            spent_us = round(row["watch_time_s"] * 1e6)
            if row["event_time_us"] + spent_us > before_us:
                spent_us = 0  # Nobody knew of it at midnight.
            counted = 1, row["clicked"], spent_us
            for key in ("video", video), ("channel", self.channels[video]):
                for place, value in enumerate(counted):
                    totals[key][place] += value
        return totals


def by_user(table):
    rows = defaultdict(list)
    for row in table.to_pylist():
        rows[row["user_id"]].append(row)
    return rows


def known_watch_time_s(row, time_us):
    """None until the time has been spent."""
    spent_s = row.get("watch_time_s")
    end_us = row["event_time_us"] + round((spent_s or 0.0) * 1e6)
    return spent_s if end_us <= time_us else None


def value_of(name, row):
    names = (name, *(name.removeprefix(p) for p in PREFIXES))
    return next(row[n] for n in names if n in row)


def cell(value, raw):
    if value is None:
        return raw.absent
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return value.encode() if isinstance(value, str) else value


def full_lists(request, inputs):
    """name -> [1, ...], lists cut or filled up to the graph's lengths."""
    arrays = {}
    for i in inputs:
        array = np.full((1, *i.shape), i.absent, i.numpy_dtype)
        if i.axis == "request":
            array[0] = request[i.name]
        else:
            values = request[i.name][: i.length]
            array[0, : len(values)] = values
        arrays[i.name] = array
    return arrays


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def cases(platform):
    """Name -> what training reads, and the requests of the same moments."""
    return {
        "train": ranking_cases(platform, "train", 3),
        "valid": ranking_cases(platform, "valid", 1),
        "watches": retrieval_cases(platform),
    }


CLIENT = """
import sys
import numpy as np
import tensorflow as tf

asked = np.load("asked.npz", allow_pickle=True)["asked"].item()
answers = {}
for name, (folder, signature, rows) in asked["models"].items():
    model = tf.saved_model.load(folder)
    function = model.signatures[signature]
    types = {
        n: spec.dtype
        for n, spec in function.structured_input_signature[1].items()
    }
    answers[name] = [
        {k: v.numpy() for k, v in function(**{
            n: tf.constant([row[n]], types[n]) for n in types
        }).items()}
        for row in rows
    ]
assert "tensorflow_transform" not in sys.modules

import tensorflow_transform as tft

layer = tft.TFTransformOutput(asked["graph"]).transform_features_layer()
graph = tf.function(lambda raw: layer(raw), autograph=False)
for name, rows in asked["requests"].items():
    answers[name] = [
        {k: v.numpy() for k, v in graph({
            n: tf.constant(v) for n, v in row.items()
        }).items()}
        for row in rows
    ]
ours = {"beam_jobs", "models", "schemas", "pipeline"}
assert not ours & set(sys.modules)
np.savez("answers.npz", answers=answers)
"""


@pytest.fixture(scope="module")
def answers(platform, cases):
    """Name -> answer per request, each asked alone, in another process."""
    graph, folder = platform.data.transform_graph, platform.folder
    vocabularies = platform.data.vocabularies()
    retrieval = export_retrieval(
        platform.retrieval,
        graph,
        platform.inputs,
        vocabularies.file("video.txt"),
        str(folder / "retrieval"),
        1,
        top_k=5,
    )
    ranking = export_ranking(
        platform.ranking,
        graph,
        platform.inputs,
        statistics_before_validation(platform),
        str(folder / "ranking"),
        1,
    )
    models = {
        "ranking": (ranking, "serving_default", cases["valid"][1]),
        "retrieval": (retrieval, "query_embedding", cases["watches"][1]),
    }
    requests = {
        name: [full_lists(r, inputs) for r in cases[name][1]]
        for name, inputs in (
            ("train", platform.inputs),
            ("valid", platform.inputs),
            ("watches", platform.retrieval_inputs),
        )
    }
    asked = {"models": models, "graph": graph, "requests": requests}
    np.savez(folder / "asked.npz", asked=asked)
    (folder / "client.py").write_text(CLIENT)
    done = subprocess.run(
        [sys.executable, "-I", "client.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "answers.npz", allow_pickle=True)["answers"].item()


def statistics_before_validation(platform):
    """What an exported model has on the first day after its training."""
    data = platform.data
    path = data.ranking_examples().file("statistics.parquet")
    day = (data.bounds.train_end_us + OFFSET_US) // DAY_US
    statistics = pq.read_table(path, filters=pc.field("day") < day)
    return LaggedTable.build(statistics, platform.tables["videos"])


def is_candidate(stored):
    slots = np.arange(stored["position"].shape[1])
    return slots < stored["candidate_count"][:, None]


def test_each_history_feature_is_away_from_its_default(platform, cases):
    """Or equality would say little: the default is an empty past's."""
    stored, requests = cases["valid"]
    used = is_candidate(stored)
    assert used.sum() >= ROWS
    # Only the first thousand candidates count.
    used &= (np.cumsum(used) <= ROWS).reshape(used.shape)
    raw = [full_lists(r, platform.inputs) for r in requests]
    blank = {}
    for i in platform.inputs:
        blank[i.name] = np.concatenate([row[i.name] for row in raw])
        if i.axis in ("watch", "impression", "search"):
            blank[i.name][:] = i.absent
        elif i.name in COLUMNS:
            blank[i.name][:] = 0.0 if "impressions" in i.name else np.nan
    default = TransformGraph(platform.data.transform_graph)(blank)
    away = {}
    for f in platform.data.features.select("request", "candidate"):
        if f.kind == "continuous" and f.name not in IMPERSONAL:
            differs = (stored[f.name] != default[f.name]).any(axis=-1)
            known = stored[f.name][..., 3] == 0
            counts = differs & known
            counts = counts if counts.ndim == 2 else counts[:, None]
            away[f.name] = int((counts & used).sum())
    # 6 of the request, 4 each of channel and topic, 3 of the video, 6 lagged.
    assert len(away) == 6 + 2 * 4 + 3 + 6
    assert min(away.values()) >= AWAY, away


@pytest.mark.parametrize("part", ["train", "valid", "watches"])
def test_features_are_those_of_the_request(platform, cases, answers, part):
    stored, requests = cases[part]
    scopes = ("query", "request", "candidate")
    if part == "watches":
        scopes = ("query",)
    features = platform.data.features.select(*scopes)
    for f in features:
        got = np.concatenate([answer[f.name] for answer in answers[part]])
        assert len(got) == len(requests)
        if f.kind == "continuous":
            np.testing.assert_allclose(
                got, stored[f.name], rtol=0, atol=1e-6, err_msg=f.name
            )
        else:
            np.testing.assert_array_equal(got, stored[f.name], f.name)


def test_ranking_answers_as_for_the_stored_features(platform, cases, answers):
    stored, _ = cases["valid"]
    used = is_candidate(stored)
    assert used.sum() >= ROWS
    predictions = platform.ranking.predict(stored)
    for name, expected in predictions.items():
        got = np.concatenate([a[name][0] for a in answers["ranking"]])
        np.testing.assert_allclose(
            got, expected.numpy()[used], rtol=1e-5, err_msg=name
        )
    assert len(np.unique(predictions["score"].numpy()[used])) > ROWS // 2


def test_query_embeddings_are_those_of_stored_features(
    platform, cases, answers
):
    stored, _ = cases["watches"]
    assert len(stored["label"]) == ROWS
    # A request is served at the end of the training window: age 0.
    features = {n: v for n, v in stored.items() if n != "example_age"}
    expected = platform.retrieval.query_embedding(features).numpy()
    got = np.concatenate([a["query_embedding"] for a in answers["retrieval"]])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(expected, axis=0)) > ROWS // 2
