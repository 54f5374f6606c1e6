"""Raw requests of the validation part, as its users would have sent them.

In: the split's events up to the end of validation. Out: retrieval requests
with the video that was watched next, and ranking requests with what became
of their impressions. The test part is not read.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs import lagged_statistics
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.events import read_tables
from beam_jobs.histories import RawRequests, string_objects
from beam_jobs.lagged_statistics import LaggedStatistics
from beam_jobs.ranking_examples import label_values
from beam_jobs.ranking_requests import RankingBatch, RankingRequests
from beam_jobs.retrieval_labels import choose_cases
from beam_jobs.user_shards import UserShard, build_shard, split_batch
from pipeline.stages import DataStages
from schemas.buckets import bucket_of
from schemas.errors import InputError
from schemas.requests import RawInput, raw_inputs

_PARTS = ("train", "valid")
_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Cases:
    """Requests just before a watch.

    Attributes:
      requests: raw inputs by name, [n, ...]; candidates are absent.
      watched: object [n] of bytes, the video that was watched next.
    """

    requests: Mapping[str, np.ndarray]
    watched: np.ndarray


class ValidationRequests:
    """Of up to so many users who completed a watch in the validation part.

    Users are spread over files by a hash, so those of the first files are a
    sample; of the other files nothing is read.

    Args:
      data: the data stages.
      users: how many.

    Raises:
      InputError: there is none.
    """

    def __init__(self, data: DataStages, users: int) -> None:
        self._data = data
        self._shard = _shard(data, users)

    @property
    def inputs(self) -> tuple[RawInput, ...]:
        config = self._data.run.config
        return raw_inputs(
            self._data.schema,
            config.retrieval_examples,
            config.ranking_examples,
        )

    @cached_property
    def cases(self) -> Cases:
        """One per user, just before the first watch of the part."""
        videos = self._shard.arrow("watches", "video_id")
        names = pc.unique(videos)
        codes = pc.index_in(videos, value_set=names)
        found = choose_cases(self._shard, codes.to_numpy(), "valid")
        filled = RawRequests(self._shard, self.inputs)(
            found.users, found.times_us
        )
        shape = len(found.users)
        requests: dict[str, np.ndarray] = {
            i.name: np.full((shape, *i.shape), i.absent, i.numpy_dtype)
            for i in self.inputs
        }
        first = found.labels.values[found.labels.row_splits[:-1]]
        watched = string_objects(names)[first]
        return Cases({**requests, **filled}, watched)

    def impressions(
        self,
    ) -> Iterator[tuple[RankingBatch, dict[str, np.ndarray]]]:
        """Batches of ranking requests, and label -> float32 [E, C].

        Lagged statistics are those of the days before each request.
        """
        data, config = self._data, self._data.run.config.ranking_examples
        statistics = None
        if config.lagged_statistics:
            videos = data.events.files("videos-")
            path = data.ranking_examples().file(lagged_statistics.FILE)
            catalogue = VideoCatalogue.read(videos, data.schema)
            statistics = LaggedStatistics.read(path, catalogue)
        requests = RankingRequests(
            self._shard,
            self.inputs,
            ("valid",),
            config.max_candidates,
            statistics,
            data.run.config.split.utc_offset_hours,
        )
        labels = label_values(self._shard, data.schema)
        for start in range(0, len(requests), _BATCH):
            batch = requests.batch(start, start + _BATCH)
            yield batch, {n: c[batch.rows] for n, c in labels.items()}


def _shard(data: DataStages, most: int) -> UserShard:
    """All events of some users up to the end of validation."""
    schemas = {
        t: data.schema.arrow(t)
        for t in ("watches", "searches", "impressions", "users")
        if data.schema.has(t)
    }
    users, buckets = _users(
        data.part("valid")["watches"], schemas["watches"], most
    )
    cap = data.run.config.beam.max_events_per_user
    pieces = []
    for table, columns in schemas.items():
        if table == "users":
            files = {"all": data.entity_files("users")}
        else:
            files = {
                part: [
                    f for f in data.part(part)[table] if bucket_of(f) in buckets
                ]
                for part in _PARTS
            }
        for part, paths in files.items():
            for path in paths:
                rows = read_tables([path], columns)
                rows = rows.filter(pc.is_in(rows.column("user_id"), users))
                pieces += [
                    piece
                    for _, piece in split_batch(
                        rows, table=table, part=part, num_shards=1, cap=cap
                    )
                ]
    return build_shard((0, pieces), schemas=schemas, cap=cap)


def _users(
    files: list[str], columns: pa.Schema, most: int
) -> tuple[pa.Array, set[tuple[int, int]]]:
    """Users of the first files, and which files of any table theirs are."""
    users, buckets = pa.array([], pa.string()), set()
    for path in sorted(files):
        rows = read_tables([path], columns)
        rows = rows.filter(rows.column("completed"))
        found = pc.unique(rows.column("user_id"))
        users = pa.concat_arrays([users, found.slice(0, most - len(users))])
        buckets.add(bucket_of(path))
        if len(users) >= most:
            break
    if not len(users):
        raise InputError(
            "The validation part has no completed watch, so that nothing can "
            "be measured before publishing. Set split.valid_days higher."
        )
    return users, buckets
