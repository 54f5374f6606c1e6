"""The simulated tables: their form, and what must hold in every row."""

import numpy as np
import polars as pl
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.sources.simulated import SimulatedLogs, simulate
from schemas.events import EventSchema, check_columns, row_errors
from schemas.simulator_config import SimulatorConfig

SMALL = SimulatorConfig(
    num_users=300,
    num_videos=400,
    num_channels=50,
    num_topics=8,
    num_days=4,
    requests_per_user_day=0.5,
    randomized_share=0.3,
    autoplay_share=0.2,
)
# 2024-01-01T00:00:00Z and four days later, in UTC microseconds.
START_US = 1_704_067_200_000_000
END_US = START_US + 4 * 86_400_000_000

TEXT, TIME, REAL, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
COLUMNS = {
    "watches": {
        "user_id": TEXT,
        "video_id": TEXT,
        "event_time_us": TIME,
        "watch_time_s": REAL,
        "completed": FLAG,
        "source": TEXT,
    },
    "searches": {"user_id": TEXT, "query": TEXT, "event_time_us": TIME},
    "impressions": {
        "user_id": TEXT,
        "video_id": TEXT,
        "event_time_us": TIME,
        "request_id": TEXT,
        "position": pa.int64(),
        "surface": TEXT,
        "clicked": FLAG,
        "watch_time_s": REAL,
        "liked": FLAG,
        "dismissed": FLAG,
        "candidate_source": TEXT,
        "candidate_score": REAL,
        "propensity": REAL,
        "query_video_id": TEXT,
        "seed_video_id": TEXT,
    },
    "videos": {
        "video_id": TEXT,
        "channel_id": TEXT,
        "topics": pa.list_(TEXT),
        "upload_time_us": TIME,
        "duration_s": REAL,
        "language": TEXT,
        "title": TEXT,
    },
    "users": {
        "user_id": TEXT,
        "region": TEXT,
        "device": TEXT,
        "language": TEXT,
        "gender": TEXT,
        "age": REAL,
        "logged_in": FLAG,
    },
}


def frame(table: pa.Table) -> pl.DataFrame:
    result = pl.from_arrow(table)
    assert isinstance(result, pl.DataFrame)
    return result


@pytest.fixture(scope="module")
def logs() -> SimulatedLogs:
    # With this seed visits are going on when the log ends: they are cut off.
    return simulate(SMALL, seed=8)


@pytest.fixture(scope="module")
def impressions(logs: SimulatedLogs) -> pl.DataFrame:
    return frame(logs.tables["impressions"])


def test_event_tables_have_exactly_the_agreed_columns(
    logs: SimulatedLogs,
) -> None:
    # No column of the truth is among them, since none but these are.
    received = {
        name: dict(zip(table.column_names, table.schema.types, strict=True))
        for name, table in logs.tables.items()
    }
    assert received == COLUMNS


def test_every_row_is_valid_by_the_event_schema(logs: SimulatedLogs) -> None:
    schema = EventSchema.of_tables(logs.tables)
    for name, table in logs.tables.items():
        check_columns(name, table, schema)
        reasons = row_errors(name, table.combine_chunks(), schema)
        assert set(reasons.tolist()) == {None}, name


def test_truth_rows_belong_to_the_impressions_in_order(
    logs: SimulatedLogs,
) -> None:
    truth, events = logs.truth["impression_truth"], logs.tables["impressions"]
    for column in ("request_id", "video_id", "position"):
        assert truth[column].equals(events[column])


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_config_and_seed_determine_every_table(seed: int) -> None:
    config = SMALL.model_copy(update={"num_days": 1})
    first, again = simulate(config, seed), simulate(config, seed)
    other = simulate(config, seed + 1)
    for name, table in first.tables.items():
        assert table.equals(again.tables[name]), name
        assert not table.equals(other.tables[name]), name
    for name, table in first.truth.items():
        assert table.equals(again.truth[name]), name


