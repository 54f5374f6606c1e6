"""Where everything comes from: the configuration and the artifacts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from pipeline.pages.blocks import (
    Block,
    Code,
    Missing,
    Table,
    Text,
)
from pipeline.pages.page import size
from pipeline.report.work_folder import Side, titled

_SHORT = 12


def configuration(sides: Sequence[Side]) -> Iterator[Block]:
    """The resolved configuration; of two, what differs."""
    texts = {side.name: side.folder.config_text for side in sides}
    known = {name: text for name, text in texts.items() if text is not None}
    for name in texts.keys() - known.keys():
        yield Missing(f"{name} has no config.yaml.")
    if len(known) == 2:
        yield from _differences(known)
    for name, text in known.items():
        title = "config.yaml" if len(sides) == 1 else f"config.yaml: {name}"
        yield Code(title, text)


def artifacts(sides: Sequence[Side]) -> Iterator[Block]:
    """Each stage's newest version, by its fingerprints."""
    for side in sides:
        folder = side.folder
        if not folder.stages:
            yield Missing(
                titled("There is no completed stage yet", side, len(sides))
                + "."
            )
            continue
        rows = []
        for name, artifact in folder.stages.items():
            record = folder.record(name)
            files = artifact.manifest["files"].values()
            content = artifact.fingerprint() if files else "–"
            rows.append(
                [
                    name,
                    artifact.path.rstrip("/").rpartition("/")[2],
                    artifact.key[:_SHORT],
                    content[:_SHORT],
                    " ".join(record.get("command", ())),
                    size(sum(file["bytes"] for file in files)),
                    record.get("seconds"),
                ]
            )
        yield Table(
            titled("Artifacts", side, len(sides)),
            [
                *("stage", "version", "key", "content", "command"),
                *("size", "seconds"),
            ],
            rows,
            "The key follows from configuration, seed and inputs, the content "
            "from the bytes.",
            text_columns=5,
        )
        strangers = folder.strangers
        if strangers:
            yield Missing(
                "The newest versions are not all made from each other: "
                + "; ".join(strangers)
            )
        else:
            yield Text(
                "All of them that depend on each other were made from each "
                "other."
            )
        yield Text(_versions(side))
    if len(sides) == 2:
        yield _same_content(sides)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A tree of settings as `section.field` -> its value in words."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = str(value)
    return found


def _differences(texts: Mapping[str, str]) -> Iterator[Block]:
    first, second = (flat(yaml.safe_load(t) or {}) for t in texts.values())
    differ = [
        key
        for key in dict.fromkeys([*first, *second])
        if first.get(key) != second.get(key)
    ]
    if not differ:
        yield Text("Both runs have the same configuration.")
        return
    yield Table(
        "Settings that differ",
        ["setting", *texts],
        [[k, first.get(k, "–"), second.get(k, "–")] for k in differ],
        text_columns=3,
    )


def _versions(side: Side) -> str:
    """Of the packages that the last stage was made with."""
    last = list(side.folder.stages)[-1]
    record = side.folder.record(last)
    packages = record.get("packages", {})
    return (
        f"{last} was made with Python {record.get('python', '?')}, "
        + (", ".join(f"{name} {version}" for name, version in packages.items()))
        + "."
    )


def _same_content(sides: Sequence[Side]) -> Table:
    first, second = (side.folder.stages for side in sides)
    both = [name for name in first if name in second]
    return Table(
        "The same bytes in both runs",
        ["stage", "same"],
        [
            [
                name,
                "yes"
                if first[name].manifest["files"]
                == second[name].manifest["files"]
                else "no",
            ]
            for name in both
        ],
        text_columns=2,
    )
