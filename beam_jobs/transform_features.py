"""The transform graph's formulas: a raw request to features.

In go the tensors of `schemas/requests.py` [B, ...], out come those of
`schemas/features.py`: ids, and continuous values still in their own units
(`preprocessing.py` normalises them). The features that tell users apart
are crossings of the user's past with the candidate's channel and topics
(paper, section 4.1), computed from exactly the lists a request carries.
Letters: B requests, C candidates, H length of a history, T topics of a video.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from beam_jobs.tokens import tokenize
from beam_jobs.video_table import VideoRows
from schemas.features import FIXED_SPACES, PADDING_ID, Feature, FeatureSet

Tensors = Mapping[str, tf.Tensor]
Lookup = Callable[[tf.Tensor], tf.Tensor]

_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
# 1 January 1970 was a Thursday, day 3 of a week that begins on Monday.
_EPOCH_WEEKDAY = 3
# Features that are columns of the catalogue: of the candidate, and of the
# video being watched.
_QUERY_VIDEO_FEATURES = ("query_channel", "query_topics")
# Features whose raw input has another name.
_RAW_NAMES = {
    "query_video": "query_video_id",
    "video": "candidate_video_id",
    "seed_video": "candidate_seed_video_id",
}


def raw_features(
    raw: Tensors,
    features: FeatureSet,
    lookups: Mapping[str, Lookup],
    videos: VideoRows,
    utc_offset_hours: float,
) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """Computes every feature of a set before normalisation.

    Args:
      raw: tensors of the raw inputs.
      features: which features.
      lookups: ID space -> function from strings to ids, 0 unknown.
      videos: the video table.
      utc_offset_hours: local time, for hour and weekday.

    Returns:
      ids int64 by feature, and continuous values float32 [B] or [B, C] by
      feature, NaN where missing and where the candidate is padding.
    """
    request = _Request(raw, videos)
    ids: dict[str, tf.Tensor] = {}
    values: dict[str, tf.Tensor] = {}
    for feature in features:
        name = feature.name
        if feature.kind == "continuous":
            value = _value(feature, raw, request)
            if feature.scope == "candidate":
                value = tf.where(request.is_candidate, value, np.nan)
            values[name] = value
        elif feature.space in FIXED_SPACES:
            ids[name] = _time_id(feature, raw, utc_offset_hours)
        else:
            ids[name] = _ids(feature, raw, request, lookups)
    return ids, values


def _ids(
    feature: Feature,
    raw: Tensors,
    request: "_Request",
    lookups: Mapping[str, Lookup],
) -> tf.Tensor:
    """Ids of a categorical feature [B(, C)] or bag [B(, C), max_length]."""
    name = feature.name
    lookup = lookups[feature.space or ""]
    if name in ("search_tokens", "last_search_tokens"):
        newest_only = name == "last_search_tokens"
        tokens = request.search_tokens(lookup, newest_only=newest_only)
        return tokens.to_tensor(PADDING_ID, shape=[None, feature.max_length])
    if name == "watch_history":
        return _bag(raw["watch_history_video_id"], lookup)
    source = _RAW_NAMES.get(name, name)
    if source in raw:
        terms = raw[source]
        return _bag(terms, lookup) if feature.kind == "bag" else lookup(terms)
    if name in _QUERY_VIDEO_FEATURES:
        return request.videos.column(name, request.query_row)
    return request.videos.column(name, request.candidate_rows)


def _bag(terms: tf.Tensor, lookup: Lookup) -> tf.Tensor:
    # Most slots are empty: only the others are looked up.
    used = tf.where(tf.not_equal(terms, ""))
    padding = tf.fill(tf.shape(terms), tf.constant(PADDING_ID, tf.int64))
    ids = lookup(tf.gather_nd(terms, used))
    bag = tf.tensor_scatter_nd_update(padding, used, ids)
    return tf.ensure_shape(bag, terms.shape)


def _time_id(
    feature: Feature, raw: Tensors, utc_offset_hours: float
) -> tf.Tensor:
    """Hour 0..23 or weekday 0..6 (Monday first) of local time, plus 1."""
    local_us = raw["request_time_us"] + round(utc_offset_hours * _HOUR_US)
    if feature.name == "hour_of_day":
        return local_us // _HOUR_US % 24 + 1
    return (local_us // _DAY_US + _EPOCH_WEEKDAY) % 7 + 1


def _value(feature: Feature, raw: Tensors, request: "_Request") -> tf.Tensor:
    """A continuous feature in its unit, float32 [B] or [B, C]."""
    name = feature.name
    if name in raw:
        return raw[name]
    formula = _FORMULAS.get(name)
    if formula is not None:
        return formula(request)
    return request.videos.column(name, request.candidate_rows)


class _Request:
    """Tensors that several formulas share, each made when first needed.

    A retrieval request has no candidates and no impressions; what would need
    them is then never asked for.
    """

    def __init__(self, raw: Tensors, videos: VideoRows) -> None:
        self.videos = videos
        self._raw = raw
        self._made: dict[str, Any] = {}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    @property
    def time_us(self) -> tf.Tensor:
        """int64 [B]."""
        return self._raw["request_time_us"]

    @property
    def is_candidate(self) -> tf.Tensor:
        """bool [B, C]; false in padding."""
        return tf.not_equal(self._raw["candidate_video_id"], "")

    @property
    def candidate_rows(self) -> tf.Tensor:
        """int64 [B, C], rows of the video table."""
        return self._rows("candidate_video_id")

    @property
    def query_row(self) -> tf.Tensor:
        """int64 [B]."""
        return self._rows("query_video_id")

    def _rows(self, name: str) -> tf.Tensor:
        return self._once(
            f"rows/{name}", lambda: self.videos.rows(self._raw[name])
        )

    def present(self, history: str) -> tf.Tensor:
        """bool [B, H]: slots of `watch` or `impression` history in use."""
        return tf.not_equal(self._raw[f"{history}_history_video_id"], "")

    def age_s(self, history: str) -> tf.Tensor:
        """Seconds from event to request, float32 [B, H]."""
        times = self._raw[f"{history}_history_event_time_us"]
        return seconds(self.time_us[:, None] - times)

    @property
    def watch_time_s(self) -> tf.Tensor:
        """float32 [B, H], 0 where it is not known (yet)."""
        times = self._raw["watch_history_watch_time_s"]
        return tf.where(tf.math.is_nan(times), tf.zeros_like(times), times)

    @property
    def completed(self) -> tf.Tensor:
        """float32 [B, H]: 1, 0, or NaN where it is not known (yet)."""
        return self._raw["watch_history_completed"]

    def search_tokens(
        self, lookup: Lookup, *, newest_only: bool
    ) -> tf.RaggedTensor:
        """Ids of all tokens, those of the newest query first, [B, (tokens)]."""
        queries = self._raw["search_query"]
        by_query = self._once("tokens", lambda: _token_ids(queries, lookup))
        # Query s of request b is row b * S + s.
        searches = queries.shape[1]
        if newest_only:
            newest = tf.range(tf.shape(queries, tf.int64)[0]) * searches
            return tf.gather(by_query, newest)
        return tf.RaggedTensor.from_row_splits(
            by_query.flat_values,
            by_query.row_splits[::searches],
            validate=False,
        )

    def video_key(self, name: str) -> tf.Tensor:
        """Number of a video id, int64; also of ids outside the table.

        Two of a million ids collide with probability 1e12 / 2^64 = 5e-8.
        """
        return self._once(
            f"key/{name}",
            lambda: tf.strings.to_hash_bucket_fast(
                self._raw[name], num_buckets=2**63 - 1
            ),
        )

    def same(self, group: str, history: str) -> tf.Tensor:
        """Which slots share the candidate's video, channel or a topic.

        Returns:
          bool [B, C, H]; channels and topics that are not known match none.
        """
        return self._once(
            f"same/{group}/{history}", lambda: self._same(group, history)
        )

    def _same(self, group: str, history: str) -> tf.Tensor:
        events = f"{history}_history_video_id"
        if group == "video":
            mine = self.video_key("candidate_video_id")
            theirs = self.video_key(events)
            used = self.present(history)[:, None, :]
            return (mine[:, :, None] == theirs[:, None, :]) & used
        column = f"{group}_codes"
        mine = self.videos.column(column, self.candidate_rows)
        theirs = self.videos.column(column, self._rows(events))
        if group == "channel":
            mine, theirs = mine[..., None], theirs[..., None]
        # T * T comparisons of [B, C, H] beat one reduction of rank five.
        pairs = [
            (a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]
            for a in tf.unstack(mine, axis=-1)
            for b in tf.unstack(theirs, axis=-1)
        ]
        match = pairs[0]
        for pair in pairs[1:]:
            match |= pair
        return match


def _token_ids(queries: tf.Tensor, lookup: Lookup) -> tf.RaggedTensor:
    """Token ids of queries [B, S], one row per query, [B * S, (tokens)]."""
    flat = tf.reshape(queries, [-1])
    asked = tf.where(tf.not_equal(flat, ""))
    tokens = tokenize(tf.gather_nd(flat, asked))
    lengths = tf.scatter_nd(
        asked, tokens.row_lengths(), tf.shape(flat, tf.int64)
    )
    return tf.RaggedTensor.from_row_lengths(
        lookup(tokens.flat_values), lengths, validate=False
    )


def seconds(duration_us: tf.Tensor) -> tf.Tensor:
    """Microseconds, int64, as float32 seconds."""
    # By way of float64: float32 has 24 bits, ten years of µs need 49.
    return tf.cast(tf.cast(duration_us, tf.float64) / 1e6, tf.float32)


def _count(match: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.math.count_nonzero(match, axis=-1), tf.float32)


def _sum(match: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Sum of the matching values, rounded once, whatever the order."""
    terms = tf.where(match, values, tf.zeros_like(values))
    total = tf.reduce_sum(tf.cast(terms, tf.float64), axis=-1)
    return tf.cast(total, tf.float32)