def test_rows_of_a_request_agree_and_have_positions_from_one(
    impressions: pl.DataFrame,
) -> None:
    requests = impressions.group_by("request_id").agg(
        shown=pl.len(),
        times=pl.col("event_time_us").n_unique(),
        users=pl.col("user_id").n_unique(),
        surfaces=pl.col("surface").n_unique(),
        videos=pl.col("video_id").n_unique(),
        positions=pl.col("position").sort(),
        query_is_shown=(pl.col("video_id") == pl.col("query_video_id")).any(),
    )
    for column in ("times", "users", "surfaces"):
        assert (requests[column] == 1).all(), column
    assert requests["videos"].to_list() == requests["shown"].to_list()
    assert requests["positions"].to_list() == [
        list(range(1, shown + 1)) for shown in requests["shown"]
    ]
    assert requests["shown"].max() == 10
    assert not requests["query_is_shown"].any()


def test_propensity_is_uniform_in_the_slice_and_one_elsewhere(
    logs: SimulatedLogs, impressions: pl.DataFrame
) -> None:
    rows = impressions.with_columns(
        shown=pl.len().over("request_id"),
        randomized=pl.Series(
            logs.truth["impression_truth"]["randomized"].to_numpy()
        ),
    )
    inside = rows.filter("randomized")
    outside = rows.filter(~pl.col("randomized"))
    np.testing.assert_allclose(inside["propensity"], 1.0 / inside["shown"])
    assert (outside["propensity"] == 1.0).all()
    # 600 requests, a share of 0.3: standard deviation 0.019.
    share = inside["request_id"].n_unique() / rows["request_id"].n_unique()
    assert abs(share - 0.3) < 0.08


def test_nothing_happens_before_its_upload_or_outside_the_log(
    logs: SimulatedLogs,
) -> None:
    uploads = frame(logs.tables["videos"]).select("video_id", "upload_time_us")
    within = uploads.filter(pl.col("upload_time_us") >= START_US)
    # 400 videos, a share of 0.6: 240, standard deviation 10.
    assert 195 < within.height < 285
    fresh = set(within["video_id"])
    for name in ("watches", "impressions"):
        rows = frame(logs.tables[name]).join(uploads, on="video_id")
        assert (rows["event_time_us"] >= rows["upload_time_us"]).all()
        assert rows["event_time_us"].min() >= START_US
        assert rows["event_time_us"].max() < END_US
        assert sum(video in fresh for video in rows["video_id"]) > 100


def test_each_click_is_a_watch_a_moment_later_and_nothing_else_is(
    logs: SimulatedLogs, impressions: pl.DataFrame
) -> None:
    watches = frame(logs.tables["watches"])
    recommended = watches.filter(pl.col("source") == "recommendation")
    clicks = impressions.filter("clicked")
    assert clicks.height > 300
    key = ["user_id", "video_id", "watch_time_s"]
    delay_us = pl.col("event_time_us_of_watch") - pl.col("event_time_us")
    # The next request comes 20 seconds later at the earliest, so that a
    # moment of 10 seconds has one click of a video at most.
    pairs = clicks.join(recommended, on=key, suffix="_of_watch").filter(
        delay_us.is_between(1, 10_000_000)
    )
    assert pairs.height == clicks.height == recommended.height
    assert pairs.unique(["request_id", "position"]).height == clicks.height
    sources = set(watches["source"])
    assert sources == {"recommendation", "search", "embedded", "external"}


def test_completed_means_seventy_percent_of_the_duration(
    logs: SimulatedLogs,
) -> None:
    durations = frame(logs.tables["videos"]).select("video_id", "duration_s")
    rows = frame(logs.tables["watches"]).join(durations, on="video_id")
    share = rows["watch_time_s"] / rows["duration_s"]
    assert share.max() <= 1.0
    assert rows.filter(share > 0.7001)["completed"].all()
    assert not rows.filter(share < 0.6999)["completed"].any()


def test_unclicked_videos_play_only_where_they_start_by_themselves(
    impressions: pl.DataFrame,
) -> None:
    unclicked = impressions.filter(~pl.col("clicked"))
    shorts = unclicked.filter(pl.col("surface") == "shorts")
    others = unclicked.filter(pl.col("surface") != "shorts")
    assert (others["watch_time_s"] == 0.0).all()
    assert shorts.height > 100
    assert shorts["watch_time_s"].min() > 0.0
    assert shorts["watch_time_s"].max() <= 20.0
    assert not unclicked["liked"].any()
    assert not impressions.filter("clicked")["dismissed"].any()


