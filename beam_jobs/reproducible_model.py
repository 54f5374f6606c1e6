"""Makes the bytes of a SavedModel a function of its graph alone.

TensorFlow numbers functions by a counter of the process, writes libraries and
maps in the order of a hash table, and adds a random id. Later stages are
found by the hash of their inputs, so equal graphs must be equal files.
"""

import re
from collections.abc import Mapping

from apache_beam.io.filesystems import FileSystems
from google.protobuf.message import Message
from tensorflow.core.protobuf import saved_model_pb2

from beam_jobs.output_files import write_bytes
from schemas.artifacts import join

_NUMBERED = re.compile(r"(.*_)(\d+)")
_ARGUMENT_NAME = "_user_specified_name"


def make_reproducible(path: str) -> None:
    """Rewrites the SavedModel in a folder; what it computes stays the same."""
    graph = join(path, "saved_model.pb")
    model = saved_model_pb2.SavedModel()
    with FileSystems.open(graph, compression_type="uncompressed") as stream:
        model.ParseFromString(stream.read())
    for meta_graph in model.meta_graphs:
        functions = meta_graph.graph_def.library.function
        _rename(meta_graph, _new_names([f.signature.name for f in functions]))
        functions.sort(key=lambda f: f.signature.name)
        for function in functions:
            # Edges are by name; the order of nodes has no meaning.
            function.node_def.sort(key=lambda n: n.name)
            for argument in function.arg_attr.values():
                # What is captured is "named" by its number in the process.
                name = argument.attr.get(_ARGUMENT_NAME)
                if name is not None and name.s.isdigit():
                    del argument.attr[_ARGUMENT_NAME]
    FileSystems.delete([graph])
    write_bytes(graph, model.SerializeToString(deterministic=True))
    # A random id and hashes of the bytes before; loaders do without.
    fingerprint = join(path, "fingerprint.pb")
    if FileSystems.exists(fingerprint):
        FileSystems.delete([fingerprint])


def _new_names(names: list[str]) -> dict[str, str]:
    """Numbers from 0 in the order of creation, in place of the counter's."""
    parts = {n: m for n in names if (m := _NUMBERED.fullmatch(n))}
    created = sorted(parts, key=lambda n: (int(parts[n][2]), parts[n][1]))
    return {n: f"{parts[n][1]}{i}" for i, n in enumerate(created)}


def _rename(message: Message, names: Mapping[str, str]) -> None:
    """Replaces every string of a message that is a key of `names`."""
    for field, value in message.ListFields():
        if field.message_type and field.message_type.GetOptions().map_entry:
            _rename_map(value, names)
        elif field.type == field.TYPE_STRING:
            if field.is_repeated:
                value[:] = [names.get(v, v) for v in value]
            else:
                setattr(message, field.name, names.get(value, value))
        elif field.type == field.TYPE_MESSAGE:
            for child in value if field.is_repeated else (value,):
                _rename(child, names)


def _rename_map(values: object, names: Mapping[str, str]) -> None:
    for key in list(values):  # type: ignore[call-overload]
        value = values[key]  # type: ignore[index]
        if isinstance(value, Message):
            _rename(value, names)
        if key in names:
            copy = type(value)()
            copy.CopyFrom(value)
            del values[key]  # type: ignore[attr-defined]
            values[names[key]].CopyFrom(copy)  # type: ignore[index]
