"""Puts exported SavedModels where TensorFlow Serving looks for them.

    work/serving/models.config
    work/serving/retrieval/1/   work/serving/ranking/1/

The path stays while versions come: a server that watches it loads each new
one. Each carries the key of the export that it is a copy of.
"""

import shutil
from pathlib import Path

from models.keras_setup import tf
from pipeline.console import say
from schemas.artifacts import Artifact, join

SERVING_FOLDER = "serving"
_KEY_FILE = "assets.extra/watchnext_export"
_LAST_FILE = "saved_model.pb"
_ENTRY = """  config {{
    name: "{0}"
    base_path: "/models/{0}"
    model_platform: "tensorflow"
  }}
"""


def publish(export: Artifact, workdir: str) -> dict[str, str]:
    """Copies each SavedModel of an export to its next version.

    A model whose newest version is a copy of this export is left alone.

    Args:
      export: of the stage `export`: `<model>/<version>/...`.
      workdir: below it is the folder `serving`.

    Returns:
      model -> folder of its newest version.
    """
    models = sorted({name.split("/")[0] for name in export.names()})
    folders = {}
    for model in models:
        base = join(workdir, SERVING_FOLDER, model)
        newest = max(_versions(base), default=0)
        folder = join(base, str(newest))
        if not newest or _key(folder) != export.key:
            # Or a killed copy that has only its number: it keeps it.
            folder = join(base, str(newest + 1))
            _copy(join(export.path, model, "1"), folder, export.key)
            say(f"published {folder}")
        folders[model] = folder
    config = join(workdir, SERVING_FOLDER, "models.config")
    entries = "".join(_ENTRY.format(model) for model in models)
    with tf.io.gfile.GFile(config, "w") as file:
        file.write(f"model_config_list {{\n{entries}}}\n")
    return folders


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


def _copy(source: str, target: str, key: str) -> None:
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
    key_path = join(folder, *_KEY_FILE.split("/"))
    tf.io.gfile.makedirs(key_path.rsplit("/", 1)[0])
    with tf.io.gfile.GFile(key_path, "w") as file:
        file.write(key)
    tf.io.gfile.copy(join(source, _LAST_FILE), last)
    if not remote:
        Path(folder).rename(target)
