"""Begins a retrieval model with an earlier one's weights, term by term.

In: a trained model with its terms, and the terms of a new one. Out: the new
model's initial weights. A term that both know keeps its row, whatever its id;
a term that is gone takes its row with it; a new video gets the mean row of its
channel's earlier videos, else of its topics', else what a new model has. The
layers move as they are, so the tower's input must be the same.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.embeddings import local_component
from models.keras_setup import tf
from models.query_tower import space_of
from models.retrieval import RetrievalModel
from models.saved_weights import reading_model
from schemas.errors import ArtifactError
from schemas.features import FIXED_SPACES, FeatureSet, from_json
from schemas.model_config import RetrievalConfig
from schemas.vocabularies import (
    Vocabulary,
    read_vocabulary,
    vocabulary_files,
)

_VOCABULARIES = "vocabularies"
# Fields of the model's section that no weight's shape or meaning follows from.
_OF_TRAINING = {
    "dropout",
    "negatives",
    "num_negatives",
    "sampler",
    "logq_correction",
    "table_optimizer",
    "table_learning_rate",
    "learning_rate",
    "warm_start_rate_share",
    "schedule",
    "warmup_steps",
    "batch_size",
    "lanes",
    "epochs",
    "selection_metric",
    "patience",
    "checkpoint_every",
}


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Which groups (channels, say) earlier and new videos belong to.

    Attributes:
      old_ids, old_groups: int64 [P], pairs of an earlier id and a group.
      new_ids, new_groups: int64 [Q], pairs of a new id and a group.
    """

    old_ids: np.ndarray
    old_groups: np.ndarray
    new_ids: np.ndarray
    new_groups: np.ndarray


def moved_table(
    old: np.ndarray,
    initial: np.ndarray,
    old_ids: np.ndarray,
    groupings: Sequence[Grouping] = (),
) -> np.ndarray:
    """Returns the rows of an earlier table under new ids.

    Args:
      old: float32 [V_old + 1, ...], the earlier table.
      initial: float32 [V + 1, ...], what a new model begins with.
      old_ids: int64 [V], the earlier id of ids 1 .. V; 0 for a new term.
      groupings: tried in turn for new terms; a term in several groups gets
        the mean of their means, a group without an earlier member has none.

    Returns:
      float32 [V + 1, ...]; row 0 is that of `initial`.

    Raises:
      ValueError: the tables' rows are of unequal shape.
    """
    if old.shape[1:] != initial.shape[1:]:
        raise ValueError(
            f"Expected rows of one shape, received {old.shape[1:]} in the "
            f"earlier table and {initial.shape[1:]} in the new one."
        )
    moved = initial.copy()
    kept = np.flatnonzero(old_ids) + 1
    moved[kept] = old[old_ids[kept - 1]]
    missing = np.concatenate(([False], old_ids == 0))
    for grouping in groupings:
        means, known = _group_means(old, grouping, missing)
        moved[known] = means
        missing[known] = False
    return moved


