"""No example knows the future: 1,000 histories against plain loops.

Every test of a mutation takes one check out of the code and expects the
property to fail.
"""

import inspect
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import Phase, given, settings

from beam_jobs.histories import RawRequests, TimeIndex, request_times
from beam_jobs.lagged_statistics import daily_sums
from beam_jobs.query_features import QueryFeatures
from beam_jobs.ranking_requests import RankingRequests
from beam_jobs.retrieval_examples import (
    choose_cases,
    choose_labels,
)
from beam_jobs.split import part_by_time
from beam_jobs.vocabularies import count_shard
from beam_jobs.watch_rows import completed_rows
from tests.beam_jobs.log_oracle import Log
from tests.beam_jobs.no_future import TIMES, check, logs


@settings(max_examples=200, deadline=None)
@given(logs(), TIMES)
def test_no_example_knows_the_future(log: Log, now_us: int) -> None:
    """200 logs of five histories each."""
    check(log, now_us)


Mutation = tuple[Callable[..., Any], str, str]
MUTATIONS: Mapping[str, Mutation] = {
    "context strictly before": (
        TimeIndex.before,
        'side="left"',
        'side="right"',
    ),
    "requests cut at their first time": (
        request_times,
        "return number[group], times[head][group]",
        "return number[group], times",
    ),
    "context of the request, not of the impression": (
        RankingRequests.batch,
        "self._histories(users, cuts_us)",
        'self._histories(users, self._shard.times_us("impressions")[first])',
    ),
    "watch time once it was spent": (
        RawRequests.__call__,
        "values[going_on] = np.nan",
        "pass",
    ),
    "watch time as soon as it was spent": (
        RawRequests.__call__,
        "self._watch_end_us[rows] > times_us",
        "self._watch_end_us[rows] >= times_us",
    ),
    "context before the label": (
        QueryFeatures.__call__,
        "index.recent(users, times_us, length)",
        "index.recent(users, times_us + 1, length)",
    ),
    "labels ended in training": (
        choose_labels,
        'completed_rows(shard, "train", bounds.train_end_us)',
        'completed_rows(shard, "train")',
    ),
    "ended by the moment asked for": (
        completed_rows,
        "watch_end_us(shard)[:-1] <= ended_by_us",
        'shard.times_us("watches") <= ended_by_us',
    ),
    "labels of the part": (
        completed_rows,
        "chosen &= shard.numpy",
        "_ = shard.numpy",
    ),
    "labels completed": (
        completed_rows,
        'shard.numpy("watches", "completed").astype(bool) & ',
        "",
    ),
    "labels dated": (completed_rows, " & ~undated(shard)", ""),
    "cases before their first label": (
        choose_cases,
        "times[rows[first]]",
        "times[rows[first + counts - 1]]",
    ),
    "seen before the case": (
        choose_cases,
        "before(owners, case_times)",
        "before(owners, case_times + 1)",
    ),
    "counts of watches ended in training": (
        count_shard,
        'completed_rows(shard, "train", bounds.train_end_us)',
        'completed_rows(shard, "train")',
    ),
    "candidates of the part": (
        RankingRequests.__init__,
        "np.isin(part, [PART_CODES[p] for p in parts])",
        "part >= 0",
    ),
    "statistics up to the day before": (
        RankingRequests._lagged,
        "local_days(cuts_us, self._utc_offset_hours)",
        "(local_days(cuts_us, self._utc_offset_hours) + 1)",
    ),
    "statistics of watch time that was spent": (
        daily_sums,
        "times_us + np.maximum(watch_time_us - 1, 0)",
        "times_us",
    ),
    "days of local time": (
        RankingRequests._lagged,
        "local_days(cuts_us, self._utc_offset_hours)",
        "local_days(cuts_us, 0.0)",
    ),
    "held out from the end of training on": (
        part_by_time,
        'side="right"',
        'side="left"',
    ),
    "undated watches are training's": (
        part_by_time,
        'parts["watches"][undated(shard)] = 0',
        "pass",
    ),
}


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Log, int]]:
    """Always the same 50 logs, the longest first."""
    found: list[tuple[Log, int]] = []

    @settings(
        max_examples=50,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
    )
    @given(logs(), TIMES)
    def draw(log: Log, now_us: int) -> None:
        found.append((log, now_us))

    draw()
    return sorted(
        found, key=lambda f: len(f[0].watches) + len(f[0].shown), reverse=True
    )


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_check_is_needed(
    name: str,
    drawn: Sequence[tuple[Log, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    function, check_, without = MUTATIONS[name]
    code = mutated(function, check_, without)
    # In place: whoever imported the function has the mutation as well.
    monkeypatch.setattr(function, "__code__", code)
    with pytest.raises(AssertionError):
        for log, now_us in drawn:
            check(log, now_us)


def mutated(function: Callable[..., Any], old: str, new: str) -> types.CodeType:
    """The function's code with one place of its source replaced."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__qualname__} lacks {old!r}"
    made: dict[str, Any] = {}
    exec(source.replace(old, new), function.__globals__, made)
    code: types.CodeType = made[function.__name__].__code__
    return code
