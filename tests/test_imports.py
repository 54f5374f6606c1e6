"""The house holds: import arrows, module length, top-level folders.

Arrows are read from the source by `ast`, so an import inside a function or
behind a condition counts as well, and so does a dynamic one that names its
module in a string.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]

# Who may import whom among our folders; itself always.
ARROWS = {
    "pipeline": {"beam_jobs", "models", "schemas"},
    "beam_jobs": {"schemas"},
    "models": {"schemas"},
    "schemas": set(),
}
DYNAMIC = {"import_module", "__import__", "find_spec", "run_module"}
# A module is one idea; a test file lists its cases.
MAX_LINES, MAX_TEST_LINES = 400, 600

# Fixed by the architecture. Folders that a stage or a person makes are left
# alone by starting with a dot or by being in .gitignore.
TOP_LEVEL = {
    *ARROWS,
    *("tests", "configs", "benchmarks", "deploy", "docs"),
    *("setup.py", "pyproject.toml", "requirements.lock", "watchnext"),
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"),
}
NEEDED = {*ARROWS, "tests", "setup.py", "README.md"}
IGNORED = {"work", "build", "dist", "__pycache__"}


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute module name) of every import in `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.Call) and node.args:
            function = node.func
            name = getattr(function, "attr", getattr(function, "id", ""))
            first = node.args[0]
            if name in DYNAMIC and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def violations(root: Path) -> list[str]:
    """Return one line a forbidden import below `root`, sorted by place."""
    found = []
    for house, allowed in ARROWS.items():
        for path in sorted((root / house).rglob("*.py")):
            tree = ast.parse(path.read_text(), str(path))
            for line, module in imported_modules(tree):
                target = module.split(".")[0]
                # Nothing but tests imports tests.
                ours = target in ARROWS or target == "tests"
                if ours and target != house and target not in allowed:
                    place = path.relative_to(root).as_posix()
                    found.append(f"{place}:{line} imports {module}")
    return found


def test_arrows_point_down() -> None:
    assert violations(CHECKOUT) == []


def test_the_walk_sees_the_project() -> None:
    # Were the folders not found, no violation would be either.
    for house in ARROWS:
        assert (CHECKOUT / house / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("house", "source", "module"),
    [
        ("schemas", "import models", "models"),
        ("schemas", "from pipeline.config import Config", "pipeline.config"),
        ("beam_jobs", "import os, models.towers as t", "models.towers"),
        ("models", "def f():\n    from beam_jobs import x", "beam_jobs"),
        ("models", "import pipeline", "pipeline"),
        ("models", "if 1:\n  import tests.conftest", "tests.conftest"),
        (
            "beam_jobs",
            "import importlib\nimportlib.import_module('models.index')",
            "models.index",
        ),
        ("schemas", "__import__('beam_jobs')", "beam_jobs"),
    ],
)
def test_a_planted_violation_is_found(
    tmp_path: Path, house: str, source: str, module: str
) -> None:
    deep = tmp_path / house / "deep"
    deep.mkdir(parents=True)
    (deep / "planted.py").write_text(source)
    line = source[: source.index(module)].count("\n") + 1
    assert violations(tmp_path) == [
        f"{house}/deep/planted.py:{line} imports {module}"
    ]


@pytest.mark.parametrize(
    ("house", "source"),
    [
        ("pipeline", "import models, beam_jobs.sources\nimport schemas"),
        ("beam_jobs", "from schemas.events import Watch\nimport beam_jobs"),
        ("models", "from . import towers\nfrom tf_keras import models"),
        ("beam_jobs", "from .models import names"),
        # The name of our folder, but of a stranger's package.
        ("schemas", "import tensorflow_recommenders.models"),
        ("schemas", "print('models')"),
    ],
)
def test_what_is_allowed_is_not_reported(
    tmp_path: Path, house: str, source: str
) -> None:
    (tmp_path / house).mkdir()
    (tmp_path / house / "fine.py").write_text(source)
    assert violations(tmp_path) == []


def test_one_idea_a_module_fits_in_few_lines() -> None:
    folders = [*ARROWS, "tests", "benchmarks"]
    lengths = {
        path.relative_to(CHECKOUT).as_posix(): len(
            path.read_text().splitlines()
        )
        for folder in folders
        for path in (CHECKOUT / folder).rglob("*.py")
    }
    allowed = {
        p: MAX_TEST_LINES if p.startswith("tests/") else MAX_LINES
        for p in lengths
    }
    assert {p: n for p, n in lengths.items() if n > allowed[p]} == {}


def test_top_level_is_as_the_architecture_says() -> None:
    names = {
        path.name
        for path in CHECKOUT.iterdir()
        if not path.name.startswith(".")
        and not path.name.endswith(".egg-info")
        and path.name not in IGNORED
    }
    assert names - TOP_LEVEL == set()
    assert NEEDED - names == set()


def test_setup_lists_every_package() -> None:
    # Read, not run: setup() would look at the command line.
    tree = ast.parse((CHECKOUT / "setup.py").read_text())
    (listed,) = (
        ast.literal_eval(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "packages"
    )
    packages = {
        path.parent.relative_to(CHECKOUT).as_posix().replace("/", ".")
        for house in ARROWS
        for path in (CHECKOUT / house).rglob("__init__.py")
    }
    # The configs are data; setup.py maps them into `pipeline`.
    assert set(listed) == packages | {"pipeline.configs"}
