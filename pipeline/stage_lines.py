"""What a person is told of a stage that was built, from its counters.

A counter is named `<part>_<what>` (`train_examples`), `<table>.<what>`
(`watches.good`) or `<space>_terms`: those of one group stand together. What
was left out, capped or bad, gets a line of its own.
"""

from collections.abc import Mapping

_PARTS = ("train", "valid", "test", "after_test")
_CAPPED, _CAPPED_USERS = "_over_user_cap", "_capped_users"
# Each equals another count: all rows read, and requests that are examples.
_SAID_ELSEWHERE = (".read", "_requests")


def stage_lines(
    name: str, seconds: float, counts: Mapping[str, int]
) -> list[str]:
    """The lines to print: first what there is, then what was left out.

    Args:
      name: of the stage.
      seconds: it took.
      counts: of its manifest; zeros are not mentioned.
    """
    groups: dict[str, list[str]] = {}
    left_out: list[str] = []
    for counter, value in counts.items():
        reason = counter.partition(".bad.")[2]
        if not value or counter.endswith((*_SAID_ELSEWHERE, _CAPPED_USERS)):
            continue
        if counter.endswith(_CAPPED):
            table = counter.removesuffix(_CAPPED)
            users = counts.get(table + _CAPPED_USERS, 0)
            left_out.append(
                f"{name}: {_many(users, 'user')} with more {table} than "
                "beam.max_events_per_user; the oldest beyond it, "
                f"{value:,}, were left out"
            )
        elif reason:
            table = counter.partition(".")[0]
            left_out.append(
                f"{name}: {_many(value, 'row')} of {table} in the dead "
                f"letters: {reason}"
            )
        else:
            group, told = _grouped(counter, value)
            groups.setdefault(group, []).append(told)
    shown = [
        f"{group}: {', '.join(found)}" if group else ", ".join(found)
        for group, found in groups.items()
    ]
    return ["; ".join([f"{name}: {seconds:.1f} s", *shown]), *left_out]


def _grouped(counter: str, value: int) -> tuple[str, str]:
    """Group and text of a counter, e.g. `train` and `12 examples`."""
    table, dot, what = counter.partition(".")
    if dot:
        return table, f"{value:,} {what}"
    if counter.endswith("_terms"):
        space = counter.removesuffix("_terms").replace("_", " ")
        return "terms", f"{space} {value:,}"
    for part in _PARTS:
        if counter.startswith(f"{part}_"):
            what = counter.removeprefix(f"{part}_").replace("_", " ")
            return part.replace("_", " "), f"{value:,} {what}"
    return "", f"{counter.replace('_', ' ')} {value:,}"


def _many(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"
