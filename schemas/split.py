"""The bounds of training, validation and test, as the split wrote them."""

import dataclasses
import json
from typing import Literal

from apache_beam.io.filesystems import FileSystems

from schemas.errors import ArtifactError

BOUNDS_FILE, TEST_FILE = "split.json", "test.json"
DAY_US = 86_400_000_000


@dataclasses.dataclass(frozen=True)
class SplitBounds:
    """Half-open intervals in UTC microseconds.

    Training is [log_start_us, train_end_us), validation [train_end_us,
    valid_end_us). In the protocol `last_watch` a part is chosen per user; the
    bounds then enclose all of a part's watches. Where the test ends is kept
    in another file, so that this one depends on no test event.
    """

    protocol: Literal["time", "last_watch"]
    log_start_us: int
    train_end_us: int
    valid_end_us: int
    utc_offset_hours: float

    def with_validation(self) -> "SplitBounds":
        """The bounds of a training that goes on to the end of validation."""
        return dataclasses.replace(self, train_end_us=self.valid_end_us)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SplitBounds":
        return cls(**json.loads(text))

    @classmethod
    def read(cls, path: str) -> "SplitBounds":
        """Reads `split.json`.

        Raises:
          ArtifactError: the file cannot be read or has other fields.
        """
        try:
            with FileSystems.open(
                path, compression_type="uncompressed"
            ) as stream:
                return cls.from_json(stream.read().decode())
        except (OSError, ValueError, TypeError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}.") from error
