"""Fixtures that several test folders share."""

import os
from pathlib import Path

import pytest

# Folders whose tests share models that take long to make.
_TOGETHER = ("tests/serving", "tests/pipeline/serve")

# Before any test imports TensorFlow: it reads this once.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps a file's tests, or such a folder's, in one process."""
    for item in items:
        folder = item.path.parent.relative_to(item.config.rootpath).as_posix()
        group = folder if folder in _TOGETHER else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def real_logs() -> Path:
    """The folder of the real logs; skips where there is none."""
    folder = os.environ.get("WATCHNEXT_DATA")
    if not folder:
        pytest.skip("WATCHNEXT_DATA is not set: no real logs to test on")
    return Path(folder)
