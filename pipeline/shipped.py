"""Find the configs that are shipped with the project, wherever it runs.

In: a name such as `demo`, `paper.yaml` or `mappings/kuairand`. Out: the path
of that YAML file. In a checkout the files lie in the top-level `configs/`;
setup.py copies them into the wheel as `pipeline/configs/`, so that the
installed command finds them from any folder.
"""

from pathlib import Path

from schemas.errors import UsageError


def config_folder() -> Path:
    """Return the folder of the shipped configs.

    Only a wheel has `configs` inside the package, so its presence decides.
    """
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped_names(folder: Path | None = None) -> list[str]:
    """Return the shipped configs' names without suffix, sorted.

    Args:
        folder: where to look; the shipped folder unless given.
    """
    folder = folder or config_folder()
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.yaml")
    )


def shipped_config(name: str, folder: Path | None = None) -> Path:
    """Return the path of the shipped config `name`.

    Args:
        name: such as `demo` or `mappings/kuairand`, with or without `.yaml`.
        folder: where to look; the shipped folder unless given.

    Raises:
        UsageError: if no config of this name is shipped; the message lists
            those that are.
    """
    folder = folder or config_folder()
    names = shipped_names(folder)
    # Membership, not existence: `../secret` is no shipped name.
    wanted = name.removesuffix(".yaml")
    if wanted not in names:
        raise UsageError(
            f"`{name}` is not a shipped config. Shipped:"
            f" {', '.join(names) or 'none'}. Give one of these or the path"
            " of a YAML file."
        )
    return folder / f"{wanted}.yaml"
