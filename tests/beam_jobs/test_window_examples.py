"""The examples of a window of days against a run over its events."""

import datetime
import hashlib
from pathlib import Path

import numpy as np
import pytest

from beam_jobs import (
    ranking_examples,
    retrieval_examples,
    transform,
    window_examples,
    window_ranking,
)
from beam_jobs.runners import pipeline_options
from schemas.config import BeamConfig, NormalizationConfig
from schemas.events import TIMED_TABLES, EventSchema
from schemas.split import SplitBounds
from schemas.vocabularies import Vocabulary, vocabulary_files
from tests.beam_jobs import awkward_log as daily

HOUR = 3_600_000_000
TERMS = {
    "video": ["v3", "v1", "v4", "v0", "v6"],
    "channel": ["c1"],
    "topic": ["t"],
    "region": ["X", "DE"],
    "surface": ["next", "home"],
    "token": ["cat", "words", "two words"],
}


class TinyTransform:
    """Ids that tell what was watched and asked, most recent first."""

    def __call__(self, raw: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        number = np.vectorize(lambda v: int(v[1:] or -1), otypes=[np.int64])
        tokens = np.full((len(raw["search_query"]), 50), -1)
        for row, queries in zip(tokens, raw["search_query"], strict=True):
            said = [len(word) for q in queries for word in q.split()]
            row[: len(said)] = said
        return {
            "watch_history": number(raw["watch_history_video_id"]),
            "search_tokens": tokens,
            "user_region": np.array([len(r) for r in raw["user_region"]], int),
        }


@pytest.mark.parametrize("limit", [3, 20, None])
def test_a_window_of_days_is_a_run_over_its_events(
    limit: int | None, tmp_path: Path
) -> None:
    log = daily.random_log(6)
    schema, files = (
        EventSchema.of_tables(log),
        daily.write_log(tmp_path / "log", log),
    )
    # v7, v8 have no id.
    terms = [f"v{i}" for i in range(7)]
    Vocabulary.of_terms("video", terms, range(7, 0, -1)).write(
        *vocabulary_files(str(tmp_path), "video")
    )
    retrieval = daily.RETRIEVAL.model_copy(update={"examples_per_user": limit})
    bounds = SplitBounds(
        "time",
        daily.START,
        daily.START + daily.NUM_DAYS * daily.DAY,
        daily.START + 9 * daily.DAY,
        daily.OFFSET_HOURS,
    )
    (tmp_path / "direct").mkdir()
    direct = retrieval_examples.run(
        {"train": {t: files[t] for t in ("watches", "searches")}},
        files["users"],
        bounds,
        str(tmp_path),
        TinyTransform(),
        schema,
        retrieval,
        daily.RANKING,
        BeamConfig(num_shards=daily.SHARDS),
        daily.SEED,
        str(tmp_path / "direct"),
        pipeline_options(),
        ("train",),
    )
    first, _ = daily.run_days(tmp_path / "days", daily.of_days(log, 0, 2), 0, 2)
    last, _ = daily.run_days(
        tmp_path / "days",
        daily.of_days(log, 2, daily.NUM_DAYS),
        2,
        daily.NUM_DAYS,
        first,
    )
    days = [
        str(daily.FIRST + datetime.timedelta(i)) for i in range(daily.NUM_DAYS)
    ]
    folders = [str(first)] * 2 + [str(last)] * 2
    (tmp_path / "window").mkdir()
    counts = window_examples.run(
        days=dict(zip(days, folders, strict=True)),
        bounds=bounds,
        vocabularies=str(tmp_path),
        transform=TinyTransform(),
        schema=schema,
        retrieval=retrieval,
        ranking=daily.RANKING,
        num_shards=daily.SHARDS,
        output=str(tmp_path / "window"),
        options=pipeline_options(),
    )
    assert _examples(tmp_path / "window") == _examples(tmp_path / "direct")
    told = {n: c for n, c in direct.items() if n.startswith("train_")}
    assert counts == told
    # The cases are there: unknown videos, watches that had not ended.
    assert counts["train_labels_out_of_vocabulary"] > 10
    stored = [
        r
        for day, folder in zip(days, folders, strict=True)
        for r in daily.rows_of(Path(folder), f"{day}/retrieval-*.parquet")
    ]
    running = [r for r in stored if r["label_end_us"] > bounds.train_end_us]
    assert len(running) > 3
    if limit == 3:
        assert counts["train_examples"] == 3 * counts["train_users"]
    if limit is None:
        out = counts["train_labels_out_of_vocabulary"]
        assert counts["train_examples"] == len(stored) - len(running) - out


@pytest.mark.slow
def test_a_window_of_requests_is_a_run_over_its_events(tmp_path: Path) -> None:
    """On the real graph; requests that went on after midnight are one."""
    log = daily.with_impressions(daily.random_log(8), 8)
    schema = EventSchema.of_tables(log)
    files = daily.write_log(tmp_path / "log", log)
    for name in ("terms", "graph", "direct", "window"):
        (tmp_path / name).mkdir()
    for space, terms in TERMS.items():
        Vocabulary.of_terms(space, terms, range(len(terms), 0, -1)).write(
            *vocabulary_files(str(tmp_path / "terms"), space)
        )
    shared = {
        "schema": schema,
        "retrieval": daily.RETRIEVAL,
        "ranking": daily.RANKING,
        "options": pipeline_options(),
    }
    transform.run(
        files=files,
        vocabulary_folder=str(tmp_path / "terms"),
        output=str(tmp_path / "graph"),
        normalization=NormalizationConfig(),
        shards=BeamConfig(num_shards=daily.SHARDS),
        seed=1,
        utc_offset_hours=daily.OFFSET_HOURS,
        train_end_us=daily.START + daily.NUM_DAYS * daily.DAY,
        **shared,
    )
    graph = str(tmp_path / "graph" / transform.FOLDER)
    direct = ranking_examples.run(
        files={t: {"train": files[t]} for t in TIMED_TABLES},
        users=files["users"],
        videos=files["videos"],
        transform_path=graph,
        output=str(tmp_path / "direct"),
        parts=("train",),
        shards=BeamConfig(num_shards=daily.SHARDS),
        utc_offset_hours=daily.OFFSET_HOURS,
        **shared,
    )
    days, stored = {}, 0
    parent: list[Path] = []
    for number in range(daily.NUM_DAYS):
        part = daily.of_days(log, number, number + 1)
        out, counts = daily.run_days(
            tmp_path, part, number, number + 1, *parent
        )
        days[str(daily.FIRST + datetime.timedelta(number))] = str(out)
        parent, stored = [out], stored + counts["ranking_requests"]
    counts = window_ranking.run(
        days=days,
        transform_path=graph,
        num_shards=daily.SHARDS,
        output=str(tmp_path / "window"),
        **shared,
    )
    assert _examples(tmp_path / "window") == _examples(tmp_path / "direct")
    assert counts == {n: c for n, c in direct.items() if n in counts}
    # Some requests are stored in two halves.
    assert stored > counts["train_requests"] + 5


def _examples(folder: Path) -> dict[str, str]:
    paths = sorted(folder.glob("train-*.tfrecord"))
    assert paths
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
