"""Everything that can be named, with what it is: read from docstrings, as an import would run code of others."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from importlib import metadata
from importlib.util import find_spec, resolve_name
from pathlib import Path

from diffkit.errors import OptionError
from diffkit.registry.entry_points import BUILT_IN, LOCAL
from diffkit.registry.kinds import COMMAND, KINDS
from diffkit.registry.lookup import Entry, registry


def describe(kind: str | None = None) -> str:
    """Return a table of all parts, of those of one kind, or of commands: name, origin, version and what each is.

    A part whose name means another is marked, with the full name that reaches it.
    """
    if not isinstance(kind, str | None):
        raise OptionError(f"describe takes a kind of part, got a {type(kind).__name__}; diffkit.explain is of a system")
    kinds = KINDS if kind is None else (registry(kind).kind,)
    rows = {
        each: [(_typed(e), f"{e.origin} {e.version}", _remark(e)) for e in registry(each).entries()] for each in kinds
    }
    names, origins = (max([len(row[i]) for own in rows.values() for row in own], default=0) for i in (0, 1))
    lines = []
    for each, own in rows.items():
        lines += [each, *(f"  {name:{names}}  {origin:{origins}}  {text}".rstrip() for name, origin, text in own)]
    return "\n".join(lines)


def as_typed(name: str) -> str:
    """Return how a command is typed whose module, or entry point, has this name."""
    return name.rstrip("_").replace("__", " ").replace("_", "-")


def _typed(entry: Entry) -> str:
    return as_typed(entry.name) if entry.kind == COMMAND.name else entry.name


def _remark(entry: Entry) -> str:
    return f"[shadowed; use {entry.qualified}] {summary_of(entry)}" if entry.shadowed else summary_of(entry)


def summary_of(entry: Entry) -> str:
    """Return what a part is: the first line of its file or class, or what its distribution is; imports nothing."""
    if entry.origin == LOCAL:
        return summary(registry(entry.kind).get(entry.name).__doc__)
    return summary(docstring_of(entry.value)) or (
        "" if entry.origin == BUILT_IN else _distribution_summary(entry.origin)
    )


@cache
def _distribution_summary(distribution: str) -> str:
    try:
        return " ".join((metadata.metadata(distribution)["Summary"] or "").split())
    except Exception:  # metadata of others may be missing, or be no text
        return ""


def summary(docstring: str | None) -> str:
    """Return the first line, without backticks and the final period."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    return lines[0].replace("`", "").removesuffix(".") if lines else ""


def docstring_of(value: str) -> str:
    """Return the docstring of ``module`` or ``module:Class``; an empty string if there is none, or no source.

    A class that the module imports from another one is looked up there.
    """
    module, _, name = (word.strip() for word in value.partition(":"))
    try:
        return _docstring(module, name, hops=2)
    except Exception:  # any file may be in the way, and any importer of others
        return ""


def _docstring(module: str, name: str, hops: int) -> str:
    file = _source(module)
    if file is None:
        return ""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if not name:
        return ast.get_docstring(tree) or ""
    for each in tree.body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == name:
            return ast.get_docstring(each) or ""
        if isinstance(each, ast.ImportFrom) and hops:
            package = module if file.stem == "__init__" else module.rpartition(".")[0]
            origin = resolve_name("." * each.level + (each.module or ""), package)
            for alias in each.names:
                if name == (alias.asname or alias.name):
                    return _docstring(origin, alias.name, hops - 1)
    return ""


def _source(module: str) -> Path | None:
    """File of a module; `find_spec` would import the packages that a dotted name is in."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    places = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
    return next((file for file in files if file.is_file()), None)
