"""Ranking requests of single days, before the transform.

One row is one example: a request with up to C of its impressions, its context
cut at the request's time, lagged statistics as of its day, and what happened
to each candidate. A request that goes on after midnight has rows on both days,
of the same cut, context and key.

    YYYY-MM-DD/ranking-SSSSS-of-NNNNN.parquet
"""

import dataclasses
from collections.abc import Sequence

import pyarrow as pa

from beam_jobs import video_state
from beam_jobs.catalogue import VideoCatalogue
from beam_jobs.lagged_statistics import LaggedStatistics
from beam_jobs.output_files import write_parquet
from beam_jobs.ranking_examples import label_values
from beam_jobs.ranking_requests import RankingRequests
from beam_jobs.runners import count
from beam_jobs.stored_requests import stored_schema, to_table
from beam_jobs.user_shards import UserShard
from schemas.artifacts import join
from schemas.config import RankingExamplesConfig, RetrievalExamplesConfig
from schemas.days import DayRange
from schemas.events import EventSchema
from schemas.examples import ranking_observations
from schemas.requests import RawInput, raw_inputs

_CHUNK = 1024
# Beside the request.
REQUESTS = pa.schema([("user_id", pa.string()), ("request_key", pa.int64())])


def stored_inputs(
    schema: EventSchema,
    retrieval: RetrievalExamplesConfig,
    ranking: RankingExamplesConfig,
) -> tuple[RawInput, ...]:
    """The raw request, and `labels.<name>` of each candidate."""
    labels = [
        RawInput(f"labels.{n}", "float32", "candidate", ranking.max_candidates)
        for n in ranking_observations(schema)
    ]
    return (*raw_inputs(schema, retrieval, ranking), *labels)


def ranking_path(folder: str, day: str, shard: int, shards: int) -> str:
    """Path of a day's ranking requests of a shard."""
    return join(folder, day, f"ranking-{shard:05d}-of-{shards:05d}.parquet")


@dataclasses.dataclass
class RankingDays:
    """Writes a shard's ranking requests of a day.

    Attributes:
      days, parent, output: as of `daily_examples.run`.
      videos: files of the videos table.
      schema, retrieval, ranking: what a request has.
    """

    days: DayRange
    parent: str | None
    output: str
    videos: Sequence[str]
    schema: EventSchema
    retrieval: RetrievalExamplesConfig
    ranking: RankingExamplesConfig

    def statistics(self) -> LaggedStatistics | None:
        """Reads what was known of the videos on each day."""
        if not self.ranking.lagged_statistics:
            return None
        catalogue = VideoCatalogue.read(self.videos, self.schema)
        return video_state.read(self.days, self.parent, self.output, catalogue)

    def write(
        self,
        path: str,
        today: UserShard,
        statistics: LaggedStatistics | None,
    ) -> None:
        """Writes the requests of a day's impressions, ascending by user."""
        requests = RankingRequests(
            today,
            raw_inputs(self.schema, self.retrieval, self.ranking),
            ("train",),
            self.ranking.max_candidates,
            statistics,
            self.days.utc_offset_hours,
        )
        labels = label_values(today, self.schema)
        inputs = stored_inputs(self.schema, self.retrieval, self.ranking)
        kinds = pa.schema([*REQUESTS, *stored_schema(inputs)])
        chunks = [kinds.empty_table()]
        for start in range(0, len(requests), _CHUNK):
            batch = requests.batch(start, start + _CHUNK)
            happened = {
                f"labels.{n}": values[batch.rows]
                for n, values in labels.items()
            }
            stored = to_table(batch.raw | happened, inputs)
            owners = pa.array(batch.user_id, pa.string())
            chunks.append(
                pa.table(
                    [owners, batch.request_key, *stored.columns], schema=kinds
                )
            )
        write_parquet(path, pa.concat_tables(chunks).combine_chunks())
        count("ranking_examples", len(requests))
        count("ranking_requests", requests.num_requests)
