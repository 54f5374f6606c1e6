"""Times single queries: contestants take turns, each query a call."""

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Times:
    """Of each query, in seconds: by the clock, and of all processors."""

    wall_s: np.ndarray
    cpu_s: np.ndarray

    def describe(self) -> dict[str, float]:
        """Median and 99th percentile, in milliseconds."""
        return {
            f"{name}p{percent}_ms": float(np.percentile(values, percent) * 1e3)
            for name, values in (("", self.wall_s), ("cpu_", self.cpu_s))
            for percent in (50, 99)
        }


def query_times(
    contestants: Mapping[str, Callable[[np.ndarray], object]],
    queries: np.ndarray,
    rounds: int,
) -> dict[str, Times]:
    """Calls every contestant with one query [1, D] after the other.

    Args:
      contestants: by name.
      queries: [B, D].
      rounds: so often all queries are asked.
    """
    taken: dict[str, list[tuple[float, float]]] = {n: [] for n in contestants}
    for search in contestants.values():
        for query in queries[:5]:
            search(query[np.newaxis])
    for _ in range(rounds):
        for query in queries:
            for name, search in contestants.items():
                cpu_s, started = time.process_time(), time.perf_counter()
                search(query[np.newaxis])
                wall_s = time.perf_counter() - started
                taken[name].append((wall_s, time.process_time() - cpu_s))
    return {n: Times(*np.array(values).T) for n, values in taken.items()}
