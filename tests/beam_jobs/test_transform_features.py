"""The graph's formulas against a row-by-row reading of their definitions."""

import datetime
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.transform_features import Lookup, raw_features
from beam_jobs.video_table import VideoRows, VideoTable
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.errors import InputError
from schemas.events import EventSchema, ExtraColumn
from schemas.features import FeatureSet, feature_set
from schemas.requests import RawInput, raw_inputs
from schemas.vocabularies import Vocabulary

H, C, S = 6, 4, 3
RETRIEVAL = RetrievalExamplesConfig(
    history_length=H, searches=S, search_tokens=5, max_list=3
)
RANKING = RankingExamplesConfig(max_candidates=C, max_list=2)
EXTRAS = {
    "users": (ExtraColumn("interests", "categorical_list", space="topic"),),
    "videos": (
        ExtraColumn("likes", "continuous"),
        ExtraColumn("tags", "categorical_list", space="topic"),
    ),
    "impressions": (ExtraColumn("shelf", "categorical"),),
}
SCHEMA = EventSchema(
    columns={
        "watches": ("user_id", "video_id"),
        "searches": ("user_id", "query"),
        "impressions": ("video_id", "query_video_id", "seed_video_id"),
        "videos": ("video_id", "language"),
        "users": ("user_id", "region", "age"),
    },
    extras=EXTRAS,
)
HOUR_US = 3_600_000_000
NOW_US = 1_714_000_000_000_000

# a: channel out of vocabulary; c: nothing known; e: the vocabulary lacks it.
VIDEOS: dict[str, dict[str, Any]] = {
    "a": {"channel": "rare", "topics": ["x", "y"], "age_h": 30, "s": 10.0},
    "b": {"channel": "main", "topics": ["y"], "age_h": 1, "s": 99.5},
    "c": {"channel": None, "topics": None, "age_h": None, "s": None},
    "d": {"channel": "rare", "topics": [], "age_h": 500, "s": 3.0},
    # A third topic is beyond max_list = 2: it is no topic of the video.
    "e": {"channel": "main", "topics": ["x", "zz", "y"], "age_h": 7, "s": 0.0},
}
TERMS = {
    "video": ["b", "a", "c"],
    "channel": ["main"],
    "topic": ["y", "x"],
    "token": ["cat", "big cat", "dog"],
    "region": ["north"],
    "surface": ["home"],
    "language": ["fr"],
    "shelf": ["top"],
}


def catalogue() -> VideoCatalogue:
    upload = [
        None if v["age_h"] is None else NOW_US - v["age_h"] * HOUR_US
        for v in VIDEOS.values()
    ]
    rows = VIDEOS.values()
    return VideoCatalogue.of_table(
        pa.table(
            {
                "video_id": pa.array(VIDEOS),
                "channel_id": pa.array([v["channel"] for v in rows]),
                "topics": pa.array(
                    [v["topics"] for v in rows], pa.list_(pa.string())
                ),
                "upload_time_us": pa.array(upload, pa.int64()),
                "duration_s": pa.array([v["s"] for v in rows], pa.float64()),
                "language": pa.array(["fr", None, "de", "fr", "fr"]),
                "likes": pa.array([1.0, None, 3.0, 4.0, 5.0]),
                "tags": pa.array([["x"], None, [], ["q", "y", "x"], ["y"]]),
            }
        )
    )


def features() -> FeatureSet:
    return feature_set(SCHEMA, RETRIEVAL, RANKING)


def inputs() -> tuple[RawInput, ...]:
    return raw_inputs(SCHEMA, RETRIEVAL, RANKING)


