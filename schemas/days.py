"""The days that a version of `daily_examples` covers."""

import dataclasses
import datetime
import json
from collections.abc import Iterator

from apache_beam.io.filesystems import FileSystems

from schemas.errors import ArtifactError
from schemas.split import DAY_US

DAYS_FILE = "days.json"
_EPOCH = datetime.date(1970, 1, 1)


def midnight_us(day: datetime.date, utc_offset_hours: float) -> int:
    """When a day of local time begins, in UTC microseconds."""
    offset_us = round(utc_offset_hours * 3_600_000_000)
    return (day - _EPOCH).days * DAY_US - offset_us


def local_day(time_us: int, utc_offset_hours: float) -> datetime.date:
    """The day of local time of a moment in UTC microseconds."""
    offset_us = round(utc_offset_hours * 3_600_000_000)
    days = (time_us + offset_us) // DAY_US
    return _EPOCH + datetime.timedelta(days=days)


@dataclasses.dataclass(frozen=True)
class DayRange:
    """Whole days of local time, first .. end - 1.

    The state in the same folder is that of the midnight at which `end`
    begins.
    """

    first: datetime.date
    end: datetime.date
    utc_offset_hours: float

    def __iter__(self) -> Iterator[datetime.date]:
        for number in range((self.end - self.first).days):
            yield self.first + datetime.timedelta(days=number)

    def __len__(self) -> int:
        return (self.end - self.first).days

    @property
    def first_number(self) -> int:
        """Days of `first` since 1 January 1970."""
        return (self.first - _EPOCH).days

    @property
    def start_us(self) -> int:
        return midnight_us(self.first, self.utc_offset_hours)

    @property
    def end_us(self) -> int:
        return midnight_us(self.end, self.utc_offset_hours)

    def to_json(self) -> str:
        values = dataclasses.asdict(self)
        return json.dumps(values, indent=1, default=str) + "\n"

    @classmethod
    def read(cls, path: str) -> "DayRange":
        """Reads `days.json`.

        Raises:
          ArtifactError: the file cannot be read or has other fields.
        """
        try:
            with FileSystems.open(
                path, compression_type="uncompressed"
            ) as stream:
                values = json.loads(stream.read().decode())
            for name in ("first", "end"):
                values[name] = datetime.date.fromisoformat(values[name])
            return cls(**values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}.") from error
