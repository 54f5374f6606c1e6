"""Every command that a page shows is one that there is.

Its name, options and settings are looked up in the real command line and
configuration; `test_execution.py` runs the commands.
"""

import argparse
import importlib
import sys
from pathlib import Path

import click
import pytest
import typer.main
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.cli import app
from pipeline.config import load_config
from pipeline.shipped import shipped_config
from schemas.errors import UsageError
from tests.documents.markdown import (
    CHECKOUT,
    OTHERS,
    PAGES,
    blocks,
    inline_commands,
    ours,
)

COMMAND_LINE = typer.main.get_command(app)


def all_commands() -> list[tuple[str, list[str]]]:
    """(where it stands, words), of blocks and of running text."""
    found = []
    for page in [*PAGES, *OTHERS]:
        for block in blocks(page):
            if block.language in ("indented", "bash"):
                found += [(str(block), c) for c in ours(block.text)]
        where = page.relative_to(CHECKOUT).as_posix()
        for text in inline_commands(page):
            # An ellipsis is said, not typed.
            if "..." not in text:
                found += [(where, c) for c in ours(text)]
    return found


def check(words: list[str], whole: bool = True) -> None:
    """Parses a command of ours as its own program does.

    Args:
      words: of the command.
      whole: whether all that it requires must be there; running text may
        leave it out.

    Raises:
      click.ClickException, UsageError, ValueError: it does not parse.
    """
    if words[0] == "python":
        check_benchmark(words[1:])
    elif words[1] != "test":  # The launcher's own.
        check_watchnext(words[1:], whole)


def check_watchnext(arguments: list[str], whole: bool) -> None:
    assert isinstance(COMMAND_LINE, click.Group)
    context = click.Context(COMMAND_LINE, info_name="watchnext")
    name, command, rest = COMMAND_LINE.resolve_command(context, arguments)
    assert command is not None
    try:
        parsed = command.make_context(name, rest, parent=context)
    except click.MissingParameter:  # Whatever else is wrong is said first.
        if whole:
            raise
        return
    check_beam_flags(parsed.args)
    config = parsed.params.get("config")
    shipped = config if config and "." not in config else None
    if shipped:
        shipped_config(shipped)
    load_config(shipped, parsed.params.get("overrides") or ())


def check_beam_flags(flags: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(flags)
    if unknown:
        raise ValueError(f"Beam has no {' '.join(unknown)}")


class Parsed(Exception):
    """A benchmark's own parser took the words."""


def check_benchmark(words: list[str]) -> None:
    name = words[1] if words[0] == "-m" else words[0]
    module = name.removesuffix(".py").replace("/", ".")
    words = words[2:] if words[0] == "-m" else words[1:]
    main = importlib.import_module(module).main

    def parse(
        parser: argparse.ArgumentParser, *_: object, **__: object
    ) -> None:
        _, unknown = parser.parse_known_args(words)
        if unknown:
            raise ValueError(f"{module} has no {' '.join(unknown)}")
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", [module, *words])
        with pytest.raises(Parsed):
            main()


@pytest.mark.parametrize(
    ("where", "words"), all_commands(), ids=lambda value: " ".join(value)[:70]
)
def test_command(where: str, words: list[str]) -> None:
    try:
        check(words, whole=":" in where)
    except (click.ClickException, UsageError, ValueError) as error:
        said = getattr(error, "message", "") or error
        pytest.fail(f"{where}: {' '.join(words)}: {said}")


def test_the_pages_have_commands() -> None:
    # Were none found, none would be wrong.
    names = {words[1] for _, words in all_commands()}
    shown = {
        name
        for name, command in COMMAND_LINE.commands.items()  # type: ignore[attr-defined]
        if not command.hidden
    }
    assert shown - names == set()


@pytest.mark.parametrize(
    "text",
    [
        "watchnext trian retrieval --workdir w",
        "watchnext train both --workdir w",
        "watchnext train retrieval --workdir w --worker 2",
        "watchnext train retrieval",
        "watchnext run --workdir w --set retrieval.epoch=2",
        "watchnext run --workdir w --set retrieval.epochs=none",
        "watchnext run --workdir w --config dmeo",
        "watchnext prepare --workdir w --runer=PrismRunner",
        "python -m benchmarks.gate_polarisation --rate 1",
    ],
)
def test_a_wrong_command_is_found(text: str) -> None:
    (words,) = ours(text)
    with pytest.raises((click.ClickException, UsageError, ValueError)):
        check(words)


def test_running_text_may_leave_out_what_is_required() -> None:
    (words,) = ours("watchnext train retrieval")
    check(words, whole=False)
    (words,) = ours("watchnext train retrieval --worker 2")
    with pytest.raises(click.ClickException):
        check(words, whole=False)


def test_pages_are_where_they_are_looked_for() -> None:
    assert Path(CHECKOUT / "docs" / "serving.md") in PAGES
    assert len(OTHERS) > 3
