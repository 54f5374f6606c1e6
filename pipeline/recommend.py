"""A user's ranked list, by the exported SavedModels.

In: the log's events (for the request of one of its users) and a SavedModel.
Out: rows to read. Only the SavedModel's signatures are used, as a client of a
server would.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.events import read_row_group, row_groups
from beam_jobs.histories import raw_request
from beam_jobs.user_shards import build_shard, split_batch
from models.generators import TOWER
from models.keras_setup import tf
from models.recommender import EVERY_CANDIDATE
from models.saved_models import SERVING_DEFAULT
from pipeline import console
from schemas.errors import ArtifactError, InputError
from schemas.events import TIMED_TABLES, EventSchema
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
    return described(_call(folder, request), request, videos)[:top_k]


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


def request_of_user(
    user_id: str,
    files: Mapping[str, Sequence[str]],
    schema: EventSchema,
    inputs: Sequence[RawInput],
) -> dict[str, np.ndarray]:
    """Builds the request that a user would make right after the log's end.

    The surface is that of the user's last impression; what a log cannot tell
    of a future request (the video being watched, candidates) is absent.

    Args:
      user_id: of the log.
      files: event table -> Parquet files, of all parts of the split.
      schema: what the log has.
      inputs: of the request.

    Returns:
      name -> [1, ...] for every input.

    Raises:
      InputError: the log does not have the user; names some it has.
    """
    tables = {t: schema.arrow(t) for t in files if t != "videos"}
    own: dict[str, pa.Table] = {}
    end_us, others = 0, set[str]()
    for table, columns in tables.items():
        pieces = [columns.empty_table()]
        for rows in _row_groups(files[table], columns):
            ids = rows.column("user_id")
            pieces.append(rows.filter(pc.equal(ids, user_id)))
            if table in TIMED_TABLES:
                last = pc.max(rows.column("event_time_us")).as_py()
                end_us = max(end_us, last)
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
    # Strictly before the request: the log's last event is part of it.
    time_us = np.array([end_us + 1], np.int64)
    filled = raw_request(shard, np.zeros(1, np.int64), time_us, inputs)
    request = {
        i.name: np.full((1, *i.shape), i.absent, i.numpy_dtype) for i in inputs
    } | filled
    impressions = own.get("impressions")
    if "surface" in request and impressions is not None and len(impressions):
        newest = impressions.sort_by([("event_time_us", "descending")])
        request["surface"][0] = newest["surface"][0].as_py().encode()
    return request


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


def _call(
    folder: str, request: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Answers a request by a SavedModel; all candidates, where it tells."""
    signatures: Any = tf.saved_model.load(folder).signatures
    name = EVERY_CANDIDATE if EVERY_CANDIDATE in signatures else SERVING_DEFAULT
    signature = signatures[name]
    specs = signature.structured_input_signature[1]
    missing = sorted(set(specs) - set(request))
    if missing:
        raise ArtifactError(
            f"The SavedModel {folder} wants {', '.join(missing)}, which the "
            "request does not have: it was exported for another log or "
            "configuration. Run `watchnext export` again."
        )
    answer = signature(
        **{n: tf.constant(request[n], spec.dtype) for n, spec in specs.items()}
    )
    return {name: values.numpy() for name, values in answer.items()}


def _row_groups(paths: Sequence[str], columns: pa.Schema) -> Iterator[pa.Table]:
    for path in sorted(paths):
        for place in row_groups(path):
            yield read_row_group(place, columns)
