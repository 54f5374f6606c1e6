"""Big logs of the simulated platform, in bounded memory, equal every time.

A log of many events is several platforms side by side: each is simulated
alone, its users get the platform's prefix, and the days of all are merged. So
the number of users grows with the log and a user's history does not. Videos
keep their names: the vocabularies and the transform graph of one platform
serve every size.

Files are in the order of time, not by user: about a million rows each, in row
groups of 131,072, below `<folder>/<part>/` for the parts train, valid and
test. A folder that is there already is used as it is.
"""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_jobs import transform, vocabularies
from beam_jobs.runners import pipeline_options
from beam_jobs.sources.simulated import simulate
from beam_jobs.split import PARTS, time_bounds
from beam_jobs.watch_rows import PartName
from schemas.config import Config, SplitConfig
from schemas.events import TIMED_TABLES, EventSchema
from schemas.features import feature_set
from schemas.simulator_config import SimulatorConfig
from schemas.split import BOUNDS_FILE, DAY_US, SplitBounds

ROW_GROUP_ROWS = 131_072
ROW_GROUPS_PER_FILE = 8
# Of the platform with all defaults: rows per user of its 30 days.
ROWS_PER_USER = {"watches": 23.2, "searches": 7.2, "impressions": 56.2}
# The largest platform simulated at once: its tables take about 0.6 GB.
MAX_PLATFORM_USERS = 40_000
_DONE = "log.json"


@dataclasses.dataclass(frozen=True)
class Log:
    """A log's files and what describes them.

    Attributes:
      path: the folder.
      schema: the columns that the platform's tables have, all five of them.
      bounds: of its split.
      rows: table -> number of rows, over all parts.
    """

    path: Path
    schema: EventSchema
    bounds: SplitBounds
    rows: dict[str, int]

    def files(self, table: str, *parts: str) -> list[str]:
        """Files of a table: of some parts, or of all."""
        folders = parts if table in TIMED_TABLES else ("all",)
        return [
            str(path)
            for part in folders or PARTS
            for path in sorted((self.path / part).glob(f"{table}-*"))
        ]

    def split_files(
        self, *parts: PartName
    ) -> dict[PartName, dict[str, list[str]]]:
        """Part -> timed table -> files."""
        tables = [t for t in TIMED_TABLES if t in self.rows]
        return {p: {t: self.files(t, p) for t in tables} for p in parts}


def read_log(path: Path) -> Log:
    """Opens a folder that `make_log` filled."""
    described = json.loads((path / _DONE).read_text())
    return Log(
        path,
        EventSchema.from_json((path / "schema.json").read_text()),
        SplitBounds.from_json((path / BOUNDS_FILE).read_text()),
        described["rows"],
    )


