"""Templates of the report, in files beside this one whose names end in ``.j2``."""

from __future__ import annotations

from importlib import resources
from typing import Any

from diffkit.errors import needed


def template(name: str) -> Any:
    """Return a template of Jinja2; texts are escaped, and a name without a value is an error.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    with needed("report", "a report"):
        from jinja2 import Environment, StrictUndefined
    source = resources.files("diffkit.evaluation").joinpath(name).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"plain": _plain, "px": "{:.1f}".format}
    return environment.from_string(source)


def _plain(value: Any) -> str:
    """An option's value as plain text."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)
