"""The counts of an ingestion: read = good + bad + duplicates per table.

Also says what is wrong with a log in one line: the commonest reasons, an
example and a remedy, because a stage that failed leaves no folder behind.
"""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from beam_jobs.event_rows import DEAD_LETTERS, Counts
from schemas.buckets import bucket_name
from schemas.errors import InputError
from schemas.events import EventSchema

# Nothing can be learnt without these.
NEVER_EMPTY = ("watches", "videos", "users")
# Of a bad table this many reasons are named in the error.
_REASONS_NAMED = 3
_EXAMPLE_CHARS = 160


def shard_path(output: str, table: str, shard: int, num_shards: int) -> str:
    """Full path of a table's file."""
    return FileSystems.join(output, bucket_name(table, shard, num_shards))


def complete(counts: Counts, schema: EventSchema) -> dict[str, int]:
    """Every table has its four counts, zeros too; sorted by name."""
    for table in schema.columns:
        for name in ("read", "good", "bad", "duplicates"):
            counts.setdefault(f"{table}.{name}", 0)
    return dict(sorted(counts.items()))


def check_counts(
    counts: Mapping[str, int],
    schema: EventSchema,
    max_bad_share: float,
    output: str,
    num_shards: int,
) -> None:
    """Refuses too many bad rows and empty tables.

    Args:
      counts: of `complete`.
      schema: what the log has.
      max_bad_share: largest share of bad rows per table.
      output: folder of the `num_shards` dead letter files.
      num_shards: files per table.

    Raises:
      InputError: with the commonest reasons and an example.
    """
    for table in schema.columns:
        read, bad = counts[f"{table}.read"], counts[f"{table}.bad"]
        if bad > max_bad_share * read:
            raise InputError(
                f"{bad:,} of {read:,} rows of {table!r} are bad, more than "
                f"the allowed share {max_bad_share:g}: "
                f"{_reasons(table, counts)}. For example "
                f"{_example(table, output, num_shards)}. "
                f"{_remedy(table, counts)}"
            )
    for table in schema.columns:
        if table in NEVER_EMPTY and not counts[f"{table}.good"]:
            raise InputError(
                f"Table {table!r} has no good row: {counts[f'{table}.read']:,}"
                f" read, {counts[f'{table}.bad']:,} bad. It must not be "
                "empty; check its file and filter."
            )


def _reasons_of(table: str, counts: Mapping[str, int]) -> dict[str, int]:
    prefix = f"{table}.bad."
    found = {
        name.removeprefix(prefix): amount
        for name, amount in counts.items()
        if name.startswith(prefix)
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _reasons(table: str, counts: Mapping[str, int]) -> str:
    found = list(_reasons_of(table, counts).items())
    named = [f"{reason} ({n:,})" for reason, n in found[:_REASONS_NAMED]]
    rest = len(found) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def _remedy(table: str, counts: Mapping[str, int]) -> str:
    top = next(iter(_reasons_of(table, counts)))
    if counts[f"{table}.bad"] == counts[f"{table}.read"]:
        if "(UTC microseconds expected)" in top:
            return (
                "As every row fails, the unit of that time is probably wrong: "
                "`unit` is one of s, ms, us, ns."
            )
        return "As every row fails, the mapping of that column is wrong."
    return "Repair the rows or raise beam.max_bad_share."


def _example(table: str, output: str, num_shards: int) -> str:
    """The first dead letter: a failed stage leaves no folder to look into."""
    found = []
    for shard in range(num_shards):
        path = shard_path(output, DEAD_LETTERS, shard, num_shards)
        with FileSystems.open(path, compression_type="uncompressed") as stream:
            letters = pq.read_table(pa.PythonFile(stream, mode="r"))
        mine = letters.filter(pc.equal(letters.column("table"), table))
        found += mine.slice(0, 1).to_pylist()
    first = min(found, key=lambda letter: (letter["file"], letter["row"]))
    record = first["record"]
    if len(record) > _EXAMPLE_CHARS:
        record = record[:_EXAMPLE_CHARS] + "..."
    return f"{first['file']}, row {first['row']}: {record}"
