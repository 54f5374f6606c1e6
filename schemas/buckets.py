"""Names of event files: `<table>-SSSSS-of-NNNNN.parquet`.

File S of N has exactly the rows whose key (the user; in `videos` the video)
hashes to shard S of N, so that jobs over users read it without a shuffle.
"""

import re

_NAME = re.compile(r"[a-z_]+-(\d{5,})-of-(\d{5,})\.parquet")


def bucket_name(table: str, shard: int, num_shards: int) -> str:
    """The file of one shard of a table."""
    return f"{table}-{shard:05d}-of-{num_shards:05d}.parquet"


def bucket_of(path: str) -> tuple[int, int]:
    """Shard and number of shards that a file's name tells; (-1, 0) if none."""
    found = _NAME.fullmatch(path.rsplit("/", 1)[-1])
    return (int(found[1]), int(found[2])) if found else (-1, 0)
