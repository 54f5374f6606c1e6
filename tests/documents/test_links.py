"""Links between the pages lead somewhere."""

from pathlib import Path

import pytest

from tests.documents.markdown import CHECKOUT, OTHERS, PAGES, anchors, links


def broken(page: Path) -> list[str]:
    """Links of a page to a file or heading that is not there."""
    found = []
    for link in links(page):
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (
            fragment and fragment not in anchors(target)
        ):
            found.append(link)
    return found


@pytest.mark.parametrize(
    "page", [*PAGES, *OTHERS], ids=lambda p: p.relative_to(CHECKOUT).as_posix()
)
def test_links(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Head\n")
    page = tmp_path / "a.md"
    page.write_text("# A\n[1](b.md#head) [2](b.md#tail) [3](c.md) [4](#b)\n")
    assert broken(page) == ["b.md#tail", "c.md", "#b"]


def test_the_index_names_every_page() -> None:
    index = CHECKOUT / "docs" / "README.md"
    linked = {link.partition("#")[0] for link in links(index)}
    there = {page.name for page in (CHECKOUT / "docs").glob("*.md")}
    assert there - linked == {"README.md"}