def _least(match: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Smallest of the matching values, NaN where none matches."""
    least = tf.reduce_min(tf.where(match, values, np.inf), axis=-1)
    return tf.where(tf.math.is_inf(least), np.nan, least)


def _group_watches(group: str) -> Callable[[_Request], tf.Tensor]:
    return lambda r: _count(r.same(group, "watch"))


def _group_watch_time_s(group: str) -> Callable[[_Request], tf.Tensor]:
    return lambda r: _sum(r.same(group, "watch"), r.watch_time_s[:, None, :])


def _time_since_group_s(
    group: str, history: str
) -> Callable[[_Request], tf.Tensor]:
    return lambda r: _least(
        r.same(group, history), r.age_s(history)[:, None, :]
    )


def _group_impressions(group: str) -> Callable[[_Request], tf.Tensor]:
    return lambda r: _count(r.same(group, "impression"))


def _click_share(request: _Request) -> tf.Tensor:
    """Share of the videos lately shown that were watched since, [B].

    Of each video in the impression history its latest impression counts, if
    the watch history has the video at that time or later. NaN without any.
    """
    shown = request.video_key("impression_history_video_id")
    watched = request.video_key("watch_history_video_id")
    present = request.present("impression")
    slots = tf.range(tf.shape(shown)[1])
    # [B, H, H']: an earlier slot is a later impression of the same video.
    again = (shown[:, :, None] == shown[:, None, :]) & (
        slots[None, :] < slots[:, None]
    )
    latest = present & ~tf.reduce_any(again, axis=2)
    since = (
        (shown[:, :, None] == watched[:, None, :])
        & request.present("watch")[:, None, :]
        & (
            request.age_s("watch")[:, None, :]
            <= request.age_s("impression")[:, :, None]
        )
    )
    # 0 / 0 is NaN: missing.
    return _count(latest & tf.reduce_any(since, axis=2)) / _count(latest)


def _completed_share(request: _Request) -> tf.Tensor:
    """Share of the watches of known outcome that were completed, [B]."""
    completed = request.completed
    known = ~tf.math.is_nan(completed) & request.present("watch")
    # 0 / 0 is NaN: missing.
    return _count(known & (completed > 0.5)) / _count(known)


def _video_age_days(request: _Request) -> tf.Tensor:
    uploads = request.videos.column("upload_time_us", request.candidate_rows)
    age_days = seconds(request.time_us[:, None] - uploads) / 86_400
    return tf.where(uploads == 0, np.nan, age_days)


_FORMULAS: dict[str, Callable[[_Request], tf.Tensor]] = {
    "recent_watches": lambda r: _count(r.present("watch")),
    "recent_impressions": lambda r: _count(r.present("impression")),
    "recent_click_share": _click_share,
    "recent_completed_share": _completed_share,
    "recent_watch_time_s": lambda r: _sum(r.present("watch"), r.watch_time_s),
    "time_since_last_watch_s": lambda r: _least(
        r.present("watch"), r.age_s("watch")
    ),
    "time_since_last_impression_s": lambda r: _least(
        r.present("impression"), r.age_s("impression")
    ),
    "duration_s": lambda r: r.videos.column("duration_s", r.candidate_rows),
    "video_age_days": _video_age_days,
    "channel_watches": _group_watches("channel"),
    "channel_watch_time_s": _group_watch_time_s("channel"),
    "time_since_channel_watch_s": _time_since_group_s("channel", "watch"),
    "channel_impressions": _group_impressions("channel"),
    "topic_watches": _group_watches("topic"),
    "topic_watch_time_s": _group_watch_time_s("topic"),
    "time_since_topic_watch_s": _time_since_group_s("topic", "watch"),
    "topic_impressions": _group_impressions("topic"),
    "previous_impressions": _group_impressions("video"),
    "time_since_impression_s": _time_since_group_s("video", "impression"),
    "previous_watches": _group_watches("video"),
}