def _group_means(
    old: np.ndarray, grouping: Grouping, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means over the groups of the wanted new ids, and which ids have one."""
    asked = wanted[grouping.new_ids]
    ids, groups = grouping.new_ids[asked], grouping.new_groups[asked]
    member = np.isin(grouping.old_groups, groups)
    by_group, found = _means(
        old[grouping.old_ids[member]], grouping.old_groups[member]
    )
    has_mean = np.isin(groups, found)
    rows = np.searchsorted(found, groups[has_mean])
    return _means(by_group[rows], ids[has_mean])


def _means(
    rows: np.ndarray, owners: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean row of each owner, [n, ...], and the owners [n], ascending."""
    order = np.argsort(owners, kind="stable")
    found, first, counts = np.unique(
        owners[order], return_index=True, return_counts=True
    )
    if not found.size:
        return rows[:0], found
    # In float64: a mean of equal rows is that row.
    sums = np.add.reduceat(rows[order].astype(np.float64), first, axis=0)
    shape = (-1, *[1] * (rows.ndim - 1))
    return (sums / counts.reshape(shape)).astype(rows.dtype), found


def video_groupings(
    old: Vocabulary, new: Vocabulary, videos: pa.Table | None
) -> tuple[Grouping, ...]:
    """Channels and topics of videos, in the order they are asked.

    Args:
      old, new: the videos of the earlier and of the new model.
      videos: the log's video table (`video_id`, and `channel_id` string and
        `topics` list of string as far as it has them); None if it has none.
    """
    if videos is None:
        return ()
    ids = [v.ids(videos.column("video_id")) for v in (old, new)]
    groupings = []
    for name in ("channel_id", "topics"):
        if name not in videos.column_names:
            continue
        column = videos.column(name).combine_chunks()
        rows = np.arange(len(column))
        if pa.types.is_list(column.type):
            rows = pc.list_parent_indices(column).to_numpy()
            column = pc.list_flatten(column)
        rows = rows[column.is_valid().to_numpy(zero_copy_only=False)]
        terms = column.drop_null()
        groups = terms.dictionary_encode().indices.to_numpy()
        old_known, new_known = (i[rows] > 0 for i in ids)
        groupings.append(
            Grouping(
                ids[0][rows][old_known],
                groups[old_known].astype(np.int64),
                ids[1][rows][new_known],
                groups[new_known].astype(np.int64),
            )
        )
    return tuple(groupings)


def keep_terms(folder: str, model: RetrievalModel, vocabularies: str) -> None:
    """Copies a model's terms beside its weights, for a later warm start.

    Args:
      folder: that the model was saved to.
      model: whose ID spaces are meant.
      vocabularies: folder of the vocabularies that it was trained with.
    """
    target = tf.io.gfile.join(folder, _VOCABULARIES)
    tf.io.gfile.makedirs(target)
    for space in _spaces(model):
        both = zip(
            vocabulary_files(vocabularies, space),
            vocabulary_files(target, space),
            strict=True,
        )
        for source, copy in both:
            tf.io.gfile.copy(source, copy)


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """An earlier model with its terms, ready to begin a new one.

    Attributes:
      source: where it is from, for messages.
      model: the earlier model.
      terms: its vocabularies by space.
    """

    source: str
    model: RetrievalModel
    terms: Mapping[str, Vocabulary]

    @classmethod
    def read(cls, folder: str) -> "WarmStart":
        """Loads a saved model and its terms; outside of any strategy's scope.

        Raises:
          ArtifactError: the folder has no complete model, or no terms.
        """
        model = RetrievalModel.load(folder)
        path = tf.io.gfile.join(folder, _VOCABULARIES)
        return cls(folder, model, _read_terms(path, model))

    def apply(
        self,
        model: RetrievalModel,
        vocabularies: str,
        videos: pa.Table | None,
    ) -> None:
        """Overwrites a new model's initial weights.

        Args:
          model: the new one, of the same layers.
          vocabularies: folder of its vocabularies.
          videos: see `video_groupings`.

        Raises:
          ArtifactError: the layers are not the same.
        """
        check_layers(
            self.source, model.features, model.config, model.example_age
        )
        terms = _read_terms(vocabularies, model)
        groupings = {
            "video": video_groupings(
                self.terms["video"], terms["video"], videos
            )
        }

        def move(space: str, old: tf.Variable, new: tf.Variable) -> None:
            initial = local_component(new).numpy()
            ids = np.arange(1, len(initial))  # A fixed space's stay.
            if space in terms:
                ids = self.terms[space].ids(terms[space].terms)
            new.assign(
                moved_table(old.numpy(), initial, ids, groupings.get(space, ()))
            )

        before = self.model
        for name, table in model.embeddings.tables.items():
            move(space_of(name), before.embeddings.tables[name], table)
        move("video", before.output_embeddings, model.output_embeddings)
        move("video", before.output_biases, model.output_biases)
        for old, new in zip(
            before.dense_variables, model.dense_variables, strict=True
        ):
            new.assign(old.numpy())


def _spaces(model: RetrievalModel) -> list[str]:
    """The ID spaces of a model that have a vocabulary."""
    spaces = dict.fromkeys(map(space_of, model.embeddings.tables))
    return [space for space in spaces if space not in FIXED_SPACES]


def _read_terms(folder: str, model: RetrievalModel) -> dict[str, Vocabulary]:
    """The vocabularies of a model's ID spaces, from their folder."""
    terms = {space: read_vocabulary(folder, space) for space in _spaces(model)}
    for space, vocabulary in terms.items():
        rows = int(model.embeddings.tables[space].shape[0]) - 1
        if vocabulary.size != rows:
            raise ArtifactError(
                f"{folder} has {vocabulary.size} terms of {space!r}, the "
                f"model that should have them {rows}. Train it again."
            )
    return terms


def check_layers(
    folder: str, features: FeatureSet, config: RetrievalConfig, age: bool
) -> None:
    """Checks that a saved model's layers can be those of a new one.

    Args:
      folder: of the saved model; its description alone is read.
      features, config: of the new one.
      age: whether it learns the example age.

    Raises:
      ArtifactError: they cannot, naming what differs; or the folder has no
        complete model.
    """
    with reading_model(folder, "retrieval") as saved:
        old = _layers(
            from_json(saved["features"]),
            RetrievalConfig(**saved["config"]),
            saved["example_age"],
        )
    new = _layers(features, config, age)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise ArtifactError(
                f"The model of {folder} cannot begin this one: its {name} is "
                f"{old.get(name)}, here it is {new.get(name)}. Set it as it "
                "was, or train without --warm-start-from."
            )


def _layers(
    features: FeatureSet, config: RetrievalConfig, age: bool
) -> dict[str, Any]:
    """What the shapes and the meaning of a model's weights follow from."""
    return {
        "query features": [
            f"{f.name} ({f.kind}{f' of {f.space}' if f.space else ''})"
            for f in features.select("query")
        ],
        "retrieval_examples.example_age": age,
        **{
            f"retrieval.{name}": value
            for name, value in config.model_dump(mode="json").items()
            if name not in _OF_TRAINING
        },
    }
