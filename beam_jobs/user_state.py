"""What the next day may ask for: per user, a bounded piece of the past.

A request of the next day looks back over the last H watches and impressions
and the last S searches before its cut. The cut is after midnight, except of a
request that began before midnight and goes on after it. So the state at a
midnight holds, of each table, the last rows before midnight and before the
cut of each open request; nothing else of the past is ever asked for.

A request is open if it began on the day that ends and one of its impressions
is among its user's last H. A user without a row on a day keeps the state.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.events import read_tables
from beam_jobs.histories import TimeIndex, request_times
from beam_jobs.output_files import write_parquet
from beam_jobs.shard_rows import PART
from beam_jobs.user_shards import UserShard
from schemas.artifacts import join
from schemas.config import RetrievalExamplesConfig
from schemas.events import EventSchema

FOLDER = "state"
# `part` of rows that come from the state: context alone, in no part.
CARRIED = -1
CUT = "request_cut_us"


@dataclasses.dataclass(frozen=True)
class StateSchema:
    """The state's tables: their columns, and how far a request looks back.

    Attributes:
      columns: per table, as stored; the first is `user_id`.
      lengths: per table, rows that a request sees at most.
    """

    columns: Mapping[str, pa.Schema]
    lengths: Mapping[str, int]

    @classmethod
    def of(
        cls, schema: EventSchema, config: RetrievalExamplesConfig
    ) -> "StateSchema":
        """The state of a log."""
        named = schema.has("impressions", "request_id")
        names = {
            "watches": (
                *("user_id", "video_id", "event_time_us", "watch_time_s"),
                "completed",
            ),
            "searches": ("user_id", "query", "event_time_us"),
            "impressions": (
                *("user_id", "video_id", "event_time_us"),
                *(("request_id",) if named else ()),
            ),
        }
        columns = {
            table: pa.schema([schema.arrow(table).field(n) for n in chosen])
            for table, chosen in names.items()
            if schema.has(table)
        }
        if named:
            cut = pa.field(CUT, pa.int64())
            columns["impressions"] = columns["impressions"].append(cut)
        lengths = {t: config.history_length for t in columns}
        if "searches" in lengths:
            lengths["searches"] = config.searches
        return cls(columns, lengths)


@dataclasses.dataclass(frozen=True)
class UserState:
    """The state of a shard's users at a midnight.

    Attributes:
      schema: of the tables.
      tables: rows ascending by (user_id, event_time_us); equal times in the
        order they had among the events.
    """

    schema: StateSchema
    tables: Mapping[str, pa.Table]

    @classmethod
    def read(
        cls, schema: StateSchema, folder: str | None, shard: int, shards: int
    ) -> "UserState":
        """Reads a shard's state; without a folder it is empty."""
        tables = {
            table: read_tables([_path(folder, table, shard, shards)], columns)
            if folder is not None
            else columns.empty_table()
            for table, columns in schema.columns.items()
        }
        return cls(schema, tables)

    def write(self, folder: str, shard: int, shards: int) -> None:
        """Writes one file a table."""
        for table, rows in self.tables.items():
            write_parquet(_path(folder, table, shard, shards), rows)

    def followed_by(self, day: UserShard) -> UserShard:
        """The events of a day, with the state before them as context.

        Args:
          day: events after the state, in the order of a shard. Its users
            include the state's.

        Returns:
          a shard; in its column `part` the state's rows are `CARRIED`.
        """
        tables, codes = dict(day.tables), dict(day.user_codes)
        for table, carried in self.tables.items():
            rows = pa.concat_tables(
                [_marked(carried), day.tables[table]],
                promote_options="default",
            )
            found = pc.index_in(
                carried.column("user_id").combine_chunks(),
                value_set=day.user_ids,
            )
            users = np.concatenate(
                [found.to_numpy().astype(np.int64), day.user_codes[table]]
            )
            # Stable, and the state is older: (user, time) ascends again.
            order = np.argsort(users, kind="stable")
            tables[table] = rows.take(order).combine_chunks()
            codes[table] = users[order]
        return UserShard(day.shard, day.user_ids, tables, codes)

    def after(self, day: UserShard, start_us: int, end_us: int) -> "UserState":
        """The state at the end of a day.

        Args:
          day: what `followed_by` gave.
          start_us, end_us: the day, [start, end) in UTC microseconds.
        """
        users = np.arange(len(day.user_ids))
        ends = np.full(users.size, end_us)
        if CUT in self.schema.columns.get("impressions", pa.schema([])).names:
            day, openers, cuts_us = self._with_open_requests(
                day, start_us, end_us
            )
            users = np.concatenate([users, openers])
            ends = np.concatenate([ends, cuts_us])
        tables = {}
        for table, columns in self.schema.columns.items():
            keep = _seen_by(day, table, users, ends, self.schema.lengths[table])
            rows = day.tables[table].select(columns.names).cast(columns)
            tables[table] = rows.filter(pa.array(keep)).combine_chunks()
        return UserState(self.schema, tables)

    def _with_open_requests(
        self, day: UserShard, start_us: int, end_us: int
    ) -> tuple[UserShard, np.ndarray, np.ndarray]:
        """Leaves `request_id` and cut on the rows of open requests only.

        Returns:
          The shard, and user code and cut of each open request.
        """
        users = day.user_codes["impressions"]
        keys, cuts_us = request_times(day)
        everybody = np.arange(len(day.user_ids))
        last = _seen_by(
            day,
            "impressions",
            everybody,
            np.full(everybody.size, end_us),
            self.schema.lengths["impressions"],
        )
        names = day.arrow("impressions", "request_id")
        named = names.is_valid().to_numpy(zero_copy_only=False)
        is_open = named & last & (cuts_us >= start_us)
        rows = day.tables["impressions"]
        for name, values in (
            ("request_id", names),
            (CUT, pa.array(cuts_us, pa.int64())),
        ):
            nothing = pa.scalar(None, values.type)
            kept = pc.if_else(pa.array(is_open), values, nothing)
            rows = rows.drop_columns(
                [n for n in (name,) if n in rows.column_names]
            ).append_column(name, kept)
        first = np.unique(keys[is_open], return_index=True)[1]
        changed = UserShard(
            day.shard,
            day.user_ids,
            day.tables | {"impressions": rows},
            day.user_codes,
        )
        return changed, users[is_open][first], cuts_us[is_open][first]


def _seen_by(
    day: UserShard,
    table: str,
    users: np.ndarray,
    times_us: np.ndarray,
    length: int,
) -> np.ndarray:
    """bool [n]: rows among the last `length` before any (user, time)."""
    index = TimeIndex(day.user_codes[table], day.times_us(table))
    start, end = index.before(users, times_us)
    start = np.maximum(start, end - length)
    steps = np.zeros(day.tables[table].num_rows + 1, np.int64)
    np.add.at(steps, start, 1)
    np.add.at(steps, end, -1)
    return np.cumsum(steps)[:-1] > 0


def _marked(carried: pa.Table) -> pa.Table:
    """Carried rows in no part: never labels."""
    marks = np.full(carried.num_rows, CARRIED, np.int8)
    return carried.append_column(PART, pa.array(marks))


def _path(folder: str, table: str, shard: int, shards: int) -> str:
    name = f"{table}-{shard:05d}-of-{shards:05d}.parquet"
    return join(folder, FOLDER, name)
