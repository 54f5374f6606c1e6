import io
import json
from typing import Any

import pytest

from beam_jobs.sources.mapped_json import json_blocks


def _cells(values: list[Any]) -> list[Any]:
    """Each value written as a record's cell and read again, in order."""
    lines = "".join(json.dumps({"a": v}) + "\n" for v in values)
    found = {}
    for block in json_blocks(io.BytesIO(lines.encode())):
        assert not block.malformed
        rows = block.frame["a"].to_list()
        found |= dict(zip(block.numbers.tolist(), rows, strict=True))
    assert sorted(found) == list(range(1, len(values) + 1))
    return [found[n] for n in sorted(found)]


@pytest.mark.parametrize(
    "values",
    [
        [2**53 + 1, 1.5],  # As a real, the first would be 2^53.
        [["x"], "y"],  # As text, the list would be '["x"]'.
        ["[y", "y"],
        [[2**53 + 1], ["x"]],
        [True, 1, None],
    ],
)
def test_a_cell_is_what_it_was_whatever_its_neighbours_are(
    values: list[Any],
) -> None:
    expected = [
        [v if isinstance(v, str) else str(v) for v in value]
        if isinstance(value, list)
        else value
        for value in values
    ]
    got = _cells(values)
    assert got == expected
    assert [type(v) for v in got] == [type(v) for v in expected]


def test_half_a_character_is_no_record() -> None:
    # {"a": "\ud83d\ude00"} is one character, either half alone is none.
    whole, text = r'{"a": "\ud83d\ude00"}', r'{"a": "\\ud83d"}'
    for half in (r'{"a": "\ud83d"}', r'{"a": "\ude00"}'):
        lines = f"{half}\n{whole}\n{text}\n"
        (block,) = json_blocks(io.BytesIO(lines.encode()))
        assert [number for number, _, _ in block.malformed] == [1]
        assert block.frame["a"].to_list() == ["\U0001f600", r"\ud83d"]
        assert block.numbers.tolist() == [2, 3]


def test_a_byte_order_mark_and_the_last_line_without_end() -> None:
    blocks = json_blocks(io.BytesIO(b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2}'))
    found = [(b.numbers.tolist(), b.frame["a"].to_list()) for b in blocks]
    assert found == [([1], [1]), ([3], [2])]
