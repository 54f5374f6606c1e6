"""One Keras for everybody, and ScaNN beside TensorFlow.

The order of imports is the subject, so the real cases run in fresh
interpreters; each costs a TensorFlow import.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.keras_setup import hidden, require_legacy_keras

CHECKOUT = Path(__file__).resolve().parents[2]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    env |= {"PYTHONPATH": str(CHECKOUT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_everything_works_although_tensorflow_came_first() -> None:
    # The search is checked against a maximum that NumPy finds.
    code = """
import tensorflow as first, numpy as np
from models.keras_setup import keras, scann, tf, tfrs
import importlib
import os
assert tf is first
assert tf.keras.layers.Dense is keras.layers.Dense
assert keras.__version__.startswith("2.")
assert issubclass(tfrs.Model, keras.Model)
rows = np.random.default_rng(1).normal(size=(200, 8)).astype("float32")
queries = rows[:50] + rows[50:100]
index = scann.scann_ops_pybind.builder(rows, 1, "dot_product")
found, _ = index.score_brute_force().build().search_batched(queries)
assert (found[:, 0] == (queries @ rows.T).argmax(axis=1)).all()
print(os.environ["TF_USE_LEGACY_KERAS"])
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "1"


def test_real_keras_3_is_refused_with_the_cure() -> None:
    done = run_python(
        "import tensorflow as tf; tf.keras.layers; import models.keras_setup"
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: `models.keras_setup` must be imported")
    assert "already Keras 3." in last
    assert "Import `models.keras_setup` first" in last


@pytest.mark.parametrize("value", ["0", "false", "no", ""])
def test_variable_that_asks_for_keras_3_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    with pytest.raises(ImportError, match=f"must be 1.*got '{value}'"):
        require_legacy_keras()


@pytest.mark.parametrize(
    "keras",
    [SimpleNamespace(), SimpleNamespace(version=lambda: "2.21.0")],
    ids=["no version function", "version 2"],
)
def test_keras_2_that_is_there_already_is_fine(
    monkeypatch: pytest.MonkeyPatch, keras: SimpleNamespace
) -> None:
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    tensorflow = SimpleNamespace(keras=keras)
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    require_legacy_keras()
    assert os.environ["TF_USE_LEGACY_KERAS"] == "1"


def test_hidden_package_is_gone_and_comes_back_as_the_same_objects() -> None:
    import xml.dom.minidom as minidom

    package = sys.modules["xml"]
    with hidden("xml"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("xml")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("xml.dom")
    assert sys.modules["xml"] is package
    assert sys.modules["xml.dom.minidom"] is minidom


def test_hidden_package_comes_back_after_an_error() -> None:
    import xml

    with pytest.raises(KeyError), hidden("xml"):
        raise KeyError
    assert sys.modules["xml"] is xml


def test_hiding_what_was_never_loaded_leaves_no_trace() -> None:
    assert "turtledemo" not in sys.modules
    with hidden("turtledemo"):
        pass
    assert "turtledemo" not in sys.modules
