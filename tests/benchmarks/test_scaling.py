"""The law, the counted shuffle and the numbers of the document."""

import re

import apache_beam as beam
import pytest

from beam_jobs.runners import pipeline_options, run_pipeline
from benchmarks.scaling_document import JOBS, Law, document
from benchmarks.shuffle import counted_shuffle


def test_the_law_is_the_line_of_least_squares() -> None:
    # Points (0, 1), (1, 2), (2, 6): slope 2.5, intercept 3 - 2.5 = 0.5,
    # residuals 0.5, -1, 0.5, as shares of what was measured.
    runs = [
        {"events": millions * 1_000_000, "cost": cost}
        for millions, cost in ((0, 1.0), (1, 2.0), (2, 6.0))
    ]
    law = Law.fit(runs, "cost")
    assert (law.start, law.per_million) == pytest.approx((0.5, 2.5))
    assert law.residuals == pytest.approx((0.5, -0.5, 0.5 / 6))
    assert law.at(4_000_000) == pytest.approx(10.5)


def test_shuffled_bytes_are_those_of_the_groupings() -> None:
    with counted_shuffle() as shuffled, run_pipeline(pipeline_options()) as job:
        _ = (
            job.pipeline
            | beam.Create([(n % 3, b"x" * 1000) for n in range(100)], False)
            | beam.GroupByKey()
            | beam.Map(lambda group: None)
        )
    # 100 values of 1,000 bytes; a key, lengths and a window each.
    assert 100_000 < shuffled.total < 104_000
    with run_pipeline(pipeline_options()) as job:
        _ = job.pipeline | beam.Create([(1, b"y")], False) | beam.GroupByKey()
    assert shuffled.total < 104_000


def test_the_arithmetic_of_the_document() -> None:
    # Every job: 3.6 CPU s and 20 MB per million events.
    runs = [
        {
            "events": millions * 1_000_000,
            "cpu_s": 5 + 3.6 * millions,
            "seconds": 4 + 2.0 * millions,
            "peak_rss_gib": 1.0,
            "shuffled_bytes": 20e6 * millions,
        }
        for millions in (1, 3, 10)
    ]
    text = document(
        {
            "machine": {
                "cores": 2,
                "memory_gib": 8.0,
                "machine": "x86_64",
                "gemm_gflops": 100.0,
                "copy_gb_per_s": 10.0,
                "load_average": 0.0,
                "versions": {"python": "3.11"},
            },
            "sizes": [1_000_000, 3_000_000, 10_000_000],
            "config": "beam: {num_shards: 8}\n",
            "sha256": "00ff",
            "element_bytes": 8 << 20,
            "slice_rows": 1000,
            "one_pass_shards": 128,
            "runs": {job: runs for job in JOBS},
        }
    )
    plain = re.sub(r"\s+", " ", text)
    # 6 jobs x 3.6 s x 100,000 million = 2.16e6 s = 600 core hours; x 2 vCPUs
    # / 4 = 300 worker hours; / 4 h = 75.
    assert "21.60 s x 100,000 million / 3,600 s = 600 core hours" in plain
    assert "**300 worker hours**" in plain
    assert "**75 workers**" in plain
    # 20 B x 1e11 = 2 TB a job. 2e12 / 2^26 = 29,802.3 shards, root 172.6.
    assert "move **12.00 TB**" in plain
    assert "2.00 TB / 64 MiB = **29,803 shards**" in plain
    # At most 128 groups: 29,803 / 128 = 232.8; 131,072 / 128 = 1,024.
    assert "into 128 groups, which leaves 1,024 rows a batch" in plain
    assert "into its 233 shards" in plain
    # 131,072 / 29,803.
    assert "leave 4.4 rows a slice" in plain
    # 24e12 B / (75 x 14,400 s).
    assert "22.2 MB/s a worker" in plain
    assert "| 3,000,000 | 1 | 15.8 | 10.0 | 1.00 | 60.0 |" in text
    assert "CPU seconds = 5.00 + 3.60 M" in text
    assert max(map(len, text.splitlines())) <= 80
