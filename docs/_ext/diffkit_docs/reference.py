"""The API reference: a page for each public name, and one for each module that lists its names."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from diffkit_docs.docstrings import inline, parse, to_rst
from diffkit_docs.files import title, toctree, write_pages
from diffkit_docs.names import PACKAGE, Name, modules, public_names


def write_reference(folder: Path) -> None:
    """Write the pages of the reference into a folder of the sources."""
    names = public_names()
    further = sorted({each.module for each in names} - set(modules()))
    pages = {f"{path}.rst": text for path, text in _name_pages(names)}
    for module in (*modules(), *further):
        pages[f"{module}.rst"] = _module_page(module, [each for each in names if each.module == module])
    pages["index.rst"] = _index(further)
    write_pages(folder, pages)


def homes(names: Iterable[Name]) -> dict[str, str]:
    """Return the full name of each public name -> that under which its page is, the first of the same object."""
    first: dict[str | int, str] = {}
    return {each.path: first.setdefault(each.key, each.path) for each in names}


def summary(value: Any) -> str:
    """The first sentence of a docstring."""
    text = parse(inspect.getdoc(value) if not isinstance(value, dict | tuple | str | int | float) else "").summary
    head, _, _ = text.partition(". ")
    return inline(head.rstrip(".") + "." if head else "")


def _name_pages(names: Iterable[Name]) -> Iterable[tuple[str, str]]:
    at = homes(names)
    for each in names:
        if at[each.path] == each.path:
            yield each.path, _name_page(each, [path for path, home in at.items() if home == each.path != path])


def _name_page(name: Name, others: list[str]) -> str:
    lines = [title(name.name), f".. py:currentmodule:: {name.module}", ""]
    lines += [f".. auto{name.what}:: {name.path}"]
    if name.what in ("class", "exception"):
        lines += ["   :members:", "   :member-order: bysource"]
        if "__call__" in vars(name.value):
            lines += ["   :special-members: __call__"]
        if name.value.__bases__ != (object,):
            lines += ["   :show-inheritance:"]
        if fields := field_names(name.value):
            lines += [f"   :exclude-members: {', '.join(fields)}"]
    if others:
        lines += ["", f"Also importable as {', '.join(f'``{path}``' for path in others)}."]
    return "\n".join(lines) + "\n"


def field_names(cls: type) -> tuple[str, ...]:
    """Names of a class's fields, which its docstring explains."""
    own = tuple(field.name for field in attrs.fields(cls)) if attrs.has(cls) else ()
    return (*own, *getattr(cls, "_fields", ()))


def _module_page(module: str, names: list[Name]) -> str:
    at = homes(public_names())
    lines = [title(module), f".. py:module:: {module}", ""]
    lines += to_rst(importlib.import_module(module).__doc__)
    lines += [".. list-table::", "   :class: names", "   :widths: 30 70", ""]
    for each in names:
        lines += [f"   * - :doc:`{each.name} <{at[each.path]}>`", f"     - {summary(each.value) or each.what}"]
    own = [each.path for each in names if at[each.path] == each.path]
    return "\n".join([*lines, "", toctree(own, "hidden") if own else ""])


def _index(further: list[str]) -> str:
    authoring = [m for m in modules() if (PACKAGE / f"{m.partition('.')[2]}.py").is_file()]
    packages = [m for m in modules() if m not in authoring and m != "diffkit"]
    groups = (
        ("The package", "What ``import diffkit`` offers.", ["diffkit"]),
        ("For authors of parts", "All that a part may import, besides the registry.", authoring),
        ("Packages", "One for each use of a system.", packages),
        (
            "Further modules",
            "Records that the functions above take and return, and functions that pages mention.",
            further,
        ),
    )
    lines = [title("API reference"), f"{len(public_names())} public names, each with a page.\n"]
    lines += ["Besides: the :doc:`commands </commands/index>`, the :doc:`parts </gallery/index>` by name, and the "]
    lines += [":doc:`glossary </glossary>`.", "", toctree(["/commands/index", "/glossary"], "hidden")]
    for name, text, entries in groups:
        lines += [title(name, "-"), text, "", ".. list-table::", "   :class: names", "   :widths: 30 70", ""]
        for module in entries:
            about = summary(importlib.import_module(module)) or "\\ "
            lines += [f"   * - :doc:`{module} <{module}>`", f"     - {about}"]
        lines += ["", toctree(entries, "hidden")]
    return "\n".join(lines)
