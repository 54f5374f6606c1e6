"""The models being served: of each the newest version, swapped while in use.

In: `<folder>/<model>/<number>/`, as `watchnext export` publishes. A newer
number is loaded and warmed up beside the one that serves, then takes its
place in one assignment: requests that have begun keep the version they began
with. Like TensorFlow Serving's default, one version of a model is served at a
time; TensorFlow in Python keeps the functions of the ones before in memory.
"""

import dataclasses
import enum
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from models.keras_setup import tf
from models.saved_models import SERVING_DEFAULT, WARM_UP_FILE
from pipeline.serve.limits import Specs, check_inputs
from schemas.artifacts import join
from schemas.errors import ArtifactError, InputError, WatchnextError

Arrays = Mapping[str, np.ndarray]
# Of the signatures; TensorFlow's own, for what a model initialises, are not.
_SERVED_TAG = "serve"
# The largest requests that are allowed take 0.4 GB each while they run.
_PREDICTING = threading.BoundedSemaphore(4)
# What TensorFlow writes before the reason: where in the graph it was.
_FUNCTION = re.compile(r"\{\{function_node [^}]*\}\} ?")
_PLACE = re.compile(
    r"Graph execution error|Detected at node|<stack traces| *File |    "
)


class NotServedError(WatchnextError):
    """There is no such model, version or signature."""


class State(enum.Enum):
    """Of a version, by the numbers of TensorFlow Serving's protocol."""

    LOADING = 20
    AVAILABLE = 30
    END = 50


class LoadedVersion:
    """A version in memory.

    Args:
      model: its name.
      number: of the version.
      path: of the SavedModel.

    Raises:
      ArtifactError: it does not load, or fails on a warm-up request.
    """

    def __init__(self, model: str, number: int, path: str) -> None:
        self.model, self.number = model, number
        try:
            self._loaded: Any = tf.saved_model.load(path)
            self.definitions = _definitions(path)
            self._warm_up(join(path, *WARM_UP_FILE.split("/")))
        # Whatever is wrong with a folder, the server goes on without it.
        except Exception as error:
            raise ArtifactError(
                f"{path} cannot be served: {one_line(error)}. Run `watchnext "
                "export` again."
            ) from error

    def has(self, signature: str) -> bool:
        """Whether the model has the signature."""
        return signature in self._loaded.signatures

    def specs(self, signature: str = SERVING_DEFAULT) -> Specs:
        """Input name -> its type and shape.

        Raises:
          NotServedError: the model does not have the signature.
        """
        specs: Specs = self._function(signature).structured_input_signature[1]
        return specs

    def predict(
        self, inputs: Arrays, signature: str = SERVING_DEFAULT
    ) -> dict[str, np.ndarray]:
        """Answers one request.

        Raises:
          InputError: the model cannot answer it.
          NotServedError: the model does not have the signature.
        """
        specs = self.specs(signature)
        check_inputs(inputs, specs)
        try:
            with _PREDICTING:
                outputs = self._function(signature)(
                    **{
                        name: tf.constant(array, specs[name].dtype)
                        for name, array in inputs.items()
                    }
                )
        except tf.errors.OpError as error:
            raise InputError(
                f"{self.model} cannot answer this request: {one_line(error)}"
            ) from error
        return {name: values.numpy() for name, values in outputs.items()}

    def _function(self, signature: str) -> Any:
        if not self.has(signature):
            raise NotServedError(
                f"{self.model} has no signature {signature[:100]!r}; it has "
                f"{', '.join(sorted(self._loaded.signatures))}."
            )
        return self._loaded.signatures[signature]

    def _warm_up(self, path: str) -> None:
        if not tf.io.gfile.exists(path):
            return
        for record in tf.data.TFRecordDataset(path):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            request = log.predict_log.request
            self.predict(
                {n: tf.make_ndarray(t) for n, t in request.inputs.items()},
                request.model_spec.signature_name or SERVING_DEFAULT,
            )


@dataclasses.dataclass
class _Served:
    """A model: what serves, and how every version seen has fared."""

    current: LoadedVersion | None = None
    states: dict[int, tuple[State, str]] = dataclasses.field(
        default_factory=dict
    )


