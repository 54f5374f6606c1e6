"""A trained model's own folder: what it is (JSON) and its weights.

`model.json` has all that the constructor needs; `weights` is a checkpoint
without optimiser and step. So a model is a function of the folder alone.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from models.keras_setup import tf
from schemas.errors import ArtifactError

_DESCRIPTION, _WEIGHTS = "model.json", "weights"


def write_model(
    folder: str,
    description: Mapping[str, Any],
    parts: Mapping[str, tf.Module | tf.Variable],
) -> None:
    """Writes a description and the variables of the named parts."""
    tf.io.gfile.makedirs(folder)
    path = tf.io.gfile.join(folder, _DESCRIPTION)
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(description, indent=1, sort_keys=True))
    # By name, not by how Keras happens to track them.
    checkpoint = tf.train.Checkpoint(**parts)
    checkpoint.write(tf.io.gfile.join(folder, _WEIGHTS))


@contextlib.contextmanager
def reading_model(folder: str, kind: str) -> Iterator[dict[str, Any]]:
    """Gives a folder's description; the block rebuilds the model from it.

    Raises:
      ArtifactError: the folder is no saved model, or an incomplete one.
    """
    try:
        path = tf.io.gfile.join(folder, _DESCRIPTION)
        with tf.io.gfile.GFile(path) as file:
            description: dict[str, Any] = json.load(file)
        yield description
    except (KeyError, ValueError, AssertionError, tf.errors.OpError) as error:
        raise ArtifactError(
            f"{folder} holds no complete {kind} model: {error}. Train it again."
        ) from error


def read_weights(
    folder: str, parts: Mapping[str, tf.Module | tf.Variable]
) -> None:
    """Restores the parts; inside `reading_model`.

    Raises:
      AssertionError: the checkpoint has other variables.
    """
    checkpoint = tf.train.Checkpoint(**parts)
    path = tf.io.gfile.join(folder, _WEIGHTS)
    checkpoint.read(path).assert_consumed()
