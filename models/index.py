"""Builds, checks and reads the index of a corpus.

In: candidate vectors with their biases, and queries of the trained model.
Out, in a folder: ScaNN's searcher, the partition that it learned, cut for
stock operations (`PartitionedTopK`), and `index.json` with the chosen settings
and the recall curves of both.

    candidates.npy   float32 [V, D + 1], the last dimension is the bias
    axes.npy         float32 [D + 1, D + 1], principal; what follows is turned
    scann/           what ScaNN serialises
    partition/       members, centroids, profile, spreads; where there is a tree
    index.json
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from models.index_sweep import ExactAnswer, sweep_pieces, sweep_scann
from models.keras_setup import scann, tf
from models.partition import Partition, cut
from models.partitioned_top_k import PartitionedTopK
from models.principal_axes import principal_axes, turned_on_disk
from models.scann_top_k import (
    ScannSettings,
    ScannTopK,
    build_searcher,
    learned_leaves,
)
from models.top_k import ExactTopK, with_one
from schemas.config import IndexConfig
from schemas.errors import ArtifactError

CANDIDATES_FILE = "candidates.npy"
AXES_FILE = "axes.npy"
DESCRIPTION_FILE = "index.json"
_SCANN, _PARTITION = "scann", "partition"


@dataclasses.dataclass(frozen=True)
class IndexRecall:
    """Of the exact top `index.neighbors`, on queries that chose nothing."""

    scann: float
    stock: float


def build_index(
    vectors: np.ndarray, queries: np.ndarray, config: IndexConfig, folder: str
) -> IndexRecall:
    """Builds an index and writes it into an existing folder.

    ScaNN needs 2.2 times the bytes of the vectors beside them while it builds.
    So that this is all, it reads them from a mapped file, whose pages the
    system takes back when it needs them; give up your own reference.

    Args:
      vectors: float32 [V, D + 1], of `with_bias`.
      queries: float [B, D], at least 2; every other one chooses the settings,
        the others measure the recall.
      folder: local, or a path of TensorFlow's file systems.

    Raises:
      ValueError: there are not two queries.
    """
    if len(queries) < 2:
        raise ValueError(
            "An index needs at least 2 validation queries, to choose its "
            f"settings and to measure them; got {len(queries)}."
        )
    neighbors = min(config.neighbors, len(vectors))
    axes = principal_axes(vectors)
    with _writing(folder) as local, tempfile.TemporaryDirectory() as scratch:
        np.save(os.path.join(local, CANDIDATES_FILE), vectors)
        np.save(os.path.join(local, AXES_FILE), axes)
        vectors = turned_on_disk(vectors, axes, scratch)
        exact = ExactAnswer.search(vectors, with_one(queries) @ axes, neighbors)
        chosen_by, measured_on = exact.part(np.s_[::2]), exact.part(np.s_[1::2])
        scann_folder = os.path.join(local, _SCANN)
        index = _built(vectors, axes, config, scann_folder)
        settings, scann_curve = sweep_scann(
            index, queries[::2], chosen_by, config
        )
        ids, _ = index.search(queries[1::2], neighbors)
        description: dict[str, Any] = {
            "videos": len(vectors),
            "neighbors": neighbors,
            "scann": dataclasses.asdict(settings),
            "scann_curve": [dataclasses.asdict(p) for p in scann_curve],
            "scann_recall": measured_on.recall(ids),
            "stock_recall": 1.0,
        }
        # Before the partition is cut: its copy of the vectors goes.
        del index
        leaves = learned_leaves(scann_folder)
        if leaves is not None:
            partition = cut(
                vectors,
                leaves,
                config.rows_per_piece,
                np.square(chosen_by.queries).mean(axis=0),
            )
            _save_partition(partition, os.path.join(local, _PARTITION))
            searched, curve = sweep_pieces(partition, chosen_by, config)
            needed = partition.needed_pieces(
                measured_on.queries, measured_on.rows
            )
            description |= {
                "stock": {"searched": searched, "storage": config.storage},
                "stock_curve": [dataclasses.asdict(p) for p in curve],
                "stock_recall": float((needed <= searched).mean()),
            }
        _write_json(os.path.join(local, DESCRIPTION_FILE), description)
    return IndexRecall(description["scann_recall"], description["stock_recall"])


def load_scann(folder: str, k: int) -> ScannTopK:
    """Reads ScaNN's search of an index, with its chosen settings.

    Args:
      folder: what `build_index` wrote.
      k: how many are returned, at most all videos.

    Raises:
      ArtifactError: the folder holds no index.
    """
    with _reading(folder) as local:
        description = _description(local, folder)
        # ScaNN reads all of it into memory.
        searcher = scann.scann_ops_pybind.load_searcher(
            os.path.join(local, _SCANN)
        )
        axes = np.load(os.path.join(local, AXES_FILE))
    settings = ScannSettings(**description["scann"])
    videos = description["videos"]
    k = min(k, videos)
    return ScannTopK(k, settings=settings).attach(searcher, axes, videos)


def load_stock(folder: str, k: int) -> ExactTopK | PartitionedTopK:
    """Reads the search of stock operations: what a SavedModel carries.

    Exact where the corpus is too small for a partition.

    Args:
      folder: what `build_index` wrote.
      k: how many are returned, at most all videos.

    Raises:
      ArtifactError: the folder holds no index.
    """
    with _reading(folder) as local:
        description = _description(local, folder)
        vectors = np.load(os.path.join(local, CANDIDATES_FILE))
        k = min(k, len(vectors))
        index: ExactTopK | PartitionedTopK = ExactTopK(k)
        if stock := description.get("stock"):
            partition = _load_partition(os.path.join(local, _PARTITION))
            axes = np.load(os.path.join(local, AXES_FILE))
            # Chosen for `index.neighbors`; more need more room.
            room = partition.pieces_with_room(k)
            stock["searched"] = max(stock["searched"], room)
            index = PartitionedTopK(k, partition, axes, **stock)
    index.index(vectors[:, :-1], biases=vectors[:, -1])
    return index


def refuse_below_gate(recall: IndexRecall, config: IndexConfig) -> None:
    """Checks an index's recalls before it is published.

    Raises:
      ArtifactError: one is below `index.min_recall`; names both.
    """
    for name, share in dataclasses.asdict(recall).items():
        # Written so that NaN is refused too.
        if not share >= config.min_recall:
            raise ArtifactError(
                f"The {name} index finds {share:.4f} of the exact top "
                f"{config.neighbors}, the gate is {config.min_recall:.4f}; it "
                f"is not published. Raise index.{name}_recall, which it is "
                "tuned for, or lower index.min_recall."
            )


def _built(
    vectors: np.ndarray, axes: np.ndarray, config: IndexConfig, folder: str
) -> ScannTopK:
    """Builds ScaNN's searcher and serialises it."""
    searcher = build_searcher(vectors, config)
    os.makedirs(folder)
    # Relative, since the folder is renamed when it is published.
    searcher.serialize(folder, relative_path=True)
    neighbors = min(config.neighbors, len(vectors))
    return ScannTopK(neighbors, config).attach(searcher, axes, len(vectors))