def make_log(
    path: Path, num_events: int, tables: Sequence[str] = TIMED_TABLES
) -> Log:
    """Simulates a log of about `num_events` rows in the timed tables.

    Args:
      path: the folder; filled unless it holds a finished log.
      num_events: rows of all the given tables together.
      tables: which timed tables to write; users and videos always are.
    """
    if (path / _DONE).exists():
        return read_log(path)
    shutil.rmtree(path, ignore_errors=True)
    scratch = path / "platforms"
    scratch.mkdir(parents=True)
    users = num_events / sum(ROWS_PER_USER[t] for t in tables)
    platforms = max(
        1, round(num_events / 1e6), -int(-users // MAX_PLATFORM_USERS)
    )
    config = SimulatorConfig(num_users=max(20, round(users / platforms)))
    rows = dict.fromkeys((*tables, "users", "videos"), 0)
    for number in range(platforms):
        logs = simulate(config, seed=number)
        schema = EventSchema.of_tables(logs.tables)
        if number == 0:
            _write(path, "all", "videos", [logs.tables["videos"]], schema)
            rows["videos"] = logs.tables["videos"].num_rows
        for table in (*tables, "users"):
            renamed = _with_prefix(logs.tables[table], f"p{number:03d}")
            rows[table] += renamed.num_rows
            _write_days(scratch / f"{table}-{number}", renamed, config)
        del logs
    _merge(path, scratch, schema, tables, platforms, config)
    shutil.rmtree(scratch)
    (path / "schema.json").write_text(schema.to_json())
    (path / _DONE).write_text(json.dumps({"rows": rows}))
    return read_log(path)


def make_graph(path: Path, num_events: int) -> Path:
    """Vocabularies and transform graph of a log with all tables.

    Returns:
      A folder with the vocabularies and `transform_fn/`.
    """
    folder = path / "graph"
    if (folder / transform.FOLDER).exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    log = make_log(path, num_events)
    folder.mkdir()
    config, options = Config(), pipeline_options()
    train = log.split_files("train")["train"]
    entities = {table: log.files(table) for table in ("users", "videos")}
    features = feature_set(
        log.schema, config.retrieval_examples, config.ranking_examples
    )
    vocabularies.run(
        train,
        entities["users"],
        entities["videos"],
        log.bounds,
        log.schema,
        features,
        config.vocabularies,
        config.beam,
        str(folder),
        options,
    )
    transform.run(
        files=train | entities,
        vocabulary_folder=str(folder),
        output=str(folder),
        schema=log.schema,
        retrieval=config.retrieval_examples,
        ranking=config.ranking_examples,
        normalization=config.normalization,
        shards=config.beam,
        seed=config.seed,
        utc_offset_hours=config.split.utc_offset_hours,
        train_end_us=log.bounds.train_end_us,
        options=options,
    )
    return folder


def _with_prefix(rows: pa.Table, prefix: str) -> pa.Table:
    names = pc.binary_join_element_wise(prefix, rows.column("user_id"), "")
    return rows.set_column(0, "user_id", names)


def _day_edges_us(config: SimulatorConfig) -> np.ndarray:
    """Midnights between the days of a log, UTC."""
    first_us = np.datetime64(config.start_date, "us").astype(np.int64)
    return first_us + DAY_US * np.arange(1, config.num_days)


def _write_days(path: Path, rows: pa.Table, config: SimulatorConfig) -> None:
    """One row group a day, in the order of time; users are one group."""
    ends = [rows.num_rows]
    if "event_time_us" in rows.column_names:
        rows = rows.sort_by("event_time_us")
        times = rows.column("event_time_us").to_numpy()
        ends = [*np.searchsorted(times, _day_edges_us(config)), len(times)]
    with pq.ParquetWriter(path, rows.schema, compression="lz4") as writer:
        start = 0
        for end in ends:
            day = rows.slice(start, end - start)
            writer.write_table(day, row_group_size=max(1, day.num_rows))
            start = end


def _merge(
    path: Path,
    scratch: Path,
    schema: EventSchema,
    tables: Sequence[str],
    platforms: int,
    config: SimulatorConfig,
) -> None:
    """Joins the platforms' days and writes the split's parts."""
    split = SplitConfig()
    edges_us = _day_edges_us(config)
    bounds, _ = time_bounds(int(edges_us[0]) - 1, int(edges_us[-1]), split)
    (path / BOUNDS_FILE).write_text(bounds.to_json())
    train_days = config.num_days - split.valid_days - split.test_days
    ends = (train_days, train_days + split.valid_days, config.num_days)
    for table in tables:
        start = 0
        for part, end in zip(PARTS, ends, strict=True):
            days = _days(scratch, table, platforms, range(start, end))
            _write(path, part, table, days, schema)
            start = end
    users = _days(scratch, "users", platforms, range(1))
    _write(path, "all", "users", users, schema)


def _days(
    scratch: Path, table: str, platforms: int, days: Sequence[int]
) -> Iterator[pa.Table]:
    """The rows of each day, of all platforms, in the order of time."""
    files = [pq.ParquetFile(scratch / f"{table}-{n}") for n in range(platforms)]
    for day in days:
        rows = pa.concat_tables([f.read_row_group(day) for f in files])
        if "event_time_us" in rows.column_names:
            rows = rows.sort_by(
                [("event_time_us", "ascending"), ("user_id", "ascending")]
            )
        yield rows


def _write(
    path: Path,
    part: str,
    table: str,
    pieces: Sequence[pa.Table] | Iterator[pa.Table],
    schema: EventSchema,
) -> None:
    """Writes pieces one after another as files of even row groups."""
    folder = path / part
    folder.mkdir(exist_ok=True)
    kinds = schema.arrow(table)
    groups = _row_groups(pieces, kinds)
    for number, first in enumerate(groups):
        name = folder / f"{table}-{number:05d}.parquet"
        with pq.ParquetWriter(name, kinds, compression="zstd") as writer:
            writer.write_table(first)
            for _ in range(ROW_GROUPS_PER_FILE - 1):
                following = next(groups, None)
                if following is not None:
                    writer.write_table(following)


def _row_groups(
    pieces: Sequence[pa.Table] | Iterator[pa.Table], kinds: pa.Schema
) -> Iterator[pa.Table]:
    waiting = kinds.empty_table()
    for piece in pieces:
        waiting = pa.concat_tables(
            [waiting, piece.select(kinds.names).cast(kinds)]
        )
        while waiting.num_rows >= ROW_GROUP_ROWS:
            yield waiting.slice(0, ROW_GROUP_ROWS)
            waiting = waiting.slice(ROW_GROUP_ROWS)
    if waiting.num_rows:
        yield waiting


def main() -> None:
    """Makes one log, or the graph; prints the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--num_events", type=int, required=True)
    parser.add_argument("--tables", default=",".join(TIMED_TABLES))
    parser.add_argument("--graph", action="store_true")
    args = parser.parse_args()
    log = make_log(args.path, args.num_events, args.tables.split(","))
    if args.graph:
        make_graph(args.path, args.num_events)
    print(json.dumps({"rows": log.rows}))


if __name__ == "__main__":
    main()
