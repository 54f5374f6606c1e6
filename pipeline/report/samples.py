"""What users would see: lists by the exported SavedModels, and how fast."""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from beam_jobs.events import read_tables
from models.recommender import EVERY_CANDIDATE
from models.saved_models import SERVING_DEFAULT
from models.serving import RECOMMENDER, RETRIEVAL
from pipeline.pages.blocks import (
    Block,
    Cell,
    Missing,
    Table,
    Text,
    side_by_side,
    words,
)
from pipeline.publishing import models_of
from pipeline.recommend import (
    Recommendation,
    busiest_users,
    described,
    request_of_user,
)
from pipeline.report.work_folder import Side, WorkFolder, titled
from pipeline.serve.served_models import LoadedVersion
from schemas.artifacts import join
from schemas.errors import InputError, WatchnextError

USERS, ROWS, WATCHED = 3, 8, 5
_WARM_UP, _CALLS = 3, 30
_SECONDS = "expected_watch_time_s"

Arrays = Mapping[str, np.ndarray]


class _Export:
    """The exported models of a work directory, and the log they are asked of.

    Raises:
      ArtifactError: there is no export, or not what it is asked with.
    """

    def __init__(self, folder: WorkFolder) -> None:
        export, events = folder.needed("export"), folder.needed("events")
        self.schema, self._inputs = folder.schema, folder.raw_inputs
        self.files = {t: events.files(f"{t}-") for t in self.schema.columns}
        self.videos = read_tables(
            self.files["videos"], self.schema.arrow("videos")
        )
        self._models = {
            name: LoadedVersion(name, 1, join(export.path, name, "1"))
            for name in (RETRIEVAL, RECOMMENDER)
            if name in models_of(export)
        }

    def request(self, user: str) -> dict[str, np.ndarray]:
        return request_of_user(user, self.files, self.schema, self._inputs)

    def rows(self, request: Arrays) -> list[Recommendation]:
        """The first of the list, with what is known of each candidate."""
        *_, best = self._models.values()
        signature = EVERY_CANDIDATE
        if not best.has(signature):
            signature = SERVING_DEFAULT
        answer = _ask(best, request, signature)
        return described(answer, request, self.videos)[:ROWS]

    def latencies(self, request: Arrays) -> dict[str, float | None]:
        """Median and 90th percentile of each model, milliseconds."""
        found: dict[str, float | None] = {}
        for name, model in self._models.items():
            taken = []
            for _ in range(_WARM_UP + _CALLS):
                started = time.perf_counter()
                _ask(model, request, SERVING_DEFAULT)
                taken.append(1e3 * (time.perf_counter() - started))
            measured = taken[_WARM_UP:]
            found[f"{name}, median"] = statistics.median(measured)
            tenths = statistics.quantiles(measured, n=10)
            found[f"{name}, 90 % within"] = tenths[-1]
        return found

    def title_of(self, video: str) -> str:
        if not self.schema.has("videos", "title"):
            return video
        at = self.videos.column("video_id").index(video).as_py()
        title = None if at < 0 else self.videos.column("title")[at].as_py()
        return video if title is None else str(title)


def recommendations(sides: Sequence[Side]) -> Iterator[Block]:
    """Lists of the test's busiest users, of each side."""
    exports: dict[str, _Export] = {}
    for side in sides:
        try:
            exports[side.name] = _Export(side.folder)
        except WatchnextError as error:
            yield Missing(f"{titled('No lists', side, len(sides))}: {error}")
    users: dict[str, None] = {}
    for side in sides:
        if side.name in exports and not users:
            users = dict.fromkeys(_users(side.folder, exports[side.name]))
    asked: dict[str, dict[str, np.ndarray]] = {}
    for user in users:
        shown = {}
        for name, export in exports.items():
            try:
                request = export.request(user)
            except InputError:
                yield Missing(f"{name} does not know the user {user}.")
                continue
            asked.setdefault(name, request)
            shown[name] = export.rows(request)
            if len(shown) == 1:
                yield Text(
                    f"watched last: {_last(export, request)}.", f"User {user}"
                )
            title = f"Recommended to {user}"
            if len(sides) > 1:
                title = f"{title} by {name}"
            yield _list(title, shown[name])
        if len(shown) == 2:
            first, second = (
                {row.video_id for row in rows} for rows in shown.values()
            )
            yield Text(
                f"{len(first & second)} of {len(first)} videos are in both "
                "lists."
            )
    if asked:
        names = list(asked)
        yield side_by_side(
            "Milliseconds a request, one at a time",
            names,
            [exports[name].latencies(asked[name]) for name in names],
            f"Of the exported SavedModels in this process, {_CALLS} calls each "
            "on the machine and at the moment that this page was written; "
            "a busy machine is slower.",
        )


def _users(folder: WorkFolder, export: _Export) -> list[str]:
    """The busiest of the test; of the whole log where nothing is split."""
    split = folder.stage("split")
    files = split.files("test/watches-") if split else export.files["watches"]
    watches = read_tables(files, export.schema.arrow("watches"))
    return busiest_users(watches, USERS)


def _last(export: _Export, request: Arrays) -> str:
    watched = [v.decode() for v in request["watch_history_video_id"][0] if v]
    titles = [export.title_of(video) for video in watched[:WATCHED]]
    return "; ".join(titles) or "nothing"


def _list(title: str, rows: Sequence[Recommendation]) -> Block:
    if not rows:
        return Missing(f"{title}: nothing, every known video was watched.")
    tasks = [n for n in rows[0].predictions if n != _SECONDS]
    cells: list[list[Cell]] = [
        [
            f"{place}. {row.title or row.video_id}",
            row.channel_id or "",
            row.why,
            f"{words(row.source)} #{row.retrieval_rank}",
            row.expected_watch_time_s,
            *(row.predictions[name] for name in tasks),
        ]
        for place, row in enumerate(rows, 1)
    ]
    return Table(
        title,
        [
            *("video", "channel", "why", "found by"),
            *("expected s", *(f"P({words(name)})" for name in tasks)),
        ],
        cells,
        text_columns=4,
    )


def _ask(
    model: LoadedVersion, request: Arrays, signature: str
) -> dict[str, np.ndarray]:
    """Answers a request, of which the model takes its own inputs."""
    own = {name: request[name] for name in model.specs(signature)}
    return model.predict(own, signature)
