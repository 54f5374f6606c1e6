"""The transform job where the log has no impressions."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import transform
from beam_jobs.runners import pipeline_options
from schemas.config import (
    BeamConfig,
    NormalizationConfig,
    RankingExamplesConfig,
    RetrievalExamplesConfig,
)
from schemas.events import EventSchema, ExtraColumn
from schemas.features import feature_set
from schemas.hashing import hash_strings, mix, uniform
from schemas.requests import RawInput, raw_inputs
from schemas.vocabularies import Vocabulary, vocabulary_files

START_US = 1_700_000_000_000_000
TRAIN_END_US = START_US + 3000 * 10**6
RETRIEVAL = RetrievalExamplesConfig(history_length=3)
RANKING = RankingExamplesConfig()
USERS = 40


def tables(age: bool) -> dict[str, pa.Table]:
    rng = np.random.default_rng(1)
    user = np.arange(3000) ** 2 % USERS
    users = {
        "user_id": [f"u{i}" for i in range(USERS)],
        "region": pa.array([None] * USERS, pa.string()),
    }
    if age:
        users["age"] = np.arange(USERS) * 1.0
    return {
        "watches": pa.table(
            {
                "user_id": [f"u{u}" for u in user],
                "video_id": [f"v{v}" for v in rng.integers(0, 9, 3000)],
                "event_time_us": START_US + np.arange(3000) * 10**6,
                # Every fiftieth goes on when training ends.
                "watch_time_s": np.where(np.arange(3000) % 50, 1.0, 3001.0),
                "completed": user % 3 != 0,
                "source": ["other"] * 3000,
                "undated": user == 1,
            }
        ),
        "videos": pa.table(
            {
                "video_id": [f"v{i}" for i in range(9)],
                "channel_id": pa.array([None] * 9, pa.string()),
                "topics": pa.array([None] * 9, pa.list_(pa.string())),
                "upload_time_us": pa.array([None] * 9, pa.int64()),
                "duration_s": pa.array([None] * 9, pa.float64()),
            }
        ),
        "users": pa.table(users),
    }


def run(
    folder: Path,
    log: dict[str, pa.Table],
    sample_size: int = 2**20,
    num_quantiles: int = 200,
    extras: Sequence[str] = (),
) -> tuple[str, dict[str, int], tuple[RawInput, ...]]:
    """`extras` are the log's continuous extra columns of users."""
    schema = EventSchema.of_tables(
        log,
        {"users": tuple(ExtraColumn(e, "continuous") for e in extras)},
    )
    files = {}
    for name, table in log.items():
        files[name] = [str(folder / f"{name}.parquet")]
        table = table.select(schema.arrow(name).names)
        pq.write_table(table.cast(schema.arrow(name)), files[name][0])
    terms = {"video": ["v3", "v1"], "region": []}
    for space, found in terms.items():
        Vocabulary.of_terms(space, found, [1] * len(found)).write(
            *vocabulary_files(str(folder), space)
        )
    assert set(feature_set(schema, RETRIEVAL, RANKING).spaces("query")) == set(
        terms
    )
    counts = transform.run(
        files=files,
        vocabulary_folder=str(folder),
        output=str(folder / "out"),
        schema=schema,
        retrieval=RETRIEVAL,
        ranking=RANKING,
        normalization=NormalizationConfig(
            sample_size=sample_size, num_quantiles=num_quantiles
        ),
        shards=BeamConfig(num_shards=2),
        seed=6,
        train_end_us=TRAIN_END_US,
        utc_offset_hours=0.0,
        options=pipeline_options(),
    )
    inputs = raw_inputs(schema, RETRIEVAL, RANKING)
    return str(folder / "out" / "transform_fn"), counts, inputs


def request(inputs: tuple[RawInput, ...], rows: int) -> dict[str, np.ndarray]:
    return {
        i.name: np.full((rows, *i.shape), i.absent, i.numpy_dtype)
        for i in inputs
    }