def _save_partition(partition: Partition, folder: str) -> None:
    os.makedirs(folder)
    for field in dataclasses.fields(partition):
        path = os.path.join(folder, f"{field.name}.npy")
        np.save(path, getattr(partition, field.name))


def _load_partition(folder: str) -> Partition:
    return Partition(
        **{
            field.name: np.load(os.path.join(folder, f"{field.name}.npy"))
            for field in dataclasses.fields(Partition)
        }
    )


def _write_json(path: str, value: dict[str, Any]) -> None:
    with open(path, "w") as file:
        file.write(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _description(local: str, folder: str) -> dict[str, Any]:
    path = os.path.join(local, DESCRIPTION_FILE)
    if not os.path.exists(path):
        raise ArtifactError(
            f"{folder} is no index: it has no {DESCRIPTION_FILE}. Run "
            "`watchnext index` again."
        )
    with open(path) as file:
        description: dict[str, Any] = json.load(file)
    return description


@contextlib.contextmanager
def _writing(folder: str) -> Iterator[str]:
    """A local folder for what knows local files only; copied at the end."""
    if "://" not in folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as local:
        yield local
        _copy_tree(local, folder)


@contextlib.contextmanager
def _reading(folder: str) -> Iterator[str]:
    """The folder, or a local copy of a remote one."""
    if "://" not in folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as local:
        _copy_tree(folder, local)
        yield local


def _copy_tree(source: str, target: str) -> None:
    for path, _, names in tf.io.gfile.walk(source):
        below = path[len(source) :].strip("/")
        place = tf.io.gfile.join(target, below) if below else target
        tf.io.gfile.makedirs(place)
        for name in names:
            tf.io.gfile.copy(
                tf.io.gfile.join(path, name), tf.io.gfile.join(place, name)
            )
