"""The shipped configs are found in a checkout and in an installed copy."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.shipped import shipped_config, shipped_names
from schemas.errors import UsageError

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    configs = tmp_path / "configs"
    (configs / "mappings").mkdir(parents=True)
    (configs / "demo.yaml").write_text("seed: 1\n")
    (configs / "mappings" / "log.yaml").write_text("root: .\n")
    (configs / "notes.txt").write_text("not a config\n")
    (tmp_path / "secret.yaml").write_text("outside\n")
    return configs


def test_names_are_sorted_and_only_yaml(folder: Path) -> None:
    assert shipped_names(folder) == ["demo", "mappings/log"]


@pytest.mark.parametrize("name", ["mappings/log", "mappings/log.yaml"])
def test_suffix_is_optional(folder: Path, name: str) -> None:
    assert shipped_config(name, folder).read_text() == "root: .\n"


@pytest.mark.parametrize("name", ["dem", "../secret", "notes", "", "mappings"])
def test_unknown_name_lists_the_shipped_ones(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match="Shipped: demo, mappings/log"):
        shipped_config(name, folder)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        # A checkout has configs/ beside pipeline/.
        (["configs"], "configs"),
        # A wheel has them inside; a stranger's site-packages/configs beside
        # the package must not be taken.
        (["pipeline/configs", "configs"], "pipeline/configs"),
    ],
)
def test_folder_in_checkout_and_in_wheel(
    tmp_path: Path, layout: list[str], expected: str
) -> None:
    for package in ("pipeline", "schemas"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(CHECKOUT / "pipeline/shipped.py", tmp_path / "pipeline")
    shutil.copy(CHECKOUT / "schemas/errors.py", tmp_path / "schemas")
    for path in layout:
        (tmp_path / path).mkdir()
        (tmp_path / path / "demo.yaml").write_text(path)
    code = (
        "from pipeline.shipped import shipped_config;"
        "print(shipped_config('demo').read_text())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == expected
