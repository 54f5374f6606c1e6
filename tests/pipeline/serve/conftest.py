"""A work directory with a small log and models whose answers are known."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from benchmarks.server_process import ServerProcess
from models.keras_setup import tf
from models.saved_models import publish, traced, traced_examples
from models.serving_requests import (
    CANDIDATES,
    ranking_inputs,
    retrieval_inputs,
    tensor_specs,
)
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.model_stages import ModelStages
from pipeline.run import Run
from schemas.artifacts import ArtifactStore
from schemas.requests import RawInput

CONFIG = """
name: small
simulator: {num_users: 60, num_videos: 80, num_channels: 8, num_topics: 5,
            num_days: 4}
beam: {num_shards: 1}
retrieval_examples: {history_length: 6, search_tokens: 12}
"""
FOUND = [f"v{n:06d}" for n in (40, 7, 33, 12, 25)]
SOURCES = ["co_watch"] * 2 + ["query_tower"] * 3


class Retrieval(tf.Module):
    """Finds `FOUND` and a blank; the k-th scores bias + 10 n + age - k.

    n is how many watches the request has; bias tells versions apart.
    """

    def __init__(self, inputs: tuple[RawInput, ...], bias: float) -> None:
        super().__init__(name="retrieval")
        self.inputs, self._bias = inputs, bias

    def recommend(self, raw):
        watched = tf.not_equal(raw["watch_history_video_id"], "")
        count = tf.reduce_sum(tf.cast(watched, tf.float32), axis=1)
        age = raw["user_age"]
        age = tf.where(tf.math.is_nan(age), 0.0, age)
        first = self._bias + 10.0 * count + age
        falls = tf.range(len(FOUND), dtype=tf.float32)
        blank = tf.fill([tf.size(count), 1], float("-inf"))
        return {
            "video_ids": tf.tile([[*FOUND, ""]], [tf.size(count), 1]),
            "scores": tf.concat([first[:, None] - falls, blank], axis=1),
        }

    def best(self, raw):
        return {"best": self.recommend(raw)["scores"][:, 0]}

    def signatures(self):
        named = tensor_specs(self.inputs)
        return {
            "serving_default": traced(self.recommend, named),
            "serialized_examples": traced_examples(self.recommend, self.inputs),
            "best": traced(self.best, named),
        }


class Ranking(tf.Module):
    """A video is worth the number in its id, in seconds."""

    def __init__(self, inputs: tuple[RawInput, ...]) -> None:
        super().__init__(name="ranking")
        self.inputs = inputs

    def rank(self, raw):
        known = tf.strings.regex_full_match(raw[CANDIDATES], r"v\d{6}")
        ids = tf.where(known, raw[CANDIDATES], "v0")
        number = tf.strings.to_number(tf.strings.regex_replace(ids, "v", ""))
        return {
            "expected_watch_time_s": number,
            "clicked": number / 100.0,
            "score": number,
        }

    def signatures(self):
        named = tensor_specs(self.inputs)
        return {"serving_default": traced(self.rank, named)}


class Recommender(tf.Module):
    """Ranks what `Retrieval` finds; co-watch found the first two."""

    def __init__(self, inputs: tuple[RawInput, ...]) -> None:
        super().__init__(name="recommender")
        self.inputs = tuple(i for i in inputs if i.axis != "candidate")
        self._retrieval = Retrieval(retrieval_inputs(inputs), 0.0)
        self._ranking = Ranking(inputs)

    def every_candidate(self, raw):
        found = self._retrieval.recommend(raw)
        ids = found["video_ids"]
        ranked = self._ranking.rank({CANDIDATES: ids})
        sources = [[*SOURCES, ""]]
        outputs = {
            "video_ids": ids,
            "retrieval_scores": found["scores"],
            "candidate_sources": tf.tile(sources, [tf.shape(ids)[0], 1]),
            **ranked,
        }
        order = tf.argsort(-ranked["score"], stable=True)
        return {
            name: tf.gather(values, order, batch_dims=1)
            for name, values in outputs.items()
        }

    def recommend(self, raw):
        every = self.every_candidate(raw)
        return {name: values[:, :2] for name, values in every.items()}

    def signatures(self):
        named = tensor_specs(self.inputs)
        return {
            "serving_default": traced(self.recommend, named),
            "every_candidate": traced(self.every_candidate, named),
        }


def publish_retrieval(work: Path, version: int, bias: float = 0.0) -> str:
    """Publishes a version of `Retrieval` for the log of a work directory."""
    service = Retrieval(retrieval_inputs(inputs_of(work)), bias)
    return publish(service, FOUND, f"{work}/serving/retrieval", version)


def inputs_of(work: Path) -> tuple[RawInput, ...]:
    run = Run(load_config(f"{work}/config.yaml", []), ArtifactStore(str(work)))
    return ModelStages(run).raw_inputs


def _make_titles_markup(work: Path) -> None:
    """Titles that would run, were they ever taken for markup."""
    (events,) = (work / "events").iterdir()
    manifest = json.loads((events / "manifest.json").read_text())
    for path in events.glob("videos-*.parquet"):
        table = pq.read_table(path)
        titles = [
            f"<img src=x onerror=alert({number})>{title}"
            for number, title in enumerate(table["title"].to_pylist())
        ]
        column = table.schema.get_field_index("title")
        field = table.schema.field("title")
        pq.write_table(table.set_column(column, field, [titles]), path)
        manifest["files"][path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
    (events / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 of all models; tests must not write to it."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "small.yaml").write_text(CONFIG)
    work = folder / "work"
    config = ["--config", str(folder / "small.yaml")]
    assert main(["simulate", *config, "--workdir", str(work)]) == 0
    _make_titles_markup(work)
    publish_retrieval(work, 1)
    service = Ranking(ranking_inputs(inputs_of(work)))
    publish(service, FOUND, f"{work}/serving/ranking", 1)
    both = Recommender(ranking_inputs(inputs_of(work)))
    publish(both, FOUND, f"{work}/serving/recommender", 1)
    return work


@pytest.fixture(scope="session")
def server(made: Path) -> Iterator[ServerProcess]:
    with ServerProcess(made) as process:
        yield process


@pytest.fixture(scope="session")
def loaded(made: Path) -> SimpleNamespace:
    """The same models, called in this process."""
    return SimpleNamespace(
        **{
            model: tf.saved_model.load(f"{made}/serving/{model}/1")
            for model in ("retrieval", "ranking")
        }
    )


@pytest.fixture(scope="session")
def row(made: Path) -> dict[str, object]:
    """One row of a retrieval request: two watches, aged 30, no time."""
    empty = {"string": "", "int64": 0, "float32": 0.0}
    values: dict[str, object] = {}
    for i in retrieval_inputs(inputs_of(made)):
        cell: object = empty[i.dtype]
        for length in reversed(i.shape):
            cell = [cell] * length
        values[i.name] = cell
    values["watch_history_video_id"] = ["v000001", "nowhere", "", "", "", ""]
    values["user_age"] = 30.0
    return values
