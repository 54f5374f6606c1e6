"""Counts of labels in TFRecords against the labels written."""

from pathlib import Path

import numpy as np
import pytest

from models.keras_setup import tf
from models.label_counts import label_counts
from schemas.errors import InputError


def write(path: Path, labels: list[int]) -> str:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for label in labels:
            example = tf.train.Example()
            example.features.feature["label"].int64_list.value.append(label)
            example.features.feature["other"].float_list.value.append(1.0)
            writer.write(example.SerializeToString())
    return str(path)


def test_labels_of_all_files_are_counted(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(1, 7, size=9000).tolist()
    files = [
        write(tmp_path / "a", labels[:8500]),
        write(tmp_path / "b", labels[8500:]),
    ]
    found = label_counts(files, "label", 7)
    # 7 never occurs.
    assert found.tolist() == [labels.count(i) for i in range(1, 8)]


@pytest.mark.parametrize("label", [0, 8])
def test_a_label_of_another_vocabulary_is_refused(
    tmp_path: Path, label: int
) -> None:
    with pytest.raises(InputError, match="from 1 to 7"):
        label_counts([write(tmp_path / "a", [3, label])], "label", 7)