@pytest.mark.parametrize("sample_size", [2**20, 1000])
def test_rows_are_requests_at_label_times(
    tmp_path: Path, sample_size: int
) -> None:
    path, counts, inputs = run(tmp_path, tables(True), sample_size)
    watches = tables(True)["watches"]
    user = np.array([int(u[1:]) for u in watches["user_id"].to_pylist()])
    # Labels are completed, dated and ended: no user divisible by 3, nor 1.
    label = (user % 3 != 0) & (user != 1) & (np.arange(3000) % 50 != 0)
    keys = mix(
        0,
        hash_strings(watches["user_id"]),
        hash_strings(watches["video_id"]),
        watches["event_time_us"].to_numpy(),
    )
    # 1,000 of 3,000 watches: a third of the labels are built.
    chosen = label & (uniform(6, keys) < min(1, sample_size / 3000))
    assert counts["requests_analyzed"] == chosen.sum()
    assert 0 < chosen.sum() <= label.sum() < 3000

    raw = request(inputs, USERS)
    raw["user_age"][:] = np.arange(USERS)
    found = transform.TransformGraph(path)(raw)["user_age"]
    # Every distinct age is a knot (40 < 16 x 200), so x~ is exact.
    exact = [(user[chosen] < a).mean() for a in range(USERS)]
    np.testing.assert_allclose(found[:, 0], exact, atol=1e-6)
    assert not found[:, 3].any()


def test_columns_follow_their_distribution(tmp_path: Path) -> None:
    """Each user is one row; TFT analyses them, the graph normalises them."""
    rng = np.random.default_rng(8)
    rows = 3000
    low = rng.random(rows) < 0.8
    values = {
        "bimodal": rng.normal(np.where(low, -9, 9)),
        "constant": np.full(rows, 4.0),
        "heavy_tailed": rng.pareto(0.7, rows),
        "many_atoms": rng.poisson(30, rows) * 1.0,
        "zero_inflated": np.where(low, 0.0, rng.lognormal(3, 1, rows)),
    }
    ids = [f"u{i}" for i in range(rows)]
    log = tables(False)
    order = rng.permutation(rows)
    log["watches"] = log["watches"].set_column(
        0, "user_id", pa.array(ids).take(order)
    )
    log["watches"] = log["watches"].set_column(
        3, "watch_time_s", pa.array(np.ones(rows))
    )
    flags = np.full(rows, True)
    log["watches"] = log["watches"].set_column(4, "completed", pa.array(flags))
    log["watches"] = log["watches"].set_column(6, "undated", pa.array(~flags))
    nothing = pa.array([None] * rows, pa.string())
    log["users"] = pa.table({"user_id": ids, "region": nothing, **values})
    path, counts, inputs = run(tmp_path, log, 2**20, 10, list(values))
    assert counts["requests_analyzed"] == rows

    raw = request(inputs, rows)
    for name, column in values.items():
        raw[f"user_{name}"][:] = column
    found = transform.TransformGraph(path)(raw)
    for name, column in values.items():
        x, column = found[f"user_{name}"], column.astype(np.float32)
        exact = (column < column[:, None]).mean(axis=1)
        # All rows are in the sample: 160 knots, 1/160 at most.
        assert np.abs(x[:, 0] - exact).max() <= 1 / 160 + 1 / rows, name
        np.testing.assert_allclose(
            x, np.stack([x[:, 0], x[:, 0] ** 2, x[:, 0] ** 0.5, x[:, 3]], 1)
        )
        assert x.min() >= 0 and x[:, 0].max() < 1 and not x[:, 3].any()


def test_lookups_alone_need_no_rows(tmp_path: Path) -> None:
    path, counts, inputs = run(tmp_path, tables(False))
    assert "requests_analyzed" not in counts
    raw = request(inputs, 2)
    raw["watch_history_video_id"][1, :2] = [b"v1", b"v2"]
    raw["user_region"][1] = b"north"
    found = transform.TransformGraph(path)(raw)
    assert found["watch_history"].tolist() == [[-1, -1, -1], [2, 0, -1]]
    # An empty vocabulary: everything is out of it.
    assert found["user_region"].tolist() == [0, 0]


def test_graph_pickles_and_works_in_chunks(tmp_path: Path) -> None:
    path, _, inputs = run(tmp_path, tables(False))
    # More rows than a chunk of 1,024.
    raw = request(inputs, 1500)
    videos = np.arange(1500) % 9
    raw["watch_history_video_id"][:, 0] = [b"v%d" % v for v in videos]
    graph = transform.TransformGraph(path, ["watch_history"])
    first = graph(raw)
    assert list(first) == ["watch_history"]
    # Vocabulary: v3 is 1, v1 is 2.
    expected = np.where(videos == 3, 1, np.where(videos == 1, 2, 0))
    np.testing.assert_array_equal(first["watch_history"][:, 0], expected)
    again = pickle.loads(pickle.dumps(graph))(raw)
    np.testing.assert_array_equal(
        first["watch_history"], again["watch_history"]
    )
    nothing = graph({name: values[:0] for name, values in raw.items()})
    assert nothing["watch_history"].shape == (0, 3)