def table(terms: list[str], first_id: int) -> tf.lookup.StaticHashTable:
    ids = np.arange(len(terms)) + first_id
    pairs = tf.lookup.KeyValueTensorInitializer(
        tf.constant(terms), tf.constant(ids, tf.int64)
    )
    return tf.lookup.StaticHashTable(pairs, first_id - 1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoTable:
    path = tmp_path_factory.mktemp("table") / "videos.txt"
    vocabularies = {
        s: Vocabulary.of_terms(s, t, [1] * len(t)) for s, t in TERMS.items()
    }
    built = VideoTable.build(
        catalogue(), str(path), SCHEMA, features(), vocabularies, 2
    )
    assert path.read_text() == "a\nb\nc\nd\ne\n"
    return built


def compute(
    raw: dict[str, np.ndarray], videos: VideoTable, utc_offset_hours: float
) -> dict[str, np.ndarray]:
    lookups: dict[str, Lookup] = {
        s: table(t, 1).lookup for s, t in TERMS.items()
    }
    rows = VideoRows(videos, table(sorted(VIDEOS), 0))
    tensors = {
        i.name: tf.constant(
            raw[i.name].tolist(), i.dtype, (len(raw[i.name]), *i.shape)
        )
        for i in inputs()
    }
    ids, values = raw_features(
        tensors, features(), lookups, rows, utc_offset_hours
    )
    return {n: v.numpy() for n, v in {**ids, **values}.items()}


def absent(requests: int) -> dict[str, np.ndarray]:
    """Requests of which nothing is filled in but the time."""
    raw = {
        i.name: np.full((requests, *i.shape), i.absent, i.numpy_dtype)
        for i in inputs()
    }
    raw["request_time_us"][:] = NOW_US
    return raw


def random_requests(seed: int, requests: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    raw = absent(requests)
    ids = [v.encode() for v in (*VIDEOS, "unknown")]
    for row in range(requests):
        raw["request_time_us"][row] += int(rng.integers(0, 40)) * HOUR_US
        now = raw["request_time_us"][row]
        for kind in ("watch", "impression"):
            used = int(rng.integers(0, H + 1))
            # Few distinct times, so that watches meet impressions exactly.
            ages = np.sort(rng.integers(1, 9, used)) * 1_500_000
            raw[f"{kind}_history_video_id"][row, :used] = rng.choice(ids, used)
            raw[f"{kind}_history_event_time_us"][row, :used] = now - ages
        spent = rng.choice([0.5, 7.25, np.nan], H)
        used = int((raw["watch_history_video_id"][row] != b"").sum())
        raw["watch_history_watch_time_s"][row, :used] = spent[:used]
        ended = rng.choice([0.0, 1.0, np.nan], H)
        raw["watch_history_completed"][row, :used] = ended[:used]
        shown = int(rng.integers(1, C + 1))
        raw["candidate_video_id"][row, :shown] = rng.choice(ids, shown)
        raw["candidate_seed_video_id"][row, :shown] = rng.choice(ids, shown)
        raw["impression_shelf"][row, :shown] = rng.choice([b"top", b""], shown)
        raw["video_lagged_click_rate"][row, :shown] = rng.random(shown)
        raw["query_video_id"][row] = rng.choice([*ids, b""])
        queries = rng.choice([b"Big CAT!", b"dog", b"", b"a big cat"], S)
        raw["search_query"][row] = queries
        raw["user_age"][row] = rng.choice([np.nan, 20.0])
        raw["user_interests"][row] = rng.choice([b"x", b"?", b""], 3)
    return raw


class Reader:
    """One request, read by the features' definitions, in plain Python."""

    def __init__(self, raw: dict[str, np.ndarray], row: int) -> None:
        self.raw = {n: v[row] for n, v in raw.items()}
        self.now = int(self.raw["request_time_us"])
        spent = self.raw["watch_history_watch_time_s"]
        self.watches = [
            (v, t, 0.0 if math.isnan(s) else float(s))
            for (v, t), s in zip(self._events("watch"), spent, strict=False)
        ]
        self.impressions = [(v, t, 0.0) for v, t in self._events("impression")]

    def _events(self, kind: str) -> list[tuple[str, int]]:
        videos = self.raw[f"{kind}_history_video_id"]
        times = self.raw[f"{kind}_history_event_time_us"]
        return [
            (v.decode(), int(t))
            for v, t in zip(videos, times, strict=True)
            if v
        ]

    @staticmethod
    def related(group: str, a: str, b: str) -> bool:
        if group == "video":
            return a == b
        one, other = VIDEOS.get(a, {}), VIDEOS.get(b, {})
        if group == "channel":
            channel = one.get("channel")
            return channel is not None and channel == other.get("channel")
        topics = set((one.get("topics") or [])[:2])
        return bool(topics & set((other.get("topics") or [])[:2]))

    def count(self, group: str, video: str, events: list[Any]) -> float:
        return sum(self.related(group, video, v) for v, _, _ in events)

    def since(self, group: str, video: str, events: list[Any]) -> float:
        times = [t for v, t, _ in events if self.related(group, video, v)]
        return (self.now - max(times)) / 1e6 if times else math.nan

    def candidate(self, video: str) -> dict[str, float]:
        known = VIDEOS.get(video, {})
        age = known.get("age_h")
        found = {
            "duration_s": math.nan if known.get("s") is None else known["s"],
            "video_age_days": math.nan
            if age is None
            else (self.now - NOW_US + age * HOUR_US) / 86_400e6,
            "previous_impressions": self.count(
                "video", video, self.impressions
            ),
            "time_since_impression_s": self.since(
                "video", video, self.impressions
            ),
            "previous_watches": self.count("video", video, self.watches),
        }
        for group in ("channel", "topic"):
            found |= {
                f"{group}_watches": self.count(group, video, self.watches),
                f"{group}_watch_time_s": sum(
                    s
                    for v, _, s in self.watches
                    if self.related(group, video, v)
                ),
                f"time_since_{group}_watch_s": self.since(
                    group, video, self.watches
                ),
                f"{group}_impressions": self.count(
                    group, video, self.impressions
                ),
            }
        return found

    def request(self) -> dict[str, float]:
        watched, shown = self.watches, self.impressions
        latest: dict[str, int] = {}
        for video, time, _ in shown:
            latest[video] = max(time, latest.get(video, 0))
        clicked = [
            any(w == video and time <= t for w, t, _ in watched)
            for video, time in latest.items()
        ]
        ended = [
            c
            for c in self.raw["watch_history_completed"][: len(watched)]
            if not math.isnan(c)
        ]
        return {
            "recent_completed_share": sum(ended) / len(ended)
            if ended
            else math.nan,
            "recent_watches": len(watched),
            "recent_impressions": len(shown),
            "recent_watch_time_s": sum(s for _, _, s in watched),
            "recent_click_share": sum(clicked) / len(clicked)
            if clicked
            else math.nan,
            "time_since_last_watch_s": min(
                [(self.now - t) / 1e6 for _, t, _ in watched], default=math.nan
            ),
            "time_since_last_impression_s": min(
                [(self.now - t) / 1e6 for _, t, _ in shown], default=math.nan
            ),
        }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_crossings_match_their_definitions(
    videos: VideoTable, seed: int
) -> None:
    raw = random_requests(seed)
    found = compute(raw, videos, 0)
    for row in range(len(raw["request_time_us"])):
        reader = Reader(raw, row)
        for name, value in reader.request().items():
            np.testing.assert_allclose(
                found[name][row], np.float32(value), rtol=1e-6, err_msg=name
            )
        for slot, video in enumerate(raw["candidate_video_id"][row]):
            if not video:
                continue
            for name, value in reader.candidate(video.decode()).items():
                np.testing.assert_allclose(
                    found[name][row, slot],
                    np.float32(value),
                    rtol=1e-6,
                    err_msg=f"{name} of {video!r}",
                )


def test_padding_candidates_are_missing_everywhere(videos: VideoTable) -> None:
    raw = random_requests(3)
    raw["video_lagged_click_rate"][:] = 0.5  # Also where nothing is shown.
    found = compute(raw, videos, 0)
    padding = raw["candidate_video_id"] == b""
    assert padding.any()
    for feature in features().select("candidate"):
        values = found[feature.name][padding]
        if feature.kind == "continuous":
            assert np.isnan(values).all(), feature.name
        else:
            expected = -1 if feature.kind == "bag" else 0
            assert (values == expected).all(), feature.name


def test_ids_by_hand(videos: VideoTable) -> None:
    raw = absent(1)
    raw["candidate_video_id"][0, :3] = [b"a", b"e", b"unknown"]
    raw["watch_history_video_id"][0, :3] = [b"c", b"e", b"b"]
    raw["query_video_id"][0] = b"e"
    raw["surface"][0] = b"home"
    raw["user_region"][0] = b"south"
    raw["user_interests"][0, :2] = [b"?", b"x"]
    raw["impression_shelf"][0, 0] = b"top"
    found = compute(raw, videos, 0)
    expected = {
        # Vocabulary b, a, c: e is out of it (0), slots not in use are -1.
        "watch_history": [3, 0, 1, -1, -1, -1],
        "video": [2, 0, 0, 0],
        # Channels: rare is out of vocabulary, main is 1.
        "channel": [0, 1, 0, 0],
        # Topics y = 1, x = 2: a has x, y; e has x, zz (y is cut).
        "topics": [[2, 1], [2, 0], [-1, -1], [-1, -1]],
        "query_channel": 1,
        # The request's lists may hold three: x, zz, y.
        "query_topics": [2, 0, 1],
        "query_video": 0,
        "surface": 1,
        "user_region": 0,
        "user_interests": [0, 2, -1],
        "video_language": [1, 1, 0, 0],
        "video_tags": [[2, -1], [1, -1], [-1, -1], [-1, -1]],
        "impression_shelf": [1, 0, 0, 0],
    }
    for name, ids in expected.items():
        assert found[name][0].tolist() == ids, name
        assert found[name].dtype == np.int64
    np.testing.assert_array_equal(
        found["video_likes"][0], [1, 5, np.nan, np.nan]
    )


def test_search_tokens_begin_with_the_newest_query(videos: VideoTable) -> None:
    raw = absent(3)
    # Tokens: big, cat, "big cat" = 0, 1, 2; dog = 3; "a big cat" gives
    # a, big, cat, "a big", "big cat" = 0, 0, 1, 0, 2.
    raw["search_query"][0] = [b"dog", b"Big CAT!", b"a big cat"]
    raw["search_query"][1] = [b"a big cat", b"dog", b""]
    found = compute(raw, videos, 0)
    assert found["search_tokens"].tolist() == [
        [3, 0, 1, 2, 0],
        [0, 0, 1, 0, 2],
        [-1] * 5,
    ]
    assert found["last_search_tokens"].tolist() == [
        [3, -1, -1],
        [0, 0, 1],
        [-1, -1, -1],
    ]


@pytest.mark.parametrize("offset", [0.0, 8.0, -3.5])
def test_hour_and_weekday_are_local(videos: VideoTable, offset: float) -> None:
    raw = absent(200)
    raw["request_time_us"][:] += np.arange(200) * 3 * HOUR_US // 2
    found = compute(raw, videos, offset)
    zone = datetime.timezone(datetime.timedelta(hours=offset))
    for row, time_us in enumerate(raw["request_time_us"]):
        local = datetime.datetime.fromtimestamp(time_us / 1e6, zone)
        assert found["hour_of_day"][row] == local.hour + 1
        assert found["day_of_week"][row] == local.weekday() + 1


def test_a_video_id_with_a_line_break_is_refused(tmp_path: Path) -> None:
    rows = catalogue().table.slice(0, 1)
    broken = rows.set_column(0, "video_id", pa.array(["a\nb"]))
    with pytest.raises(InputError, match="line break"):
        VideoTable.build(
            VideoCatalogue.of_table(broken),
            str(tmp_path / "videos.txt"),
            SCHEMA,
            features(),
            {},
            2,
        )
