"""How often each video is a label of the training examples.

The unigram sampler and the correction of in-batch negatives need the
distribution of the labels as the batches hold them. That is not the
vocabulary's: examples are drawn by user, the same number for each.
"""

from collections.abc import Sequence

import numpy as np

from models.inputs import mapped_ahead
from models.keras_setup import tf
from schemas.errors import InputError

_RECORDS_PER_BATCH = 8192


def label_counts(
    files: Sequence[str], label: str, num_classes: int
) -> np.ndarray:
    """Reads one pass over the examples, parsing nothing but the label.

    Args:
      files: TFRecords of training examples.
      label: key of the label, an id in 1..V.
      num_classes: V.

    Returns:
      int64 [V], the counts of 1..V.

    Raises:
      InputError: a label is not in 1..V.
    """
    spec = {label: tf.io.FixedLenFeature([], tf.int64)}
    counts = np.zeros(num_classes + 1, np.int64)
    records = tf.data.TFRecordDataset(sorted(files)).batch(_RECORDS_PER_BATCH)
    labels = mapped_ahead(
        records, lambda batch: tf.io.parse_example(batch, spec)[label]
    )
    for ids in labels.as_numpy_iterator():
        if ids.min() < 1 or ids.max() > num_classes:
            raise InputError(
                f"Expected labels from 1 to {num_classes}, received "
                f"{ids.min()} to {ids.max()}: the examples were made with "
                "another vocabulary. Run `prepare` again."
            )
        counts += np.bincount(ids, minlength=num_classes + 1)
    return counts[1:]
