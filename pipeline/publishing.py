"""Puts exported SavedModels where TensorFlow Serving looks for them.

    work/serving/models.config
    work/serving/retrieval/1/   work/serving/ranking/1/

The path stays while versions come: a server that watches it loads each new
one. Each carries the key of the export that it is a copy of, and what it showed
at the gates (`pipeline/push.py`).
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.keras_setup import tf
from pipeline.console import say
from schemas.artifacts import Artifact, join

SERVING_FOLDER = "serving"
_KEY_FILE = "assets.extra/watchnext_export"
_RECORD_FILE = "assets.extra/watchnext_gates.json"
_LAST_FILE = "saved_model.pb"
_ENTRY = """  config {{
    name: "{0}"
    base_path: "/models/{0}"
    model_platform: "tensorflow"
  }}
"""


def publish(
    export: Artifact, workdir: str, record: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Copies each SavedModel of an export to its next version.

    A model whose newest version is a copy of this export is left alone. No
    gate is asked here: see `pipeline.push.push`.

    Args:
      export: of the stage `export`: `<model>/<version>/...`.
      workdir: below it is the folder `serving`.
      record: of the gates, kept beside each version.

    Returns:
      model -> folder of its newest version.
    """
    models = models_of(export)
    folders = {}
    for model in models:
        base = join(workdir, SERVING_FOLDER, model)
        newest = max(_versions(base), default=0)
        folder = join(base, str(newest))
        if not newest or _key(folder) != export.key:
            # Or a killed copy that has only its number: it keeps it.
            folder = join(base, str(newest + 1))
            source = join(export.path, model, "1")
            _copy(source, folder, export.key, record or {})
            say(f"published {folder}")
        folders[model] = folder
    config = join(workdir, SERVING_FOLDER, "models.config")
    entries = "".join(_ENTRY.format(model) for model in models)
    with tf.io.gfile.GFile(config, "w") as file:
        file.write(f"model_config_list {{\n{entries}}}\n")
    return folders


def models_of(export: Artifact) -> list[str]:
    """Names of an export's SavedModels."""
    return sorted({name.split("/")[0] for name in export.names()})


def is_published(export: Artifact, workdir: str) -> bool:
    """Whether each model's newest version is a copy of this export."""
    return all(
        _key(join(base, str(max(_versions(base), default=0)))) == export.key
        for model in models_of(export)
        for base in [join(workdir, SERVING_FOLDER, model)]
    )


def published(workdir: str, model: str) -> str | None:
    """Folder of the newest whole version of a model, if there is one."""
    base = join(workdir, SERVING_FOLDER, model)
    for number in sorted(_versions(base), reverse=True):
        folder = join(base, str(number))
        if _key(folder):
            return folder
    return None


def record_of(folder: str) -> dict[str, Any]:
    """What a published version showed at the gates; empty if not kept."""
    path = join(folder, *_RECORD_FILE.split("/"))
    if not tf.io.gfile.exists(path):
        return {}
    with tf.io.gfile.GFile(path) as file:
        return dict(json.load(file))


def _versions(base: str) -> list[int]:
    names = tf.io.gfile.listdir(base) if tf.io.gfile.exists(base) else []
    return [int(n.strip("/")) for n in names if n.strip("/").isdecimal()]


def _key(folder: str) -> str:
    """Which export a version is a copy of; "" of one that is not whole."""
    path = join(folder, *_KEY_FILE.split("/"))
    if not all(map(tf.io.gfile.exists, (path, join(folder, _LAST_FILE)))):
        return ""
    with tf.io.gfile.GFile(path) as file:
        return str(file.read())


def _copy(
    source: str, target: str, key: str, record: Mapping[str, Any]
) -> None:
    """Copies a version; `saved_model.pb` last.

    A server loads a folder as soon as its name is a number. A local one gets
    its name last, by a rename, so that no number is ever half there. Object
    stores have no rename of folders: there `saved_model.pb` comes last, and a
    server that looks earlier fails to load the version, keeps the one before
    and tries again.
    """
    remote = "://" in target
    folder = target if remote else f"{target}.partial"
    if not remote and Path(folder).exists():  # Left by a killed copy.
        shutil.rmtree(folder)
    last = join(folder, _LAST_FILE)
    for parent, _, names in tf.io.gfile.walk(source):
        below = parent.removeprefix(source).strip("/")
        into = join(folder, *below.split("/")) if below else folder
        tf.io.gfile.makedirs(into)
        for name in names:
            if join(into, name) != last:
                tf.io.gfile.copy(join(parent, name), join(into, name))
    tf.io.gfile.makedirs(join(folder, "assets.extra"))
    with tf.io.gfile.GFile(join(folder, *_KEY_FILE.split("/")), "w") as file:
        file.write(key)
    with tf.io.gfile.GFile(join(folder, *_RECORD_FILE.split("/")), "w") as file:
        file.write(json.dumps(record, indent=1, sort_keys=True) + "\n")
    tf.io.gfile.copy(join(source, _LAST_FILE), last)
    if not remote:
        Path(folder).rename(target)
