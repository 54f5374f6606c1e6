"""Raw ranking requests against a loop over a small log."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.lagged_statistics import (
    LaggedStatistics,
    MergeSums,
    _write,
    daily_sums,
)
from beam_jobs.ranking_requests import RankingRequests
from beam_jobs.user_shards import UserShard, build_shard, split_batch
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.events import EventSchema
from schemas.requests import raw_inputs

DAY_US = 86_400_000_000
START_US = 19_723 * DAY_US
RETRIEVAL = RetrievalExamplesConfig(history_length=4)


def build(
    tables: dict[str, pa.Table], parts: dict[str, str], schema: EventSchema
) -> UserShard:
    """One shard of everything; `parts` gives each table's part."""
    pieces = [
        piece
        for name, table in tables.items()
        for _, piece in split_batch(
            table.select(schema.arrow(name).names).cast(schema.arrow(name)),
            table=name,
            part=parts.get(name, "train"),
            num_shards=1,
            cap=10**6,
        )
    ]
    schemas = {name: schema.arrow(name) for name in tables}
    return build_shard((0, pieces), schemas=schemas, cap=10**6)


def log(seed: int, named: bool) -> dict[str, pa.Table]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    request = rng.integers(0, 8, n)
    # Few users and times: requests meet, and rows of one request spread.
    impressions = {
        "user_id": np.array(["u0", "u1", "u2"])[request % 3],
        "video_id": rng.choice(["a", "b", "c", "d"], n),
        "event_time_us": START_US
        + request * DAY_US // 3
        + (rng.integers(0, 3, n) if named else 0),
        "surface": np.array(["home", "next"])[request % 2],
        "clicked": rng.random(n) < 0.5,
        "watch_time_s": rng.integers(0, 9, n).astype(float),
        "position": pa.array(rng.integers(1, 6, n), mask=rng.random(n) < 0.3),
    }
    if named:
        impressions["request_id"] = pa.array(
            [f"q{r}" for r in request], mask=request == 7
        )
    return {
        "impressions": pa.table(impressions),
        "watches": pa.table(
            {
                "user_id": rng.choice(["u0", "u1"], 12),
                "video_id": rng.choice(["a", "b", "c"], 12),
                "event_time_us": START_US
                + rng.integers(0, 9, 12) * DAY_US // 3,
                "watch_time_s": np.full(12, 5.0),
                "completed": np.full(12, True),
                "source": np.full(12, "search"),
            }
        ),
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 4))
def test_requests_match_a_loop(seed: int, named: bool, width: int) -> None:
    tables = log(seed, named)
    schema = EventSchema.of_tables(tables)
    ranking = RankingExamplesConfig(
        max_candidates=width, lagged_statistics=False
    )
    inputs = raw_inputs(schema, RETRIEVAL, ranking)
    requests = RankingRequests(
        build(tables, {}, schema), inputs, ("train",), width, None, 0.0
    )
    batch = requests.batch(0, len(requests))

    groups: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in tables["impressions"].to_pylist():
        # Without a name, rows of one user and time are one request.
        name = row.get("request_id") or f"at {row['event_time_us']}"
        groups.setdefault((row["user_id"], name), []).append(row)
    expected = []
    for (user, _), rows in groups.items():
        cut = min(r["event_time_us"] for r in rows)
        rows.sort(key=lambda r: (r["position"] or 0, r["video_id"]))
        videos = [r["video_id"].encode() for r in rows]
        positions = [r["position"] or 0 for r in rows]
        watched = sorted(
            (
                (w["event_time_us"], w["video_id"].encode())
                for w in tables["watches"].to_pylist()
                if w["user_id"] == user and w["event_time_us"] < cut
            ),
            reverse=True,
        )[:4]
        expected += [
            (
                user.encode(),
                cut,
                rows[0]["surface"].encode(),
                videos[i : i + width],
                positions[i : i + width],
                [v for _, v in watched],
            )
            for i in range(0, len(rows), width)
        ]
    found = []
    raw = batch.raw
    for i, count in enumerate(batch.candidate_count):
        history = raw["watch_history_video_id"][i]
        found.append(
            (
                batch.user_id[i],
                int(raw["request_time_us"][i]),
                raw["surface"][i],
                raw["candidate_video_id"][i, :count].tolist(),
                raw["candidate_position"][i, :count].tolist(),
                [v for v in history if v],
            )
        )
        assert (raw["candidate_video_id"][i, count:] == b"").all()
        assert (raw["candidate_position"][i, count:] == 0).all()
    assert sorted(found) == sorted(expected)
    assert requests.num_requests == len(groups)
    assert len(set(batch.request_key.tolist())) == len(groups)
    assert len(set(batch.row_key.tolist())) == len(requests)


