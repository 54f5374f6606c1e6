"""What the project's pages hold: blocks, links, headings, commands.

A comment right before a fenced block says what a test does with it:

- `<!-- not run: REASON -->`: its commands are only parsed;
- `<!-- file: NAME -->`: it is the content of a file that commands read;
- `<!-- background: COMMAND -->`: a command that must run meanwhile;
- `<!-- printed: NOTE -->`: the block before prints these lines.

What names `gs://` is for a cluster, and not run either.
"""

import dataclasses
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
# Pages whose links are followed as well, and whose commands are parsed.
OTHERS = [
    CHECKOUT / "CONTRIBUTING.md",
    CHECKOUT / "CHANGELOG.md",
    CHECKOUT / "benchmarks" / "README.md",
    *sorted((CHECKOUT / "deploy").glob("*/README.md")),
]

_MARK = re.compile(r"<!-- (not run|file|background|printed): (.+?) -->\s*")
_OURS = re.compile(r"(\./)?watchnext |python (-m )?benchmarks[./]")


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code and what is said of it.

    `language` is `indented` of a block without a fence: such are only parsed.
    """

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""

    @property
    def is_run(self) -> bool:
        cluster = self.mark == "not run" or "gs://" in self.text
        return self.language in ("bash", "python") and not (
            cluster or self.mark == "file"
        )

    def __str__(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All blocks of code, in order."""
    found, mark = [], None
    for token in _tokens(page):
        if token.type in ("fence", "code_block"):
            told = mark.groups() if mark else ("", "")
            line = (token.map or [0])[0] + 1
            is_fenced = token.type == "fence"
            language = token.info.strip() if is_fenced else "indented"
            found.append(Block(page, line, language, token.content, *told))
        comment = token.content if token.type == "html_block" else ""
        mark = _MARK.fullmatch(comment)
    return found


def inline_commands(page: Path) -> Iterator[str]:
    """Commands of ours in running text."""
    for token in _inner(page):
        if token.type == "code_inline" and _OURS.match(token.content):
            yield token.content


def links(page: Path) -> Iterator[str]:
    """Targets of the links and pictures of a page, outside ones left out."""
    for token in _inner(page):
        target = token.attrGet("href") or token.attrGet("src")
        if target and not re.match(r"[a-z]+:", str(target)):
            yield str(target)


def anchors(page: Path) -> set[str]:
    """The fragments that a page's headings can be linked by."""
    found: set[str] = set()
    tokens = _tokens(page)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type != "heading_open":
            continue
        # The words, without punctuation, joined by hyphens; a second heading
        # of the same words gets a number.
        kept = re.sub(r"[^\w\- ]", "", inline.content.lower())
        slug = name = kept.replace(" ", "-")
        number = 0
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found


def commands(text: str) -> list[list[str]]:
    """The words of each simple command of a shell text.

    A line may go on after a backslash or inside quotes; comments and the
    environment before a command are left out.
    """
    found, pending = [], ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        lexer = shlex.shlex(pending, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # A quote is still open.
            pending += "\n"
            continue
        pending = ""
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|()"):
                found += [command] if command else []
                command = []
            elif command or not re.match(r"\w+=", word):
                command.append(word)
    assert not pending, f"a quote is never closed: {text}"
    return found


def ours(text: str) -> list[list[str]]:
    """Those commands that are this project's."""
    return [c for c in commands(text) if _OURS.match(" ".join(c) + " ")]


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt().enable("table").parse(page.read_text())


def _inner(page: Path) -> Iterator[Token]:
    for token in _tokens(page):
        yield from token.children or ()
