"""The configuration that the measured jobs run with: the defaults."""

import hashlib
import json

import yaml

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
    """Prints the jobs' sections and the sha256 of the whole as JSON."""
    config = Config()
    text = config.model_dump_json()
    sections = config.model_dump(mode="json", include=set(_SECTIONS))
    print(
        json.dumps(
            {
                "config": yaml.safe_dump(sections, width=76),
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
            }
        )
    )


if __name__ == "__main__":
    main()
