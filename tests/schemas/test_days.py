"""Days of local time, by hand."""

import datetime
from pathlib import Path

import pytest

from schemas.days import DayRange, local_day, midnight_us
from schemas.errors import ArtifactError

HOUR_US = 3_600_000_000
# 2024-01-01 00:00 UTC is day 19,723 after 1970-01-01.
NEW_YEAR = datetime.date(2024, 1, 1)
NEW_YEAR_US = 19_723 * 24 * HOUR_US


@pytest.mark.parametrize(
    # East of Greenwich a day begins earlier, in India at half past.
    ("offset", "hours"),
    [(0.0, 0.0), (8.0, -8.0), (-3.0, 3.0), (5.5, -5.5)],
)
def test_a_day_begins_at_local_midnight(offset: float, hours: float) -> None:
    begins = NEW_YEAR_US + round(hours * HOUR_US)
    assert midnight_us(NEW_YEAR, offset) == begins
    assert local_day(begins, offset) == NEW_YEAR
    assert local_day(begins - 1, offset) == datetime.date(2023, 12, 31)


def test_a_range_has_its_first_day_and_not_its_end(tmp_path: Path) -> None:
    days = DayRange(NEW_YEAR, datetime.date(2024, 1, 3), 2.0)
    assert list(days) == [NEW_YEAR, datetime.date(2024, 1, 2)]
    assert len(days) == 2
    assert days.first_number == 19_723
    assert days.start_us == NEW_YEAR_US - 2 * HOUR_US
    assert days.end_us == days.start_us + 48 * HOUR_US
    (tmp_path / "days.json").write_text(days.to_json())
    assert DayRange.read(str(tmp_path / "days.json")) == days


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "days.json"
    for text in ("", "{}", '{"first": "x", "end": "y"}'):
        path.write_text(text)
        with pytest.raises(ArtifactError, match=r"days.json cannot be read"):
            DayRange.read(str(path))
