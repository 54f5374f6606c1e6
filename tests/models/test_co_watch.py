"""Co-watch counts against hand numbers and a count by loops."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.baselines import Watches
from models.co_watch import CoWatch


def watches_of(*rows):
    """Rows of (user, video, time)."""
    user, video, time = zip(*rows, strict=True)
    return Watches(
        np.array(user, np.uint64), np.array(video, np.int64), np.array(time)
    )


def history(*rows, length=8):
    out = np.full((len(rows), length), -1, np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return {"watch_history": out}


def test_hand_numbers():
    # One user: 1, 2, 3; another: 1, 3. n = (2, 1, 2). 1 -> 2 once, 2 -> 3
    # once, 1 -> 3 once at lag 2 and once at lag 1.
    log = watches_of((7, 1, 10), (7, 2, 20), (7, 3, 30), (9, 1, 10), (9, 3, 20))
    scores = CoWatch(log, 3).scores(history([2, 1], [1], []))
    # 1 -> 2 and 2 -> 3 are 1 / sqrt(2 * 1), 1 -> 3 is 2 / sqrt(2 * 2). Row 0:
    # 2 at full, 1 at half weight.
    root = math.sqrt(0.5)
    assert scores[0] == pytest.approx([0, root / 2, root + 0.5], abs=1e-5)
    assert scores[1] == pytest.approx([0, root, 1], abs=1e-5)
    # Without history, popularity decides: 1 and 3 before 2, all below links.
    assert scores[2][0] == scores[2][2] > scores[2][1] > 0
    assert scores[2].max() < 1e-5


def test_context_and_steps_have_an_end():
    log = watches_of(*[(0, video, video) for video in range(1, 8)])
    scores = CoWatch(log, 7, steps=2, context=2).scores(history([7, 0, 1], [1]))
    # Only 7 (no successor) and the unknown 0 are read; 1 is too old.
    assert scores[0].max() < 1e-5
    # 1 -> 2 and 1 -> 3, and no further.
    assert scores[1] == pytest.approx([0, 1, 1, 0, 0, 0, 0], abs=1e-5)


@st.composite
def logs(draw):
    size = draw(st.integers(1, 5))
    row = st.tuples(st.integers(0, 3), st.integers(1, size), st.integers(0, 6))
    return size, draw(st.lists(row, min_size=1, max_size=25))


@given(logs(), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_equals_counting_by_loops(log, steps):
    size, rows = log
    got = CoWatch(watches_of(*rows), size, steps=steps).scores(
        history(*[[v] for v in range(1, size + 1)])
    )
    pairs = Counter()
    for user in {r[0] for r in rows}:
        own = sorted((t, v) for u, v, t in rows if u == user)
        for i, (_, first) in enumerate(own):
            for _, later in own[i + 1 : i + 1 + steps]:
                if later != first:
                    pairs[first, later] += 1
    total = Counter(r[1] for r in rows)
    for i in range(1, size + 1):
        for j in range(1, size + 1):
            expected = 0.0
            if pairs[i, j]:
                expected = pairs[i, j] / math.sqrt(total[i] * total[j])
            assert got[i - 1, j - 1] == pytest.approx(expected, abs=1e-5)
