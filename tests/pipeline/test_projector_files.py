"""The projector's files, read as TensorBoard's plugin documents them."""

import csv
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.projector_files import (
    CONFIG,
    LABELS,
    VECTORS,
    video_labels,
    write_projector_files,
)
from schemas.vocabularies import Vocabulary


def test_vectors_and_labels_are_read_back(tmp_path):
    vectors = np.array([[0.5, -1e-7], [3.0, 123456.0]], np.float32)
    labels = {
        "video_id": ["a", "b"],
        "topics": [["x", "y"], None],
        "title": ["tab\there", "line\nbreak"],
    }
    write_projector_files(str(tmp_path), vectors, labels)
    # The message ProjectorConfig as text: field, value.
    fields = re.findall(r"(\w+): (\S+)", (tmp_path / CONFIG).read_text())
    assert sorted(fields) == [
        ("metadata_path", f'"{LABELS}"'),
        ("tensor_name", '"video_embeddings"'),
        ("tensor_path", f'"{VECTORS}"'),
        ("tensor_shape", "2"),
        ("tensor_shape", "2"),
    ]
    np.testing.assert_allclose(
        np.loadtxt(tmp_path / VECTORS, delimiter="\t"), vectors, rtol=1e-5
    )
    with open(tmp_path / LABELS, newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    # Several columns: the first line names them.
    assert rows == [
        ["video_id", "topics", "title"],
        ["a", "x, y", "tab here"],
        ["b", "", "line break"],
    ]


def test_a_second_run_replaces_the_files(tmp_path):
    for value in (1.0, 2.0):
        write_projector_files(
            str(tmp_path), np.full((1, 2), value), {"video_id": ["a"]}
        )
    assert (tmp_path / VECTORS).read_text() == "2\t2\n"


def test_as_many_labels_as_vectors(tmp_path):
    with pytest.raises(ValueError, match="2 values of 'video_id'"):
        write_projector_files(
            str(tmp_path), np.zeros((2, 3)), {"video_id": ["a"]}
        )


def test_labels_are_in_the_order_of_the_vocabulary(tmp_path):
    videos = Vocabulary.of_terms("video", ["c", "a", "b"], [9, 5, 1])
    paths = []
    for name, ids in (("one", ["a", "x"]), ("two", ["c"])):
        paths.append(str(tmp_path / f"{name}.parquet"))
        channels = [f"of {video}" for video in ids]
        pq.write_table(
            pa.table({"video_id": ids, "channel_id": channels}), paths[-1]
        )
    # b is in no file, and beyond the two most watched.
    assert video_labels(videos, paths, 2) == {
        "video_id": ["c", "a"],
        "count": [9, 5],
        "channel_id": ["of c", "of a"],
    }
    assert video_labels(videos, paths, 3)["channel_id"][2] is None
    assert video_labels(videos, [], 1) == {"video_id": ["c"], "count": [9]}
