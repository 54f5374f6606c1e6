"""Split, vocabularies, transform and examples together, on the real graph."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import retrieval_examples, split, transform, vocabularies
from beam_jobs.example_files import read_examples
from beam_jobs.runners import pipeline_options
from schemas.config import (
    BeamConfig,
    NormalizationConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
    SplitConfig,
    VocabulariesConfig,
)
from schemas.events import EventSchema
from schemas.examples import retrieval_keys
from schemas.features import feature_set
from schemas.split import SplitBounds
from schemas.vocabularies import read_vocabulary

HOUR = 3_600_000_000
DAY_0 = 19_107 * 24 * HOUR
RETRIEVAL = RetrievalExamplesConfig(history_length=5, examples_per_user=4)
RANKING = RankingExamplesConfig()
SHARDS = BeamConfig(num_shards=3)


def tables() -> dict[str, pa.Table]:
    rng = np.random.default_rng(8)
    n = 300
    return {
        "watches": pa.table(
            {
                "user_id": [f"u{i}" for i in rng.integers(0, 12, n)],
                "video_id": [f"v{i}" for i in rng.integers(0, 25, n)],
                "event_time_us": DAY_0
                + np.sort(rng.choice(96 * 60, n, replace=False)) * (HOUR // 60),
                "watch_time_s": rng.random(n) * 100,
                "completed": rng.random(n) < 0.7,
                "source": ["home"] * n,
            }
        ),
        "searches": pa.table(
            {
                "user_id": [f"u{i % 12}" for i in range(40)],
                "query": ["two words" if i % 2 else "word" for i in range(40)],
                "event_time_us": DAY_0 + np.arange(40) * HOUR,
            }
        ),
        "users": pa.table(
            {
                "user_id": [f"u{i}" for i in range(12)],
                "region": ["DE" if i % 3 else None for i in range(12)],
                "age": pa.array([None, *range(20, 31)], pa.float64()),
            }
        ),
        "videos": pa.table(
            {
                "video_id": [f"v{i}" for i in range(25)],
                "channel_id": [f"c{i % 4}" for i in range(25)],
                "topics": [["t"]] * 25,
                "upload_time_us": [DAY_0] * 25,
                "duration_s": [60.0] * 25,
            }
        ),
    }


@pytest.mark.slow
def test_examples_hold_ids_of_the_vocabularies(tmp_path: Path) -> None:
    events, options = tables(), pipeline_options()
    schema = EventSchema.of_tables(events)
    features = feature_set(schema, RETRIEVAL, RANKING)
    files = {}
    for name, rows in events.items():
        path = tmp_path / f"{name}.parquet"
        kinds = schema.arrow(name)
        pq.write_table(rows.select(kinds.names).cast(kinds), path)
        files[name] = [str(path)]
    folders = {n: tmp_path / n for n in ("split", "terms", "graph", "examples")}
    for folder in folders.values():
        folder.mkdir()

    split.run(files, schema, SplitConfig(), 3, str(folders["split"]), options)
    bounds = SplitBounds.read(str(folders["split"] / "split.json"))
    parts = {
        part: {
            table: sorted(
                map(str, (folders["split"] / part).glob(f"{table}-*"))
            )
            for table in ("watches", "searches")
        }
        for part in ("train", "valid")
    }
    vocabularies.run(
        parts["train"],
        files["users"],
        files["videos"],
        bounds,
        schema,
        features,
        VocabulariesConfig(),
        SHARDS,
        str(folders["terms"]),
        options,
    )
    transform.run(
        files=parts["train"]
        | {"users": files["users"], "videos": files["videos"]},
        vocabulary_folder=str(folders["terms"]),
        output=str(folders["graph"]),
        schema=schema,
        retrieval=RETRIEVAL,
        ranking=RANKING,
        normalization=NormalizationConfig(),
        shards=SHARDS,
        seed=1,
        train_end_us=bounds.train_end_us,
        utc_offset_hours=0.0,
        options=options,
    )
    counts = retrieval_examples.run(
        parts,
        files["users"],
        bounds,
        str(folders["terms"]),
        str(folders["graph"] / transform.FOLDER),
        schema,
        RETRIEVAL,
        RANKING,
        SHARDS,
        1,
        str(folders["examples"]),
        options,
    )
    assert counts["train_examples"] == counts["train_users"] * 4

    ids = {
        space: {
            term: i + 1
            for i, term in enumerate(
                read_vocabulary(str(folders["terms"]), space).terms.to_pylist()
            )
        }
        for space in ("video", "token", "region")
    }
    watched = sorted(
        (r["user_id"], r["event_time_us"], ids["video"].get(r["video_id"], 0))
        for r in events["watches"].to_pylist()
    )
    asked = events["searches"].to_pylist()
    regions = dict(
        zip(
            *(events["users"].column(i).to_pylist() for i in (0, 1)),
            strict=True,
        )
    )
    for part, kind in (("train", "train"), ("valid", "evaluation")):
        keys = retrieval_keys(features, kind, example_age=True)
        paths = map(str, folders["examples"].glob(f"{part}-*"))
        examples = list(read_examples(paths, keys))
        assert len(examples) == counts[f"{part}_examples"] > 5
        for example in examples:
            user = example["user_id"].decode()
            now = int(example["event_time_us"])
            past = [i for u, t, i in watched if u == user and t < now]
            assert example["watch_history"].tolist() == past[::-1][:5]
            label = [i for u, t, i in watched if u == user and t == now]
            first = (
                example["label"] if part == "train" else example["labels"][0]
            )
            assert [int(first)] == label
            # "two words" has two unigrams and a bigram, "word" one unigram.
            tokens = sorted(
                ids["token"][t]
                for r in asked
                if r["user_id"] == user and r["event_time_us"] < now
                for t in (
                    ("two", "words", "two words")
                    if r["query"] == "two words"
                    else ("word",)
                )
            )
            assert sorted(example["search_tokens"].tolist()) == tokens
            region = ids["region"].get(regions[user], 0)
            assert int(example["user_region"]) == region
            assert example["user_age"][3] == (1.0 if user == "u0" else 0.0)
