"""Files for TensorBoard's projector: the video embeddings, to look around in.

The plugin reads `projector_config.pbtxt` in a run's log folder; values and
labels are tab-separated text. Nothing here needs TensorBoard.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.io.filesystems import FileSystems

from schemas.artifacts import join
from schemas.vocabularies import Vocabulary

# The projector runs in a browser: more points are slow, 6 MB of text at 64
# dimensions.
MOST_POINTS = 10_000
CONFIG, VECTORS, LABELS = (
    "projector_config.pbtxt",
    "video_embeddings.tsv",
    "video_labels.tsv",
)


def write_projector_files(
    folder: str, vectors: np.ndarray, labels: Mapping[str, Sequence[object]]
) -> None:
    """Writes the three files.

    Args:
      folder: a run's log folder.
      vectors: float [N, D].
      labels: column -> N values; tabs and line breaks in them become spaces.

    Raises:
      ValueError: a column has another length than the vectors.
    """
    for name, values in labels.items():
        if len(values) != len(vectors):
            raise ValueError(
                f"Expected {len(vectors)} values of {name!r}, one a vector, "
                f"got {len(values)}."
            )
    _write(join(folder, CONFIG), _config(*vectors.shape))
    numbers = ("\t".join(f"{x:.6g}" for x in row) for row in vectors.tolist())
    _write(join(folder, VECTORS), "".join(f"{line}\n" for line in numbers))
    cells = zip(*labels.values(), strict=True)
    lines = ["\t".join(labels), *("\t".join(map(_cell, row)) for row in cells)]
    _write(join(folder, LABELS), "".join(f"{line}\n" for line in lines))


def video_labels(
    videos: Vocabulary, files: Sequence[str], most: int
) -> dict[str, list[object]]:
    """What is known of the `most` most watched videos.

    Args:
      videos: the vocabulary, by falling count.
      files: Parquet files of the videos table, or none.
      most: how many.

    Returns:
      `video_id`, `count` in the vocabulary, and the table's other columns,
      None where it does not have the video.
    """
    ids = videos.terms.slice(0, most)
    labels: dict[str, list[object]] = {
        "video_id": ids.to_pylist(),
        "count": videos.counts[:most].tolist(),
    }
    if not files:
        return labels
    tables = []
    for path in files:
        with FileSystems.open(path) as stream:
            rows = pq.read_table(stream)
        tables.append(rows.filter(pc.is_in(rows["video_id"], value_set=ids)))
    table = pa.concat_tables(tables)
    place = pc.index_in(ids, value_set=table["video_id"].combine_chunks())
    for name in table.column_names:
        if name != "video_id":
            labels[name] = table[name].take(place).to_pylist()
    return labels


def _config(rows: int, columns: int) -> str:
    """A ProjectorConfig as text; paths are relative to its folder."""
    return f"""\
embeddings {{
  tensor_name: "video_embeddings"
  tensor_shape: {rows}
  tensor_shape: {columns}
  tensor_path: "{VECTORS}"
  metadata_path: "{LABELS}"
}}
"""


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        value = ", ".join(str(v) for v in value)
    return " ".join(str(value).split())


def _write(path: str, text: str) -> None:
    # A second run over the same folder replaces them.
    if FileSystems.exists(path):
        FileSystems.delete([path])
    with FileSystems.create(path) as stream:
        stream.write(text.encode())
