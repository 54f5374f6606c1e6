"""The lists of a prepared log against counting its rows one by one."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import generator_lists
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.run import PREPARED, Run
from pipeline.stages import DataStages
from schemas.artifacts import ArtifactStore, stage_key
from schemas.config import Config
from schemas.split import BOUNDS_FILE, DAY_US, SplitBounds

CONFIG = """
name: lists
simulator: {num_users: 80, num_videos: 120, num_channels: 9, num_topics: 5,
            num_days: 6}
beam: {num_shards: 2}
retrieval_examples: {history_length: 4}
vocabularies: {default_max_size: 60}
serving:
  max_per_channel: 1
  generators:
    - {name: co_watch, candidates: 5}
    - {name: topics, candidates: 3, recent_days: 2}
    - {name: popular, candidates: 7, recent_days: 1}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataStages:
    """A log of two days of training at least, prepared for its lists."""
    folder = tmp_path_factory.mktemp("lists")
    (folder / "lists.yaml").write_text(CONFIG)
    work = str(folder / "work")
    file = str(folder / "lists.yaml")
    assert main(["simulate", "--config", file, "--workdir", work]) == 0
    run = Run(load_config(file, []), ArtifactStore(work)).building(*PREPARED)
    return DataStages(run)


@pytest.fixture(scope="module")
def known(data: DataStages) -> generator_lists.Catalogue:
    """What the recommender is given, through the files."""
    store = data.run.store
    with store.write("candidate_lists", {}, 1, {}) as writer:
        generator_lists.write(data, writer)
    lists = store.find(
        "candidate_lists", stage_key("candidate_lists", {}, 1, {})
    )
    return generator_lists.catalogue(data, lists)


def rows(files: list[str]) -> list[dict]:
    return [row for f in sorted(files) for row in pq.read_table(f).to_pylist()]


def terms(data: DataStages, space: str) -> dict[str, int]:
    text = Path(data.vocabularies().file(f"{space}.txt")).read_text()
    return {t: i for i, t in enumerate(text.splitlines(), start=1)}


def watched(data: DataStages, days: int) -> list[dict]:
    """Completed training watches of known videos in the last days."""
    end_us = SplitBounds.read(data.split().file(BOUNDS_FILE)).train_end_us
    videos = terms(data, "video")
    return [
        row | {"id": videos[row["video_id"]]}
        for row in rows(data.split().files("train/watches-"))
        if row["completed"]
        and row["video_id"] in videos
        and row["event_time_us"] >= end_us - days * DAY_US
    ]


def check(lists, key: int, counts: Counter[int], most: int) -> None:
    best = sorted(counts, key=lambda v: (-counts[v], v))[:most]
    assert lists.ids.shape[1] == most
    assert lists.ids[key][lists.ids[key] > 0].tolist() == best
    np.testing.assert_allclose(
        lists.scores[key][: len(best)],
        [counts[v] / counts.total() for v in best],
        rtol=1e-6,
    )


def test_popular_lists_count_the_region_s_watches(data, known) -> None:
    users = rows(data.entity_files("users"))
    region = {row["user_id"]: row["region"] for row in users}
    ids = terms(data, "region")
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for row in watched(data, 1):
        counts[0][row["id"]] += 1
        if own := ids.get(region.get(row["user_id"]) or "", 0):
            counts[own][row["id"]] += 1
    lists = known.lists["popular"]
    assert len(lists.ids) == len(ids) + 1 and len(counts) > 2
    for key in range(len(ids) + 1):
        check(lists, key, counts[key], 7 + 4)


def test_topic_lists_count_the_topic_s_watches(data, known) -> None:
    videos, topics = terms(data, "video"), terms(data, "topic")
    of_video = {
        videos[row["video_id"]]: {topics[t] for t in row["topics"]}
        for row in rows(data.entity_files("videos"))
        if row["video_id"] in videos
    }
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for row in watched(data, 2):
        for topic in of_video[row["id"]]:
            counts[topic][row["id"]] += 1
    lists = known.lists["topics"]
    for key in topics.values():
        check(lists, key, counts[key], 3 + 4)
    for video, own in of_video.items():
        assert {*lists.keys_of_video[video]} - {0} == own


def test_channels_are_told_apart(data, known) -> None:
    videos = terms(data, "video")
    numbers = defaultdict(set)
    for row in rows(data.entity_files("videos")):
        if row["video_id"] in videos:
            number = known.channels[videos[row["video_id"]]]
            numbers[row["channel_id"]].add(int(number))
    found = [number for own in numbers.values() for number in own]
    assert len(found) == len(set(found)) == len(numbers) > 1
    assert min(found) > 0 == known.channels[0]


def test_more_generators_than_candidates_are_refused() -> None:
    popular = {"name": "popular", "candidates": 50}
    with pytest.raises(ValueError, match="room for its own"):
        Config.model_validate(
            {"serving": {"candidates": 50, "generators": [popular]}}
        )
    with pytest.raises(ValueError, match="popular twice"):
        Config.model_validate({"serving": {"generators": [popular, popular]}})
