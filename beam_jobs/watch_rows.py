"""Which watches may be a label, a count or a test case."""

from typing import Literal

import numpy as np
import pyarrow.compute as pc

from beam_jobs.histories import watch_end_us
from beam_jobs.shard_rows import PART, PART_CODES
from beam_jobs.user_shards import UserShard

PartName = Literal["train", "valid", "test"]


def undated(shard: UserShard) -> np.ndarray:
    """bool [n]: watches whose time only encodes the order."""
    if not shard.has("watches", "undated"):
        return np.zeros(shard.tables["watches"].num_rows, bool)
    flags = pc.fill_null(shard.arrow("watches", "undated"), False)
    return flags.to_numpy(zero_copy_only=False)


def completed_rows(
    shard: UserShard, part: PartName, ended_by_us: int | None = None
) -> np.ndarray:
    """Rows of the completed, dated watches of a part, ascending int64 [m].

    Args:
      shard: the users' events.
      part: which part's watches.
      ended_by_us: if given, only watches spent by then: before that moment
        nobody knew that they would be completed.
    """
    chosen = shard.numpy("watches", "completed").astype(bool) & ~undated(shard)
    chosen &= shard.numpy("watches", PART) == PART_CODES[part]
    if ended_by_us is not None:
        chosen &= watch_end_us(shard)[:-1] <= ended_by_us
    return np.flatnonzero(chosen)