def test_only_the_part_asked_for_but_all_context() -> None:
    tables = log(5, True)
    schema = EventSchema.of_tables(tables)
    ranking = RankingExamplesConfig(lagged_statistics=False)
    inputs = raw_inputs(schema, RETRIEVAL, ranking)
    shard = build(tables, {"impressions": "valid"}, schema)

    def examples(part: str) -> RankingRequests:
        return RankingRequests(shard, inputs, (part,), 10, None, 0.0)

    assert len(examples("train")) == 0
    valid = examples("valid")
    batch = valid.batch(0, len(valid))
    assert batch.candidate_count.sum() == len(tables["impressions"])
    assert (batch.raw["watch_history_video_id"] != b"").any()
    # A batch is the same rows wherever it is cut.
    part = valid.batch(1, 3)
    for name, values in part.raw.items():
        np.testing.assert_array_equal(values, batch.raw[name][1:3])


def test_share_is_a_stable_choice_of_whole_requests() -> None:
    rng = np.random.default_rng(0)
    request = np.repeat(np.arange(3000), 2)
    tables = log(1, True)
    tables["impressions"] = pa.table(
        {
            "user_id": [f"u{r % 50}" for r in request],
            "video_id": rng.choice(["a", "b"], 6000),
            "event_time_us": START_US + request,
            "surface": ["home"] * 6000,
            "clicked": [False] * 6000,
            "watch_time_s": [0.0] * 6000,
            "request_id": [f"q{r}" for r in request],
        }
    )
    schema = EventSchema.of_tables(tables)
    ranking = RankingExamplesConfig(lagged_statistics=False)
    inputs = raw_inputs(schema, RETRIEVAL, ranking)
    shard = build(tables, {}, schema)

    def keys(share: float, seed: int) -> set[int]:
        chosen = RankingRequests(
            shard, inputs, ("train",), 10, None, 0.0, share, seed
        )
        batch = chosen.batch(0, len(chosen))
        assert (batch.candidate_count == 2).all()
        return set(batch.request_key.tolist())

    third = keys(1 / 3, 4)
    # Binomial(3000, 1/3): 1,000 with a standard deviation of 26.
    assert 870 < len(third) < 1130
    assert third < keys(0.5, 4) < keys(1.0, 4)
    assert third != keys(1 / 3, 5)


def test_lagged_statistics_of_the_requests_day(tmp_path: object) -> None:
    tables = log(12, True)
    schema = EventSchema.of_tables(tables)
    ranking = RankingExamplesConfig(max_candidates=5)
    inputs = raw_inputs(schema, RETRIEVAL, ranking)
    shown = tables["impressions"]
    path = f"{tmp_path}/statistics.parquet"
    _write(MergeSums().extract_output([daily_sums(shown, 0)]), path)
    ids = ["a", "b", "c", "d"]
    catalogue = VideoCatalogue.of_table(
        pa.table({"video_id": ids, "channel_id": ["x", "x", "y", "y"]})
    )
    requests = RankingRequests(
        build(tables, {}, schema),
        inputs,
        ("train",),
        5,
        LaggedStatistics.read(path, catalogue),
        0.0,
    )
    raw = requests.batch(0, len(requests)).raw
    rows = shown.to_pylist()
    some = 0
    for i, time_us in enumerate(raw["request_time_us"]):
        for slot, video in enumerate(raw["candidate_video_id"][i]):
            lagged = raw["video_lagged_impressions"][i, slot]
            before = sum(
                r["video_id"].encode() == video
                and r["event_time_us"] // DAY_US < time_us // DAY_US
                for r in rows
            )
            if video:
                assert lagged == before
                some += before > 0
            else:
                assert np.isnan(lagged)
    assert some > 3