class ServedModels:
    """The models below a folder; any number of threads may ask at once.

    Args:
      folder: `<workdir>/serving`.
      say: is told of each version that was loaded or refused.

    Raises:
      ArtifactError: nothing is published there, or a newest version does not
        load.
    """

    def __init__(self, folder: str, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._models: dict[str, _Served] = {}
        if not any(_published(folder).values()):
            raise ArtifactError(
                f"Nothing is published in {folder}: expected "
                "<model>/<number>/saved_model.pb. Run `watchnext export`."
            )
        self.reload()
        for served in self._models.values():
            if served.current is None:
                raise ArtifactError(served.states[max(served.states)][1])

    @property
    def names(self) -> list[str]:
        return sorted(self._models)

    def get(self, model: str, number: int | None = None) -> LoadedVersion:
        """The version that serves.

        Args:
          model: its name.
          number: it must be this version; None for whichever.

        Raises:
          NotServedError: it is not served.
        """
        current = self._served(model).current
        if current is None or number not in (None, current.number):
            wanted = "" if number is None else f" version {number}"
            serving = f"version {current.number}" if current else "none"
            raise NotServedError(
                f"{model}{wanted} is not being served; {serving} is."
            )
        return current

    def states(self, model: str) -> dict[int, tuple[State, str]]:
        """Version -> state and, if it was refused, why; newest first.

        Raises:
          NotServedError: there is no such model.
        """
        states = dict(self._served(model).states)
        return {n: states[n] for n in sorted(states, reverse=True)}

    def reload(self) -> None:
        """Brings every model to the newest version that can be loaded."""
        for model, numbers in _published(self._folder).items():
            if not numbers and model not in self._models:
                continue
            served = self._models.setdefault(model, _Served())
            refused = {n for n, (_, why) in served.states.items() if why}
            newest = max(numbers - refused, default=None)
            current = served.current and served.current.number
            if newest is not None and newest != current:
                self._swap(model, served, newest)

    def watch(self, every_s: float, stop: threading.Event) -> None:
        """Reloads until told to stop."""
        while not stop.wait(every_s):
            try:
                self.reload()
            # A folder may vanish while it is read, or be out of reach.
            except (OSError, tf.errors.OpError) as error:
                self._say(f"{self._folder} is unreadable: {one_line(error)}")

    def _swap(self, model: str, served: _Served, number: int) -> None:
        served.states[number] = State.LOADING, ""
        path = join(self._folder, model, str(number))
        try:
            loaded = LoadedVersion(model, number, path)
        except ArtifactError as error:
            served.states[number] = State.END, str(error)
            self._say(str(error))
            return
        before, served.current = served.current, loaded
        served.states[number] = State.AVAILABLE, ""
        if before is not None:
            served.states[before.number] = State.END, ""
        self._say(f"serving {model} version {number}")

    def _served(self, model: str) -> _Served:
        if model not in self._models:
            raise NotServedError(
                f"There is no model {model[:100]!r}; there are "
                f"{', '.join(self.names)}."
            )
        return self._models[model]


def one_line(error: BaseException) -> str:
    """The line of an error that says what is wrong, without its full stop."""
    lines = _FUNCTION.sub("", str(error)).splitlines()
    lines = [line for line in lines if line.strip() and not _PLACE.match(line)]
    return (lines or [type(error).__name__])[0].strip()[:500].rstrip(".")


def _published(folder: str) -> dict[str, set[int]]:
    """Model -> its versions that are complete: `saved_model.pb` comes last."""
    gfile = tf.io.gfile
    if not gfile.isdir(folder):
        return {}
    found = {}
    for name in (n.strip("/") for n in gfile.listdir(folder)):
        base = join(folder, name)
        if gfile.isdir(base):
            numbers = (n.strip("/") for n in gfile.listdir(base))
            found[name] = {
                int(n)
                for n in numbers
                if n.isdecimal()
                and gfile.exists(join(base, n, "saved_model.pb"))
            }
    return found


def _definitions(path: str) -> dict[str, meta_graph_pb2.SignatureDef]:
    with tf.io.gfile.GFile(join(path, "saved_model.pb"), "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    return {
        name: definition
        for graph in saved.meta_graphs
        if _SERVED_TAG in graph.meta_info_def.tags
        for name, definition in graph.signature_def.items()
        if not name.startswith("__saved_model")
    }
