"""The simulated truth, recovered from the log alone."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from beam_jobs.sources.simulated import SimulatedLogs, simulate
from schemas.simulator_config import SimulatorConfig

DAY_US = 86_400_000_000
START_US = 1_704_067_200_000_000
CONFIG = SimulatorConfig(
    num_users=3000,
    num_videos=3000,
    num_channels=250,
    num_topics=20,
    num_days=14,
    requests_per_user_day=0.6,
    randomized_share=0.5,
    viral_share=0.05,
)
# A right test of this many standard deviations fails once in 150,000 draws.
MOST_DEVIATIONS = 4.5


def frame(table: pa.Table) -> pl.DataFrame:
    result = pl.from_arrow(table)
    assert isinstance(result, pl.DataFrame)
    return result


@pytest.fixture(scope="module")
def logs() -> SimulatedLogs:
    return simulate(CONFIG, seed=11)


@pytest.fixture(scope="module")
def impressions(logs: SimulatedLogs) -> pl.DataFrame:
    """Impressions with their truth, traits, duration and device."""
    truth = frame(logs.truth["impression_truth"]).drop(
        "request_id", "video_id", "position"
    )
    videos = frame(logs.tables["videos"]).select("video_id", "duration_s")
    users = frame(logs.tables["users"]).select("user_id", "device")
    return (
        pl.concat([frame(logs.tables["impressions"]), truth], how="horizontal")
        .join(frame(logs.truth["video_traits"]), on="video_id")
        .join(videos, on="video_id")
        .join(users, on="user_id")
    )


@pytest.fixture(scope="module")
def watches(logs: SimulatedLogs) -> pl.DataFrame:
    """Watches with number, age, primary topic and traits of the video."""
    videos = frame(logs.tables["videos"]).select(
        "video_id",
        "upload_time_us",
        "channel_id",
        topic=pl.col("topics").list.first(),
    )
    return (
        frame(logs.tables["watches"])
        .join(videos, on="video_id")
        .join(frame(logs.truth["video_traits"]), on="video_id")
        .with_columns(
            age_days=(pl.col("event_time_us") - pl.col("upload_time_us"))
            / DAY_US,
            number=pl.col("video_id").str.slice(1).cast(pl.Int64),
        )
    )


def deciles(values: np.ndarray) -> list[np.ndarray]:
    return np.array_split(np.argsort(values, kind="stable"), 10)


def test_clicks_occur_as_often_as_the_true_probability_says(
    impressions: pl.DataFrame,
) -> None:
    probability = impressions["click_probability"].to_numpy()
    clicked = impressions["clicked"].to_numpy().astype(float)
    assert probability.min() > 0.0
    assert probability.max() < 1.0
    groups = deciles(probability)
    # The probability must tell impressions apart to be a truth worth having.
    assert probability[groups[-1]].mean() > 10 * probability[groups[0]].mean()
    for rows in groups:
        p = probability[rows]
        deviation = np.sqrt((p * (1.0 - p)).sum())
        excess = clicked[rows].sum() - p.sum()
        assert abs(excess) < MOST_DEVIATIONS * deviation


@pytest.mark.parametrize("surface", ["home", "watch_next", "shorts"])
def test_watch_time_is_on_average_what_is_expected(
    impressions: pl.DataFrame, surface: str
) -> None:
    rows = impressions.filter(pl.col("surface") == surface)
    expected = rows["expected_watch_time_s"].to_numpy()
    observed = rows["watch_time_s"].to_numpy()
    for group in deciles(expected):
        error = observed[group] - expected[group]
        deviation = error.std() / np.sqrt(len(error))
        assert abs(error.mean()) < MOST_DEVIATIONS * deviation


def test_shuffled_requests_show_the_position_effect_of_each_device(
    logs: SimulatedLogs, impressions: pl.DataFrame
) -> None:
    # Under uniform order every position has the same mixture of videos, so
    # the ratio of click rates is the effect. var(a/b) by the delta method.
    # Requests that ran out of candidates would break the sameness.
    whole = impressions.filter(pl.len().over("request_id") == 10)
    truth = {
        (device, position): effect
        for device, position, effect in frame(
            logs.truth["position_truth"]
        ).iter_rows()
    }
    rates = (
        whole.filter(pl.col("propensity") < 1.0)
        .group_by("device", "position")
        .agg(rate=pl.col("clicked").mean(), n=pl.len())
    )
    found = {(d, p): (rate, n) for d, p, rate, n in rates.iter_rows()}
    assert len(found) == len(truth) == 40
    for (device, position), effect in truth.items():
        first, n_first = found[device, 1]
        rate, n = found[device, position]
        variance = (1 - rate) / (rate * n) + (1 - first) / (first * n_first)
        assert abs(np.log(rate / first / effect)) < (
            MOST_DEVIATIONS * np.sqrt(variance)
        ), (device, position)
    # 4 ** -0.7 = 0.379 on mobile, 4 ** -0.35 = 0.616 on desktop.
    assert truth["mobile", 4] == pytest.approx(0.3789, abs=1e-4)
    assert truth["desktop", 4] == pytest.approx(0.6156, abs=1e-4)
    # Where the order follows the ranking, position and merit are mixed up:
    # the same ratio falls far below the effect.
    ranked = whole.filter(
        (pl.col("propensity") == 1.0) & (pl.col("device") == "mobile")
    )
    by_position = dict(
        ranked.group_by("position").agg(pl.col("clicked").mean()).iter_rows()
    )
    assert by_position[10] / by_position[1] < 0.6 * truth["mobile", 10]


def test_position_effect_column_is_that_of_the_device(
    logs: SimulatedLogs, impressions: pl.DataFrame
) -> None:
    joined = impressions.join(
        frame(logs.truth["position_truth"]), on=["device", "position"]
    )
    assert joined.height == impressions.height
    np.testing.assert_allclose(joined["position_effect"], joined["effect"])


def test_clickbait_is_clicked_more_and_watched_less(
    impressions: pl.DataFrame,
) -> None:
    shuffled = impressions.filter("randomized")
    rate = dict(
        shuffled.group_by("clickbait").agg(pl.col("clicked").mean()).iter_rows()
    )
    share = dict(
        impressions.filter("clicked")
        .group_by("clickbait")
        .agg((pl.col("watch_time_s") / pl.col("duration_s")).mean())
        .iter_rows()
    )
    assert rate[True] > 1.3 * rate[False]
    assert share[True] < 0.6 * share[False]


def test_click_order_and_watch_time_order_differ(
    impressions: pl.DataFrame,
) -> None:
    # Pairs (clicked i, not clicked j) of a request, each weighing the watch
    # time of i; lost where j is scored above i.
    rows = impressions.select(
        "request_id",
        "video_id",
        "clicked",
        "watch_time_s",
        "click_probability",
        "expected_watch_time_s",
    )
    pairs = rows.filter("clicked").join(
        rows.filter(~pl.col("clicked")), on="request_id", suffix="_other"
    )
    loss = {
        score: float(
            pairs.filter(pl.col(f"{score}_other") > pl.col(score))[
                "watch_time_s"
            ].sum()
            / pairs["watch_time_s"].sum()
        )
        for score in ("click_probability", "expected_watch_time_s")
    }
    assert loss["click_probability"] < 0.4
    assert (
        loss["click_probability"] > 1.15 * loss["expected_watch_time_s"] > 0.0
    )


def watches_per_video_day(
    watches: pl.DataFrame, uploads_us: np.ndarray, num_ages: int
) -> np.ndarray:
    """Watches per video by whole days of age, for uploads within the log."""
    end_us = START_US + CONFIG.num_days * DAY_US
    within = uploads_us[uploads_us >= START_US]
    rates = []
    for age in range(num_ages):
        # Only videos that reach the end of that age within the log.
        alive = within[within + (age + 1) * DAY_US <= end_us]
        count = watches.filter(
            (pl.col("age_days") >= age)
            & (pl.col("age_days") < age + 1)
            & (pl.col("upload_time_us") >= START_US)
            & (pl.col("upload_time_us") + (age + 1) * DAY_US <= end_us)
        ).height
        rates.append(count / len(alive))
    return np.array(rates)


def test_popularity_peaks_after_the_upload_and_decays(
    logs: SimulatedLogs, watches: pl.DataFrame
) -> None:
    uploads_us = logs.tables["videos"]["upload_time_us"].to_numpy()
    viral = logs.truth["video_traits"]["viral"].to_numpy()
    usual = watches_per_video_day(
        watches.filter(~pl.col("viral")), uploads_us[~viral], 10
    )
    # Ordinary videos peak about 1.5 days after their upload.
    assert usual.argmax() in (0, 1, 2)
    assert usual[8:].mean() < 0.6 * usual.max()
    went_viral = watches_per_video_day(
        watches.filter("viral"), uploads_us[viral], 10
    )
    assert went_viral.argmax() in (1, 2, 3, 4, 5)
    # At their peaks (0.2 + 8) / (0.2 + 1) = 6.8 times the pull, of which
    # competition inside the topic and the channel leaves a part.
    assert went_viral.max() > 1.4 * usual.max()
    # Fresh videos get a notable share right after their upload.
    assert (watches["age_days"] < 1.0).mean() > 0.05


def test_expected_popularity_is_a_share_that_watches_follow(
    logs: SimulatedLogs, watches: pl.DataFrame
) -> None:
    truth = frame(logs.truth["video_truth"])
    shape = (CONFIG.num_days, CONFIG.num_videos)
    expected = truth["expected_popularity"].to_numpy().reshape(shape)
    np.testing.assert_allclose(expected.sum(axis=1), 1.0)
    uploads_us = logs.tables["videos"]["upload_time_us"].to_numpy()
    day_ends_us = START_US + np.arange(1, CONFIG.num_days + 1) * DAY_US
    not_yet = uploads_us[None, :] >= day_ends_us[:, None]
    assert ((expected == 0.0) == not_yet).all()

    day = (watches["event_time_us"].to_numpy() - START_US) // DAY_US
    counts = np.zeros(shape)
    np.add.at(counts, (day, watches["number"].to_numpy()), 1)
    # Log counts against log shares over deciles: a slope of about one.
    alive = np.flatnonzero(expected.ravel() > 0)
    groups = np.array_split(alive[np.argsort(expected.ravel()[alive])], 10)
    mean_share = [expected.ravel()[g].mean() for g in groups]
    mean_count = [counts.ravel()[g].mean() for g in groups]
    slope = np.polyfit(np.log(mean_share), np.log(mean_count), 1)[0]
    assert (np.diff(mean_count)[2:] > 0).all()
    assert 0.6 < slope < 1.3


def test_co_watches_predict_the_next_watch_better_than_popularity(
    watches: pl.DataFrame,
) -> None:
    # First completed watch of the last day, from the watches before it.
    cut_us = START_US + (CONFIG.num_days - 1) * DAY_US
    ordered = watches.sort("user_id", "event_time_us")
    past = ordered.filter(pl.col("event_time_us") < cut_us)
    label = {
        user: number
        for user, number in ordered.filter(
            (pl.col("event_time_us") >= cut_us) & pl.col("completed")
        )
        .reverse()
        .select("user_id", "number")
        .iter_rows()
    }
    user, number = past["user_id"].to_numpy(), past["number"].to_numpy()
    together = np.zeros((CONFIG.num_videos, CONFIG.num_videos))
    for distance in range(1, 6):
        same = user[distance:] == user[:-distance]
        left, right = number[:-distance][same], number[distance:][same]
        np.add.at(together, (left, right), 1.0)
        np.add.at(together, (right, left), 1.0)
    history = dict(
        past.group_by("user_id", maintain_order=True)
        .agg(pl.col("number").tail(20))
        .iter_rows()
    )
    counts = np.bincount(number, minlength=CONFIG.num_videos)
    popular = set(np.argsort(-counts, kind="stable")[:100])
    users = [each for each in label if each in history]
    assert len(users) > 400
    by_popularity = np.mean([label[each] in popular for each in users])
    by_history = np.mean(
        [
            label[each]
            in np.argsort(-together[history[each]].sum(axis=0))[:100]
            for each in users
        ]
    )
    assert by_popularity < 0.25
    assert by_history > 1.7 * by_popularity


def mutual_information(left: np.ndarray, right: np.ndarray) -> float:
    """Mutual information of two label arrays [N], in nats."""
    joint = np.zeros((left.max() + 1, right.max() + 1))
    np.add.at(joint, (left, right), 1.0 / len(left))
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    there = joint > 0
    return float((joint[there] * np.log(joint[there] / product[there])).sum())


def test_search_words_tell_the_topic_of_the_watch_that_follows(
    logs: SimulatedLogs, watches: pl.DataFrame
) -> None:
    # A search that succeeds comes five seconds before its watch.
    found = watches.filter(pl.col("source") == "search").with_columns(
        search_us=pl.col("event_time_us") - 5_000_000
    )
    searches = frame(logs.tables["searches"])
    pairs = found.join(
        searches,
        left_on=["user_id", "search_us"],
        right_on=["user_id", "event_time_us"],
    )
    assert pairs.height == found.height > 5000
    assert searches.height > found.height  # some searches are in vain
    words = pairs["query"].str.split(" ").list.first()
    word = words.cast(pl.Categorical).to_physical().to_numpy()
    topic = pairs["topic"].cast(pl.Categorical).to_physical().to_numpy()
    shuffled = np.random.default_rng(0).permutation(topic)
    by_chance = mutual_information(word, shuffled)
    assert mutual_information(word, topic) > 3.0 * by_chance
    # Zipfian: in a topic of 50 words the first has 1 / (1 + ... + 1/50) =
    # 0.222 of its uses; four first words in five are words of the topic.
    top = (
        pairs.with_columns(word=words)
        .group_by("topic", "word")
        .len()
        .group_by("topic")
        .agg(pl.col("len").max() / pl.col("len").sum(), n=pl.col("len").sum())
        .filter(pl.col("n") > 300)
    )
    assert top["len"].mean() == pytest.approx(0.8 * 0.222, abs=0.03)


def test_visits_keep_to_topics_and_channels(watches: pl.DataFrame) -> None:
    # How much more often than by chance a user's next watch agrees: among
    # watches found by search in topic, among all of them in channel.
    searched = watches.filter(pl.col("source") == "search")
    rng = np.random.default_rng(0)
    for rows, column, least in (
        (searched, "topic", 4.0),
        (watches, "channel_id", 20.0),
    ):
        ordered = rows.sort("user_id", "event_time_us")
        user, values = ordered["user_id"].to_numpy(), ordered[column].to_numpy()
        chance = np.mean(values == rng.permutation(values))
        follows = (values[1:] == values[:-1])[user[1:] == user[:-1]].mean()
        assert follows > least * chance, column
