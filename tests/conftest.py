"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest

# Before any test imports TensorFlow: it reads this once.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@pytest.fixture(scope="session")
def real_logs() -> Path:
    """The folder of the real logs; skips where there is none."""
    folder = os.environ.get("WATCHNEXT_DATA")
    if not folder:
        pytest.skip("WATCHNEXT_DATA is not set: no real logs to test on")
    return Path(folder)
