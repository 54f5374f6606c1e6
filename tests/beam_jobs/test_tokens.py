"""Tokens against a Python oracle that reads characters one by one."""

import itertools
import unicodedata

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs.tokens import query_tokens, tokenize


def oracle(query: str) -> list[str]:
    """Lower case; runs of letters, marks and digits; then adjacent pairs."""
    spaced = "".join(
        c if unicodedata.category(c)[0] in "LMN" else " " for c in query
    )
    words = [w for w in spaced.lower().split(" ") if w]
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


def tokens_of(queries: list[str | bytes]) -> list[list[str]]:
    tokens, splits = query_tokens(np.array(queries, object))
    words = [t.decode() for t in tokens]
    return [words[a:b] for a, b in itertools.pairwise(splits)]


def test_words_then_pairs() -> None:
    assert tokens_of(["Deep  Learning, 2016!", "", " - ", "one"]) == [
        ["deep", "learning", "2016", "deep learning", "learning 2016"],
        [],
        [],
        ["one"],
    ]


def test_letters_of_every_script_stay_whole() -> None:
    # The vowel signs of Hindi are marks, not letters; a sigma at the end of
    # a word has its own lower case.
    assert tokens_of(["CAFÉ naïve", "हिन्दी गाना", "ΑΣ", "日本・語"]) == [
        ["café", "naïve", "café naïve"],
        ["हिन्दी", "गाना", "हिन्दी गाना"],
        ["ας"],
        ["日本", "語", "日本 語"],
    ]


def test_bytes_that_are_no_text_only_separate() -> None:
    assert tokens_of([b"\xff\xfeab\xffc", "x\x00y"]) == [
        ["ab", "c", "ab c"],
        ["x", "y", "x y"],
    ]


# Characters that every Unicode version treats alike.
_LETTERS = st.sampled_from(
    list("aBzÉßñЖяΩłTü0189٣中の한") + list(" .,-_'#\t\n/·")
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(_LETTERS, max_size=20), max_size=8))
def test_matches_the_oracle_in_any_batch(queries: list[str]) -> None:
    assert tokens_of(list(queries)) == [oracle(q) for q in queries]


def test_graph_and_eager_are_equal() -> None:
    queries = ["a b c", "", "a b c", "Ünïcode text", "a"]
    traced = tf.function(tokenize)(tf.constant(queries))
    assert [[t.decode() for t in row] for row in traced.to_list()] == [
        oracle(q) for q in queries
    ]


def test_more_queries_than_one_batch() -> None:
    queries = [f"q{i} x" for i in range(9000)]
    found = tokens_of(list(queries))
    assert found[8191:8193] == [
        ["q8191", "x", "q8191 x"],
        ["q8192", "x", "q8192 x"],
    ]
    assert len(found) == 9000
