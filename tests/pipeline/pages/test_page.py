"""A page is one file, whole, without script or network, and escaped."""

import re

import jinja2
import pytest
from markupsafe import Markup

from pipeline.pages import page
from schemas.errors import UsageError

HOSTILE = "<script>alert(1)</script>"
TEMPLATE = """
{% extends "base.html" %}
{% import "parts.html" as parts %}
{% block title %}{{ name }}{% endblock %}
{% block content %}
{{ parts.table(["id", name], [[name, 0.5], ["b", none]]) }}
{{ parts.figure(name, plot, name) }}
{{ parts.missing(name) }}
{% endblock %}
"""


@pytest.fixture
def with_template(monkeypatch):
    made = page._environment()
    made.loader = jinja2.ChoiceLoader(
        [jinja2.DictLoader({"toy.html": TEMPLATE}), made.loader]
    )
    monkeypatch.setattr(page, "_environment", lambda: made)


def test_what_a_log_says_is_text_and_a_plot_is_markup(with_template):
    values = {"name": HOSTILE, "plot": Markup("<svg></svg>")}
    text = page.render("toy.html", values)
    assert "<script" not in text
    # In the title, the heading, the table's head and cell, the figure's
    # heading and words, and what is missing.
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 7
    assert "<svg></svg>" in text
    assert "&lt;svg" in page.render("toy.html", values | {"plot": "<svg>"})
    assert "0.5000" in text and "–" in text


def test_it_needs_no_network(with_template):
    text = page.render("toy.html", {"name": "a", "plot": ""})
    assert re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", text) == []
    assert "url(" not in text and "@import" not in text


def test_a_name_that_is_not_given_is_an_error(with_template):
    with pytest.raises(jinja2.UndefinedError, match="plot"):
        page.render("toy.html", {"name": "a"})


def test_it_is_written_whole_or_not_at_all(with_template, tmp_path):
    path = tmp_path / "deep" / "page.html"
    page.write_page(str(path), "toy.html", {"name": "old", "plot": ""})
    before = path.read_bytes()
    assert b"<h1>old</h1>" in before
    with pytest.raises(jinja2.UndefinedError):
        page.write_page(str(path), "toy.html", {"name": "new"})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_where_it_cannot_be_written_is_said(with_template, tmp_path):
    values = {"name": "a", "plot": ""}
    with pytest.raises(UsageError, match=r"must end with \.html, got"):
        page.write_page(str(tmp_path / "page.pdf"), "toy.html", values)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        page.write_page(str(tmp_path / "file" / "a.html"), "toy.html", values)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UsageError, match="cannot be written to"):
        page.write_page(str(tmp_path / "folder.html"), "toy.html", values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.html"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("-inf"), "−∞"),
        (0.0, "0"),
        (36590.0, "36,590"),
        (-2.5, "−2.500"),
        (0.12345, "0.1235"),
        (0.0000123, "1.2e−05"),
        (123.456, "123.5"),
        (12345.6, "12,346"),
    ],
)
def test_numbers(value, text):
    assert page.number(value) == text


def test_sizes():
    assert page.size(999) == "999 B"
    assert page.size(2_376_268) == "2.4 MB"
