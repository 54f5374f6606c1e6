"""Reads a run's configuration: YAML, overrides and environment, validated.

The only module that expands `${NAME}`; everything else receives values.
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Sequence
from typing import Any

import pydantic
import yaml
from apache_beam.io.filesystems import FileSystems

from pipeline.shipped import shipped_config
from schemas.config import Config
from schemas.errors import UsageError

_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class MappingFile:
    """A mapping as read: its content and the folder of its logs."""

    content: dict[str, Any]
    root: str


def load_config(name_or_path: str | None, overrides: Sequence[str]) -> Config:
    """Reads a configuration file and applies `section.field=value` pairs.

    Args:
      name_or_path: a YAML file or the name of a shipped one (`demo`); None is
        all defaults.
      overrides: pairs as on the command line; values are read as YAML.

    Raises:
      UsageError: naming file, key and the nearest known key.
    """
    values = {} if name_or_path is None else read_yaml(name_or_path)
    for override in overrides:
        _override(values, override)
    where = name_or_path or "the configuration"
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        raise UsageError(f"{where}: {explain(error, Config)}") from error


def load_mapping_file(name_or_path: str, root: str | None) -> MappingFile:
    """Reads a mapping and decides the folder of its logs.

    Args:
      name_or_path: a YAML file or the name of a shipped mapping.
      root: overrides the mapping's own `root`.

    Raises:
      UsageError: no root, or a variable of it is not set.
    """
    content = read_yaml(name_or_path, "mappings/")
    own = str(content.pop("root", ""))
    if root is None:
        if not own:
            raise UsageError(
                f"{name_or_path} has no `root`; give the folder of the logs "
                "with --input DIR."
            )
        root = expand(own, name_or_path)
    return MappingFile(content, root)


def expand(text: str, where: str) -> str:
    """Replaces `${NAME}` by the environment's value.

    Raises:
      UsageError: naming the variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise UsageError(
                f"{where} needs the environment variable {name}, which is not "
                "set; set it, or give the folder with --input DIR."
            )
        return os.environ[name]

    return _VARIABLE.sub(value, text)


def read_yaml(name_or_path: str, folder: str = "") -> dict[str, Any]:
    """Reads a YAML mapping from a path or from the shipped files.

    Args:
      name_or_path: a file, or a shipped name below `folder`.
      folder: prefix of the shipped names, such as `mappings/`.

    Raises:
      UsageError: no such file, or not a YAML mapping.
    """
    path = name_or_path
    if not FileSystems.exists(path):
        path = str(shipped_config(folder + name_or_path.removeprefix(folder)))
    try:
        with FileSystems.open(path) as stream:
            values = yaml.safe_load(stream.read().decode())
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise UsageError(
            f"{name_or_path} is not valid YAML: {detail}"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name_or_path} cannot be read: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(
            f"{name_or_path} must hold sections (`key: value`), got a "
            f"{type(values).__name__}."
        )
    return values


def explain(
    error: pydantic.ValidationError, model: type[pydantic.BaseModel]
) -> str:
    """One line for the first of a validation's errors."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
        hint = (
            f"; did you mean {'.'.join([*path[:-1], near[0]])!r}?"
            if near
            else ""
        )
        return f"unknown key {'.'.join(path)!r}{hint}"
    return (
        f"{'.'.join(path) or 'value'}: {first['msg']} (got {first['input']!r})."
    )


def _known_keys(
    model: type[pydantic.BaseModel], path: Sequence[str]
) -> list[str]:
    for part in path:
        inner = model.model_fields[part].annotation
        if not (
            isinstance(inner, type) and issubclass(inner, pydantic.BaseModel)
        ):
            return []
        model = inner
    return list(model.model_fields)


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UsageError(
            f"--set expects section.field=value, got {override!r}."
        )
    *sections, field = path.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UsageError(
                f"--set {override}: {section!r} is a value, not a section."
            )
        values = inner
    try:
        values[field] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {override}: not a YAML value.") from error
