"""The process of a contestant: it writes examples and says what that took."""

import argparse
import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from benchmarks.given import PARTS, Given
from benchmarks.processes import total_cpu_s
from schemas.examples import ExampleKey

# A prime: sums of time mod this tell examples of equal ids apart.
_PRIME = 1_000_003


def run_contestant(write_examples: Callable[..., object]) -> None:
    """Runs `write_examples(given, output)` once; prints JSON.

    Seconds and CPU seconds are those of the call: imports are over, loading
    vocabularies and graph is part of it. What was written is read back after.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--graph", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num_shards", type=int)
    args = parser.parse_args()
    given = Given.read(args.log, args.graph)
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    options = {}
    if args.num_shards is not None:
        options["num_shards"] = args.num_shards
    cpu_s, started = total_cpu_s(), time.perf_counter()
    counts = write_examples(given, args.output, **options)
    measured = {
        "seconds": time.perf_counter() - started,
        "cpu_s": total_cpu_s() - cpu_s,
        "peak_rss_gib": peak_rss_gib(),
        "events": given.num_events(),
        "counts": counts,
    }
    measured["examples"] = {
        part: checksum(args.output, part, given.keys(part)) for part in PARTS
    }
    shutil.rmtree(args.output)
    print(json.dumps(measured))


def checksum(
    folder: Path, part: str, keys: tuple[ExampleKey, ...]
) -> dict[str, int]:
    """What examples in any order have in common.

    Returns:
      `count`, and per key of integers the sum, over all examples, of its
      values weighted by what tells the example apart (label time mod p).
    """
    files = sorted(str(f) for f in folder.glob(f"{part}-*.tfrecord"))
    spec = {k.name: k.parse_spec() for k in keys if k.dtype == "int64"}

    def sums(records: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed: dict[str, Any] = tf.io.parse_example(records, spec)
        weight = parsed["event_time_us"] % _PRIME
        return {
            name: tf.reduce_sum(
                (tf.reduce_sum(v, axis=1) if len(v.shape) > 1 else v) * weight
            )
            for name, v in parsed.items()
            if name != "event_time_us"
        } | {"count": tf.size(records, tf.int64), "time": tf.reduce_sum(weight)}

    totals: dict[str, int] = {"count": 0}
    batches = tf.data.TFRecordDataset(files).batch(4096).map(sums)
    for batch in batches.as_numpy_iterator():
        for name, value in batch.items():
            totals[name] = totals.get(name, 0) + int(value)
    return totals


def peak_rss_gib() -> float:
    """The most memory that this process, or one of its children, had."""
    kib = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return kib / 2**20
