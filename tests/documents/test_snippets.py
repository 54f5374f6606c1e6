"""YAML, JSON and Python of the pages are what they are said to be.

`test_execution.py` runs the Python.
"""

import ast
import importlib
import json

import pytest
import yaml

from beam_jobs.sources.mapping import load_mapping
from pipeline.tuning_space import Space
from schemas.config import Config
from tests.documents.markdown import CHECKOUT, PAGES, Block, blocks

HOUSES = ("schemas", "beam_jobs", "models", "pipeline")


def snippets(language: str) -> list[Block]:
    return [
        block
        for page in PAGES
        for block in blocks(page)
        if block.language == language
    ]


def check_yaml(text: str) -> None:
    """Reads a mapping of logs, a space of `tune`, or sections of a config."""
    values = yaml.safe_load(text)
    if "tables" in values:
        load_mapping(values)
    elif all("." in name for name in values):
        which = next(iter(values)).partition(".")[0]
        Space.parse(values, which, Config(), "the snippet")
    else:
        Config.model_validate(values)


def check_python(text: str) -> None:
    """Looks up what is imported from the project."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module.split(".")[0] not in HOUSES:
                continue
            module = importlib.import_module(node.module)
            for alias in node.names:
                getattr(module, alias.name)


@pytest.mark.parametrize("block", snippets("yaml"), ids=str)
def test_yaml(block: Block) -> None:
    check_yaml(block.text)


@pytest.mark.parametrize("block", snippets("python"), ids=str)
def test_python(block: Block) -> None:
    check_python(block.text)


@pytest.mark.parametrize("block", snippets("json"), ids=str)
def test_json(block: Block) -> None:
    if block.value.endswith(".jsonl"):
        for line in block.text.splitlines():
            json.loads(line)
    else:
        json.loads(block.text)


def test_wrong_snippets_are_found() -> None:
    with pytest.raises(ValueError, match="epoch"):
        check_yaml("retrieval: {epoch: 2}")
    with pytest.raises(Exception, match="fil"):
        check_yaml("tables: {watches: {fil: a.csv, columns: {}}}")
    with pytest.raises(AttributeError, match="load_stok"):
        check_python("from models.index import load_stok")


def test_each_language_is_one_that_is_checked() -> None:
    found = {block.language for page in PAGES for block in blocks(page)}
    # Without a name: what is printed, and pictures.
    assert found <= {"bash", "python", "yaml", "json", "csv", "indented", ""}
    assert (CHECKOUT / "docs" / "own-logs.md") in {
        block.page for block in snippets("yaml")
    }