def test_query_and_seed_videos_were_watched_before_the_request(
    logs: SimulatedLogs, impressions: pl.DataFrame
) -> None:
    on_video = impressions["surface"] == "watch_next"
    assert impressions["query_video_id"].is_not_null().equals(on_video)
    seeded = impressions["candidate_source"] == "related"
    assert impressions["seed_video_id"].is_not_null().equals(seeded)
    first_watch = {
        (user, video): time
        for user, video, time in frame(logs.tables["watches"])
        .sort("event_time_us", descending=True)
        .select("user_id", "video_id", "event_time_us")
        .iter_rows()
    }
    for column in ("query_video_id", "seed_video_id"):
        rows = impressions.filter(pl.col(column).is_not_null()).select(
            "user_id", column, "event_time_us"
        )
        assert rows.height > 300
        for user, video, time in rows.iter_rows():
            assert first_watch[user, video] < time


def test_logged_out_users_have_no_gender_and_no_age(
    logs: SimulatedLogs,
) -> None:
    users = frame(logs.tables["users"])
    known = users.filter("logged_in")
    unknown = users.filter(~pl.col("logged_in"))
    assert 30 < unknown.height < 120
    assert unknown["gender"].is_null().all()
    assert unknown["age"].is_null().all()
    assert known["gender"].is_not_null().all()
    # A share of 0.15 of about 225, standard deviation 5.
    assert 10 < known["age"].null_count() < 60


def test_a_users_events_do_not_overlap_between_requests_and_watches(
    logs: SimulatedLogs,
) -> None:
    # Videos found otherwise are watched one at a time.
    rows = (
        frame(logs.tables["watches"])
        .filter(pl.col("source") != "recommendation")
        .sort("user_id", "event_time_us")
        .with_columns(
            next_us=pl.col("event_time_us").shift(-1).over("user_id"),
            end_us=pl.col("event_time_us") + pl.col("watch_time_s") * 1e6,
        )
        .filter(pl.col("next_us").is_not_null())
    )
    assert rows.height > 500
    assert (rows["next_us"] >= rows["end_us"].floor()).all()


def test_default_rates_give_the_promised_numbers_of_rows() -> None:
    # A tenth of the default users: 2,000 x 30 x 0.19 x 10 = 114,000
    # impressions are meant; promised are 1.0 to 1.3 million and 400,000 to
    # 700,000 watches for all 20,000.
    config = SimulatorConfig(num_users=2000, num_videos=2000, num_channels=200)
    tables = simulate(config, seed=0).tables
    assert 100_000 < tables["impressions"].num_rows < 130_000
    assert 40_000 < tables["watches"].num_rows < 70_000
    counts = np.sort(
        frame(tables["watches"]).group_by("user_id").len()["len"].to_numpy()
    )[::-1]
    # Heavy-tailed: equal users would give the busiest tenth a tenth.
    assert counts[:200].sum() > 0.25 * counts.sum()


def test_very_small_platforms_work() -> None:
    config = SimulatorConfig(
        num_users=20,
        num_videos=50,
        num_channels=5,
        num_topics=5,
        num_days=2,
        requests_per_user_day=1.0,
    )
    tables = simulate(config, seed=1).tables
    assert 0 < tables["impressions"].num_rows <= 2 * 20 * 10 * 3


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="received -1"):
        simulate(SMALL, seed=-1)


def test_more_requests_than_visits_can_hold_are_refused() -> None:
    # A visit has 5.69 events on average, of which one in 1 + 3 is a request,
    # and Saturdays have 1.12 times the visits: 5.69 / 4 / 1.12 = 1.27.
    config = SMALL.model_copy(update={"requests_per_user_day": 1.3})
    with pytest.raises(ValueError, match=r"at most 1\.27 .* received 1\.3"):
        simulate(config, seed=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_channels": 7, "num_topics": 8},
        {"num_videos": 60, "num_channels": 61},
        {"num_userz": 3},
        {"randomized_share": 1.01},
        {"num_days": 0},
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError):
        SimulatorConfig(**fields)  # type: ignore[arg-type]


def test_the_videos_do_not_depend_on_who_watches_them() -> None:
    more = SMALL.model_copy(update={"num_users": 900})
    some, many = simulate(SMALL, 7), simulate(more, 7)
    assert some.tables["videos"].equals(many.tables["videos"])
    assert some.truth["video_truth"].equals(many.truth["video_truth"])
    assert len(many.tables["watches"]) > 2 * len(some.tables["watches"])
