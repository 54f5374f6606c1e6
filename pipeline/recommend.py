"""A user's ranked list, by the exported SavedModels.

In: the log's events (for the request of one of its users) and a SavedModel.
Out: rows to read. Only the SavedModel's signatures are used, as a client of a
server would.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.events import read_row_group, row_groups
from beam_jobs.recommendation_model import SavedModel
from beam_jobs.user_requests import (
    UserRequests,
    end_of_log_us,
    request_columns,
)
from beam_jobs.user_shards import build_shard, split_batch
from models.generators import TOWER
from models.recommender import EVERY_CANDIDATE
from pipeline import console
from schemas.errors import InputError
from schemas.events import EventSchema
from schemas.requests import RawInput

_SUGGESTED = 5
_EXPECTED_WATCH_TIME = "expected_watch_time_s"


@dataclasses.dataclass(frozen=True)
class Recommendation:
    """One row of a ranked list.

    Attributes:
      video_id: of the video.
      title: None where the log has no titles.
      channel_id: None where the video has none.
      score: what the rows are ordered by, falling.
      predictions: the ranking model's outputs by name, without the score;
        empty without a ranking model.
      source: the generator of candidates that found it.
      retrieval_rank: place among that generator's candidates, from 1.
      retrieval_score: of the generator; the tower's is u.v + b.
      why: what the user's recent watches share with the video.
    """

    video_id: str
    title: str | None
    channel_id: str | None
    score: float
    predictions: Mapping[str, float]
    source: str
    retrieval_rank: int
    retrieval_score: float
    why: str

    @property
    def expected_watch_time_s(self) -> float | None:
        """Seconds; None where no model predicts it."""
        return self.predictions.get(_EXPECTED_WATCH_TIME)


def recommend(
    folder: str,
    request: Mapping[str, np.ndarray],
    videos: pa.Table,
    top_k: int,
) -> list[Recommendation]:
    """Answers a request by a SavedModel on disk.

    Args:
      folder: of a version of `recommender`, or of `retrieval` where nothing
        ranks (a log without impressions).
      request: one raw request, arrays [1, ...].
      videos: the videos table, for titles, channels and topics.
      top_k: how many rows.

    Returns:
      At most `top_k` rows, the best first.

    Raises:
      ArtifactError: the model wants what the request does not have.
    """
    answer = SavedModel(folder, EVERY_CANDIDATE)(request)
    return described(answer, request, videos)[:top_k]


def described(
    answer: Mapping[str, np.ndarray],
    request: Mapping[str, np.ndarray],
    videos: pa.Table,
) -> list[Recommendation]:
    """Rows to read, of one request's answer.

    Args:
      answer: of `recommender`'s signature `every_candidate` or of
        `retrieval`'s default one, arrays [1, C] by falling score.
      request: what was asked.
      videos: the videos table.
    """
    found = answer["video_ids"][0] != b""
    columns = {name: values[0][found] for name, values in answer.items()}
    ids = [v.decode() for v in columns.pop("video_ids")]
    own_scores = columns.pop("retrieval_scores", columns.get("scores"))
    sources = [s.decode() for s in columns.pop("candidate_sources", ())]
    sources = sources or [TOWER] * len(ids)
    scores = columns.pop("score", columns.pop("scores", None))
    assert own_scores is not None and scores is not None  # Of either model.
    ranks = _ranks_by_source(sources, own_scores)
    about = _Videos(videos, request["watch_history_video_id"][0], ids)
    return [
        Recommendation(
            video_id=video,
            title=about.text("title", video),
            channel_id=about.text("channel_id", video),
            score=float(scores[i]),
            predictions={n: float(p[i]) for n, p in columns.items()},
            source=sources[i],
            retrieval_rank=ranks[i],
            retrieval_score=float(own_scores[i]),
            why=about.why(video),
        )
        for i, video in enumerate(ids)
    ]


def busiest_users(watches: pa.Table, number: int) -> list[str]:
    """Users with the most of these watches, so that there is something to see.

    Ties go by the user's id.
    """
    counts = watches.group_by("user_id").aggregate([("video_id", "count")])
    order = [("video_id_count", "descending"), ("user_id", "ascending")]
    users: list[str] = counts.sort_by(order).column("user_id").to_pylist()
    return users[:number]


def request_of_user(
    user_id: str,
    files: Mapping[str, Sequence[str]],
    schema: EventSchema,
    inputs: Sequence[RawInput],
    as_of_us: int | None = None,
) -> dict[str, np.ndarray]:
    """Builds the request that a user would make; see `UserRequests`.

    Args:
      user_id: of the log.
      files: event table -> Parquet files, of all parts of the split.
      schema: what the log has.
      inputs: of the request.
      as_of_us: when; default is right after the log's end.

    Returns:
      name -> [1, ...] for every input.

    Raises:
      InputError: the log does not have the user; names some it has.
    """
    tables = {
        table: pa.schema([f for f in schema.arrow(table) if f.name in columns])
        for table, columns in request_columns(schema, inputs).items()
    }
    own: dict[str, pa.Table] = {}
    others = set[str]()
    for table, columns in tables.items():
        pieces = [columns.empty_table()]
        for rows in _row_groups(files[table], columns):
            ids = rows.column("user_id")
            pieces.append(rows.filter(pc.equal(ids, user_id)))
            if len(others) < _SUGGESTED:
                others |= set(pc.unique(ids).to_pylist()[:_SUGGESTED])
        own[table] = pa.concat_tables(pieces)
    if not any(rows.num_rows for rows in own.values()):
        raise InputError(
            f"The log has no user {user_id!r}; it has "
            f"{', '.join(sorted(others)[:_SUGGESTED])} and others."
        )
    pieces_of_shard = [
        piece
        for table, rows in own.items()
        for _, piece in split_batch(
            rows, table=table, part="all", num_shards=1, cap=rows.num_rows + 1
        )
    ]
    most = max(rows.num_rows for rows in own.values())
    shard = build_shard((0, pieces_of_shard), schemas=tables, cap=most)
    time_us = end_of_log_us(files) if as_of_us is None else as_of_us
    return UserRequests(shard, inputs, time_us)(np.zeros(1, np.int64))


def print_table(title: str, rows: Sequence[Recommendation]) -> None:
    """Prints a ranked list."""
    if not rows:
        console.say(f"{title}: nothing, every known video was watched.")
        return
    tasks = [n for n in rows[0].predictions if n != _EXPECTED_WATCH_TIME]
    console.print_table(
        title,
        [
            "video",
            "channel",
            "watch time",
            *(f"P({name})" for name in tasks),
            "source, rank, score",
            "why",
        ],
        [
            [
                f"{place:2d}  {row.title or row.video_id}",
                row.channel_id or "-",
                _seconds(row.expected_watch_time_s),
                *(f"{row.predictions[name]:.3f}" for name in tasks),
                f"{row.source} #{row.retrieval_rank} "
                f"{row.retrieval_score:6.2f}",
                row.why,
            ]
            for place, row in enumerate(rows, start=1)
        ],
    )


def _ranks_by_source(
    sources: Sequence[str], scores: np.ndarray
) -> Sequence[int]:
    """Place by falling score among those of the same source, from 1."""
    ranks, taken = [0] * len(sources), Counter[str]()
    for i in np.argsort(-scores, kind="stable"):
        taken[sources[i]] += 1
        ranks[i] = taken[sources[i]]
    return ranks


def _watches(count: int) -> str:
    return f"{count} watch" + ("" if count == 1 else "es")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


class _Videos:
    """What the videos table says of the candidates and the recent watches."""

    def __init__(
        self, videos: pa.Table, watched: np.ndarray, candidates: Sequence[str]
    ) -> None:
        self._watched = [v.decode() for v in watched if v]
        wanted = {*self._watched, *candidates}
        ids = pa.array(sorted(wanted), pa.string())
        rows = videos.filter(pc.is_in(videos.column("video_id"), ids))
        self._rows = {r["video_id"]: r for r in rows.to_pylist()}
        self._channels = Counter(
            self.text("channel_id", v) for v in self._watched
        )
        self._topics = Counter(
            t for v in self._watched for t in set(self._topics_of(v))
        )

    def text(self, column: str, video_id: str) -> str | None:
        value = self._rows.get(video_id, {}).get(column)
        return None if value is None else str(value)

    def why(self, video_id: str) -> str:
        """The channel if it was watched, else the topic watched most."""
        channel = self.text("channel_id", video_id)
        if channel is not None and self._channels[channel]:
            return f"{_watches(self._channels[channel])} of its channel"
        topics = [t for t in self._topics_of(video_id) if self._topics[t]]
        if topics:
            # Equal counts: the video's own order of topics decides.
            most = max(topics, key=lambda t: self._topics[t])
            return f"{_watches(self._topics[most])} of topic {most}"
        return "similar users" if self._watched else "no watches yet"

    def _topics_of(self, video_id: str) -> Sequence[str]:
        return self._rows.get(video_id, {}).get("topics") or ()


def _row_groups(paths: Sequence[str], columns: pa.Schema) -> Iterator[pa.Table]:
    for path in sorted(paths):
        for place in row_groups(path):
            yield read_row_group(place, columns)
