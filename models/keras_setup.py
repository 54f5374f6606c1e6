"""Decide once which Keras and which half of ScaNN this project means.

Everything of ours that trains or serves imports from here:
`from models.keras_setup import keras, tf, tfrs`. Two facts make the order of
these imports matter:

- TensorFlow Recommenders works with Keras 2 only. TensorFlow reads
  TF_USE_LEGACY_KERAS when `tf.keras` is first touched, so the variable must
  be set before; then `tf.keras` is `tf_keras`.
- ScaNN 1.4.2 tries to load a TensorFlow op that is built for TensorFlow 2.20
  and dies beside 2.21 with an undefined symbol. Its other half, which we use,
  needs no TensorFlow: so TensorFlow is hidden while ScaNN is first imported.

This is the one module whose import has effects: the variable, which child
processes inherit on purpose, and the order of imports.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def require_legacy_keras() -> None:
    """Set TF_USE_LEGACY_KERAS=1, or say why it is too late for that.

    Raises:
        ImportError: if `tf.keras` is already Keras 3, or the variable asks
            for it.
    """
    asked = os.environ.get("TF_USE_LEGACY_KERAS", "1")
    if asked.lower() not in ("1", "true"):
        raise ImportError(
            "TF_USE_LEGACY_KERAS must be 1, because TensorFlow Recommenders"
            f" needs Keras 2; got {asked!r}. Unset it."
        )
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    # `tf.keras` is resolved at its first use; asking for the version resolves
    # it, to Keras 2 thanks to the line above unless someone was earlier.
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return
    version = getattr(tensorflow.keras, "version", None)
    if version is not None and version().startswith("3."):
        raise ImportError(
            "`models.keras_setup` must be imported before `tf.keras` is"
            f" used: it is already Keras {version()}, but TensorFlow"
            " Recommenders needs Keras 2. Import `models.keras_setup` first,"
            " or set TF_USE_LEGACY_KERAS=1 in the environment."
        )


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Make `import name` fail with ModuleNotFoundError inside the block.

    The package and all its loaded submodules are back afterwards, as the same
    objects.
    """
    loaded: dict[str, ModuleType] = {
        key: module
        for key, module in sys.modules.items()
        if key == name or key.startswith(f"{name}.")
    }
    for key in loaded:
        del sys.modules[key]
    # None is Python's own mark for "do not even look for it".
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(loaded)


def import_scann() -> ModuleType:
    """Return the `scann` package with its TensorFlow half left out."""
    if "scann" in sys.modules:
        return sys.modules["scann"]
    with hidden("tensorflow"):
        return importlib.import_module("scann")


require_legacy_keras()
scann = import_scann()

# Only now may TensorFlow, and whatever imports ScaNN by itself, be imported.
import tensorflow as tf  # noqa: E402
import tensorflow_recommenders as tfrs  # noqa: E402
import tf_keras as keras  # noqa: E402

__all__ = ["keras", "scann", "tf", "tfrs"]
