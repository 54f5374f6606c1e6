"""Where the programs of Beam's local engines are, and how to get them.

Prism is Beam's small portable engine; `boot` starts a Python worker where an
engine asks for a process (`--environment_type=PROCESS`). Both are Go modules
of Beam's own release and come with no Python package. Nothing heavy is
imported here: `doctor` asks too.
"""

import os
import shutil
from importlib import metadata
from pathlib import Path

PRISM_VARIABLE, BOOT_VARIABLE = "WATCHNEXT_PRISM", "WATCHNEXT_BOOT"
_MODULE = "github.com/apache/beam/sdks/v2"
_PRISM_PACKAGE = f"{_MODULE}/go/cmd/prism"
_BOOT_PACKAGE = f"{_MODULE}/python/container"


def find_prism() -> str | None:
    """Path of Prism: WATCHNEXT_PRISM, on PATH, or where Go installs."""
    return _find(PRISM_VARIABLE, "prism", on_path=True)


def find_boot() -> str | None:
    """Path of Beam's boot: WATCHNEXT_BOOT, or where Go installs it."""
    # Go names a program after its folder, too common a name for PATH.
    return _find(BOOT_VARIABLE, "container", on_path=False)


def how_to_get_prism() -> str:
    """The command that builds Prism of the installed Beam."""
    return f"go install {_PRISM_PACKAGE}@v{metadata.version('apache-beam')}"


def how_to_get_boot() -> str:
    """The command that builds boot of the installed Beam."""
    return f"go install {_BOOT_PACKAGE}@v{metadata.version('apache-beam')}"


def _find(variable: str, name: str, on_path: bool) -> str | None:
    if given := os.environ.get(variable):
        return given if os.access(given, os.X_OK) else None
    if on_path and (found := shutil.which(name)):
        return found
    folders = [os.environ.get("GOBIN")]
    folders += [
        os.path.join(root, "bin")
        for root in os.environ.get("GOPATH", "").split(os.pathsep)
        if root
    ]
    folders.append(str(Path.home() / "go" / "bin"))
    return next(
        (
            path
            for folder in folders
            if folder and (path := shutil.which(name, path=folder))
        ),
        None,
    )
