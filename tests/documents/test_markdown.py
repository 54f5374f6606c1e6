"""The reader of pages, on a page whose content is known."""

from pathlib import Path

import pytest

from tests.documents import markdown

PAGE = """\
# One page

See [it](other.md#a-b) and [out](https://x.org), `watchnext run --workdir w`,
![plot](plot.svg) and `ls`.

<!-- not run: needs a cluster -->
```bash
watchnext run --workdir a
```

```bash
./watchnext demo  # a comment's quote
```

<!-- file: a.yaml -->
```yaml
a: 1
```

    python benchmarks/index.py

```python
print("gs://b")
```

## A `b`: (c)?
## One page
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_blocks(page: Path) -> None:
    found = [
        (b.line, b.language, b.mark, b.value, b.is_run)
        for b in markdown.blocks(page)
    ]
    assert found == [
        (7, "bash", "not run", "needs a cluster", False),
        (11, "bash", "", "", True),
        (16, "yaml", "file", "a.yaml", False),
        (20, "indented", "", "", False),
        (22, "python", "", "", False),
    ]
    assert markdown.blocks(page)[3].text == "python benchmarks/index.py\n"


def test_links_anchors_and_inline_commands(page: Path) -> None:
    assert list(markdown.links(page)) == ["other.md#a-b", "plot.svg"]
    assert markdown.anchors(page) == {"one-page", "a-b-c", "one-page-1"}
    inline = ["watchnext run --workdir w"]
    assert list(markdown.inline_commands(page)) == inline


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "watchnext a \\\n  --b 'c d' # e\n",
            [["watchnext", "a", "--b", "c d"]],
        ),
        ("x && y | z; q &", [["x"], ["y"], ["z"], ["q"]]),
        ("# only said\n\nA=1 watchnext run", [["watchnext", "run"]]),
        ("export A='{\n1}'\nls", [["export", "A={\n1}"], ["ls"]]),
        ("M=$(ls a | tail)\nx $M", [["ls", "a"], ["tail"], ["x", "$M"]]),
    ],
)
def test_commands(text: str, expected: list[list[str]]) -> None:
    assert [c for c in markdown.commands(text) if c != ["$"]] == expected


def test_a_quote_that_stays_open_is_an_error() -> None:
    with pytest.raises(AssertionError, match="never closed"):
        markdown.commands("echo 'a")


def test_which_commands_are_ours() -> None:
    text = "watchnext a\n./watchnext b\npython -m benchmarks.x\nwatchnextly c\n"
    assert [c[-1] for c in markdown.ours(text)] == ["a", "b", "benchmarks.x"]
