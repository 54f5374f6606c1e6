"""The buckets by which metrics of either model are cut."""

from collections.abc import Iterator, Sequence

import numpy as np

# Name, from, below.
Bucket = tuple[str, float, float]
# Days from the upload to the moment of the case. A video known at training
# that is uploaded after the moment is a new one, too.
VIDEO_AGE: tuple[Bucket, ...] = (
    ("under_2_days", -np.inf, 2),
    ("2_to_7_days", 2, 7),
    ("7_to_30_days", 7, 30),
    ("over_30_days", 30, np.inf),
)
OUT_OF_VOCABULARY = "out_of_vocabulary"


def masks(
    values: np.ndarray, buckets: Sequence[Bucket]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each bucket's name and which values [n] are in it; NaN is in none."""
    for name, least, below in buckets:
        yield name, (values >= least) & (values < below)
