"""One data job on a benchmark log, in a process of its own.

`events` is what `ingest` does: rows in the order of time are validated and
bucketed by user. The others are those of `prepare`. The jobs follow one
another as the stages do: each reads what those before it wrote below the same
work folder.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs import (
    event_files,
    ranking_examples,
    retrieval_examples,
    split,
    transform,
    vocabularies,
)
from beam_jobs.event_rows import RawRows
from beam_jobs.runners import pipeline_options
from beam_jobs.watch_rows import PartName
from benchmarks.contest import peak_rss_gib
from benchmarks.logs import ROW_GROUP_ROWS, Log, read_log
from benchmarks.processes import total_cpu_s
from benchmarks.shuffle import counted_shuffle
from schemas.config import Config
from schemas.events import TIMED_TABLES
from schemas.features import FeatureSet, feature_set
from schemas.split import BOUNDS_FILE, SplitBounds

Counts = dict[str, int]


class Jobs:
    """The data jobs, each with a folder below `work`."""

    def __init__(self, log: Log, work: Path) -> None:
        self.log, self.work, self.config = log, work, Config()
        self.options: PipelineOptions = pipeline_options()

    @property
    def features(self) -> FeatureSet:
        config = self.config
        return feature_set(
            self.log.schema, config.retrieval_examples, config.ranking_examples
        )

    @property
    def bounds(self) -> SplitBounds:
        return SplitBounds.read(str(self.work / "split" / BOUNDS_FILE))

    def folder(self, job: str) -> str:
        return str(self.work / job)

    def part(self, part: PartName) -> dict[str, list[str]]:
        """Timed table -> files of a part, as the split wrote them."""
        folder = self.work / "split" / part
        return {
            table: sorted(str(f) for f in folder.glob(f"{table}-*"))
            for table in TIMED_TABLES
        }

    def stored(self, table: str) -> list[str]:
        """Files of a table, as `events` wrote them."""
        folder = self.work / "events"
        return sorted(str(f) for f in folder.glob(f"{table}-*"))

    def events(self) -> Counts:
        sources = []
        for table in (*TIMED_TABLES, "users", "videos"):
            files = self.log.files(table)
            source = event_files.RawTable(
                table,
                [
                    (path, group)
                    for path in files
                    for group in range(pq.read_metadata(path).num_row_groups)
                ],
                read_rows,
                num_bytes=sum(Path(path).stat().st_size for path in files),
            )
            sources.append(source)
        return event_files.run(
            sources,
            self.log.schema,
            self.folder("events"),
            self.config.beam.num_shards,
            self.config.beam.max_bad_share,
            self.options,
        )

    def split(self) -> Counts:
        return split.run(
            {table: self.stored(table) for table in TIMED_TABLES},
            self.log.schema,
            self.config.split,
            self.config.beam.num_shards,
            self.folder("split"),
            self.options,
        )

    def vocabularies(self) -> Counts:
        return vocabularies.run(
            self.part("train"),
            self.stored("users"),
            self.stored("videos"),
            self.bounds,
            self.log.schema,
            self.features,
            self.config.vocabularies,
            self.config.beam,
            self.folder("vocabularies"),
            self.options,
        )

    def transform(self) -> Counts:
        config = self.config
        return transform.run(
            files=self.part("train")
            | {t: self.stored(t) for t in ("users", "videos")},
            vocabulary_folder=self.folder("vocabularies"),
            output=self.folder("transform"),
            schema=self.log.schema,
            retrieval=config.retrieval_examples,
            ranking=config.ranking_examples,
            normalization=config.normalization,
            shards=config.beam,
            seed=config.seed,
            utc_offset_hours=config.split.utc_offset_hours,
            train_end_us=self.bounds.train_end_us,
            options=self.options,
        )

    def retrieval_examples(self) -> Counts:
        config = self.config
        return retrieval_examples.run(
            {"train": self.part("train"), "valid": self.part("valid")},
            self.stored("users"),
            self.bounds,
            self.folder("vocabularies"),
            str(self.work / "transform" / transform.FOLDER),
            self.log.schema,
            config.retrieval_examples,
            config.ranking_examples,
            config.beam,
            config.seed,
            self.folder("retrieval_examples"),
            self.options,
        )

    def ranking_examples(self) -> Counts:
        config = self.config
        train, valid = self.part("train"), self.part("valid")
        return ranking_examples.run(
            files={
                table: {"train": train[table], "valid": valid[table]}
                for table in TIMED_TABLES
            },
            users=self.stored("users"),
            videos=self.stored("videos"),
            transform_path=str(self.work / "transform" / transform.FOLDER),
            output=self.folder("ranking_examples"),
            parts=("train", "valid"),
            schema=self.log.schema,
            retrieval=config.retrieval_examples,
            ranking=config.ranking_examples,
            shards=config.beam,
            utc_offset_hours=config.split.utc_offset_hours,
            options=self.options,
        )


def read_rows(
    part: tuple[str, int], log_start_us: int | None
) -> Iterator[RawRows]:
    """A (file, row group) as raw rows: a reader for `RawTable`."""
    path, group = part
    rows = pq.ParquetFile(path).read_row_group(group)
    first = group * ROW_GROUP_ROWS + 1
    numbers = np.arange(first, first + rows.num_rows)
    yield RawRows(rows, Path(path).name, numbers)


def measure(job: Callable[[], Counts], folder: Path) -> dict[str, object]:
    """Runs a job into an emptied folder.

    Bytes shuffled are the job's own counter `shuffled_bytes` if it has one,
    else what its groupings were given.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cpu_s, started = total_cpu_s(), time.perf_counter()
    with counted_shuffle() as shuffled:
        counts = job()
    return {
        "seconds": time.perf_counter() - started,
        "cpu_s": total_cpu_s() - cpu_s,
        "peak_rss_gib": peak_rss_gib(),
        "shuffled_bytes": counts.get("shuffled_bytes", shuffled.total),
        "counts": counts,
    }


def main() -> None:
    """Runs one job; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    log = read_log(args.log)
    jobs = Jobs(log, args.work)
    measured = measure(getattr(jobs, args.job), args.work / args.job)
    measured["events"] = sum(log.rows[table] for table in TIMED_TABLES)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
