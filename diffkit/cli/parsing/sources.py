"""Docstrings of what entry points name, read from the source: nothing is imported, as the code is that of others."""

from __future__ import annotations

import ast
from importlib.util import find_spec, resolve_name
from pathlib import Path


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
