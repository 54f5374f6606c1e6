"""The peer: analyse and transform rows by a polars script, file to file.

Exact quantiles of every column as knots, then each value's quantile, its
square, its root and whether it is missing. The knots follow the definition in
`beam_jobs.normalization`, over all rows; the job takes them from a sample of
2^20 rows where there are more. So quantiles agree to one part in
`num_quantiles` (0.005), and to float32's precision up to 2^20 rows.
"""

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.row_columns import (
    COLUMNS,
    INPUT_COLUMNS,
    NUM_QUANTILES,
    ROWS_FILE,
)

_KNOTS_PER_QUANTILE = 16
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
_DAY_US = 86_400_000_000


def transform_rows(path: Path, output: Path) -> None:
    """Writes `rows.arrow`: a column [4] per quantity, rows in order."""
    rows = read_columns(path)

    def normalized(name: str) -> pl.Series:
        # NumPy searches without Python's lock: columns share the cores.
        knots, levels = exact_knots(rows[name], NUM_QUANTILES)
        return pl.Series(
            name,
            normalize(rows[name].to_numpy(), knots, levels),
            pl.Array(pl.Float32, 4),
        )

    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        columns = list(pool.map(normalized, COLUMNS))
    pl.DataFrame(columns).write_ipc(output / "rows.arrow")


def read_columns(path: Path) -> pl.DataFrame:
    """The nine quantities, float32, NaN where missing."""
    videos = pl.scan_parquet(path / "all" / "videos-*.parquet").select(
        "video_id", "upload_time_us", pl.col("duration_s").cast(pl.Float32)
    )
    age_us = pl.col("request_time_us") - pl.col("upload_time_us")
    age_s = (age_us / 1e6).cast(pl.Float32)
    return (
        pl.scan_parquet(path / ROWS_FILE)
        .join(videos, on="video_id", how="left", maintain_order="left")
        .select(
            *INPUT_COLUMNS,
            "duration_s",
            video_age_days=age_s / pl.lit(86_400, pl.Float32),
        )
        .with_columns(pl.all().fill_null(float("nan")))
        .collect()
    )


def exact_knots(
    values: pl.Series, num_quantiles: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values at even ranks, with P(X < knot) and P(X <= knot)."""
    ordered = values.drop_nans().sort().to_numpy()
    if not len(ordered):
        return np.zeros(1, np.float32), np.zeros((1, 2), np.float32)
    intervals = _KNOTS_PER_QUANTILE * num_quantiles
    knots = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    if len(knots) > intervals + 1:
        ranks = np.arange(intervals + 1) * (len(ordered) - 1) // intervals
        knots = np.unique(ordered[ranks])
    levels = np.stack(
        [np.searchsorted(ordered, knots, side) for side in ("left", "right")],
        axis=1,
    )
    return knots, (levels / len(ordered)).astype(np.float32)


def normalize(
    values: np.ndarray, knots: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Quantile, square, root and is_missing, float32 [n, 4]."""
    missing = np.isnan(values)
    values = np.where(missing, knots[0], values)
    right = np.searchsorted(knots, values, side="right")
    left = np.maximum(right - 1, 0)
    low = knots[left]
    above = levels[left, 1]
    next_knot = np.append(knots, np.float32(np.inf))[right]
    next_level = np.append(levels[:, 0], np.float32(1))[right]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Below the smallest knot both are that one; the level is 0.
        share = (values - low) / (next_knot - low)
    x = above + share * (next_level - above)
    x = np.where(values == low, levels[left, 0], x)
    x = np.clip(x, 0, _BELOW_ONE)
    x[missing | (right == 0)] = 0
    out = np.empty((len(values), 4), np.float32)
    out[:, 0], out[:, 1], out[:, 2], out[:, 3] = x, x * x, np.sqrt(x), missing
    return out


def main() -> None:
    """Transforms; prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    shutil.rmtree(args.output, ignore_errors=True)
    args.output.mkdir(parents=True)
    transform_rows(args.path, args.output)
    rows = pl.scan_parquet(args.path / ROWS_FILE).select(pl.len()).collect()
    print(json.dumps({"rows": int(rows.item())}))


if __name__ == "__main__":
    main()
