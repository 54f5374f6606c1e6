"""What the figures were measured on: speed of the machine, and versions."""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable

import numpy as np

_PACKAGES = (
    "apache-beam",
    "numpy",
    "polars",
    "pyarrow",
    "tensorflow",
    "tensorflow-transform",
    "tfx-bsl",
)
_GEMM_SIZE = 1024
_COPY_BYTES = 256 << 20
_REPETITIONS = 5


def gemm_gflops() -> float:
    """Best rate of a float32 product of two 1024 x 1024 matrices.

    2 n^3 operations; all cores, by NumPy's BLAS.
    """
    rng = np.random.default_rng(0)
    a, b = rng.random((2, _GEMM_SIZE, _GEMM_SIZE), np.float32)
    return 2 * _GEMM_SIZE**3 / _best_seconds(lambda: a @ b) / 1e9


def copy_gb_per_s() -> float:
    """Best rate of copying 256 MiB, read plus written, by one core."""
    source = np.zeros(_COPY_BYTES, np.uint8)
    target = np.ones_like(source)
    return (
        2 * _COPY_BYTES / _best_seconds(lambda: np.copyto(target, source)) / 1e9
    )


def describe() -> dict[str, object]:
    """Calibration and versions."""
    return {
        "gemm_gflops": round(gemm_gflops(), 1),
        "copy_gb_per_s": round(copy_gb_per_s(), 2),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        ),
        "load_average": round(os.getloadavg()[0], 2),
        "machine": platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _best_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    print(json.dumps(describe()))
