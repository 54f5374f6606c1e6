"""One self-contained HTML file from a template, written whole or not at all.

Templates lie beside this module and extend `base.html`. All they are given is
escaped, but for the plots, which are markup by their type.
"""

import math
import os
import uuid
from collections.abc import Mapping
from typing import Any

import jinja2
from apache_beam.io.filesystems import FileSystems

from schemas.errors import UsageError


def render(template: str, values: Mapping[str, Any]) -> str:
    """Text of a template of this folder; a name that it lacks is an error."""
    return _environment().get_template(template).render(values)


def write_page(path: str, template: str, values: Mapping[str, Any]) -> None:
    """Renders a template into a file, beside it first and then renamed.

    Args:
      path: local, or of an object store.
      template: a file of this folder.
      values: what the template names.

    Raises:
      UsageError: the file cannot be written.
    """
    check_path(path)
    text = render(template, values).encode()
    # An object store shows a file when it is closed, never half.
    remote = "://" in path
    part = path if remote else f"{path}.{uuid.uuid4().hex[:8]}.part"
    try:
        if not remote:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with FileSystems.create(part, "text/html") as stream:
            stream.write(text)
        if not remote:
            os.replace(part, path)
    except OSError as error:
        if not remote and os.path.exists(part):
            os.remove(part)
        raise UsageError(
            f"The page cannot be written to {path}: {error}. Name another "
            "file with --output."
        ) from error


def check_path(path: str) -> None:
    """Checks a page's name, before the work that goes into it.

    Raises:
      UsageError: it is not that of an HTML file.
    """
    if not path.endswith((".html", ".htm")):
        raise UsageError(f"The page's file must end with .html, got {path!r}.")


def number(value: float | None) -> str:
    """Four digits that mean something; counts whole; a dash for no value."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    magnitude = abs(value)
    whole = value == round(value) and magnitude < 1e15
    if whole or magnitude >= 1000:
        text = f"{value:,.0f}"
    elif magnitude >= 100:
        text = f"{value:.1f}"
    elif magnitude >= 1:
        text = f"{value:.3f}"
    else:
        text = f"{value:.4f}" if magnitude >= 0.001 else f"{value:.1e}"
    return text.replace("-", "−")


def size(count: int) -> str:
    """Bytes in the unit that fits."""
    left = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if left < 1000:
            return f"{left:.0f} {unit}" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1000
    return f"{left:.1f} TB"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.pages", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "size": size}
    return environment
