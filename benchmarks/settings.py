"""What the measured jobs run with: the default configuration, and how the
shuffle cuts."""

import hashlib
import json

import yaml

from beam_jobs import column_shuffle
from schemas.config import Config

_SECTIONS = (
    "beam",
    "split",
    "vocabularies",
    "normalization",
    "retrieval_examples",
    "ranking_examples",
)


def main() -> None:
    """Prints JSON: sections, sha256 of the whole, numbers of the shuffle."""
    config = Config()
    text = config.model_dump_json()
    sections = config.model_dump(mode="json", include=set(_SECTIONS))
    print(
        json.dumps(
            {
                "config": yaml.safe_dump(sections, width=76),
                "element_bytes": column_shuffle.MAX_ELEMENT_BYTES,
                "slice_rows": column_shuffle.SLICE_ROWS,
                "one_pass_shards": column_shuffle.ONE_PASS_GROUPS,
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
        )
    )


if __name__ == "__main__":
    main()
