"""The public names of diffkit, found in the code: every one of them has a page."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from attrs import frozen

import diffkit

PACKAGE = Path(diffkit.__file__).parent
ROOT = PACKAGE.parent
NOT_AN_API = ("cli", "runtime", "demo")
"""Entries of the package that are programs, or used by diffkit itself only."""


@frozen
class Name:
    """A public name.

    Attributes:
        module: The public module that a user imports it from.
        name: Its name there.
        value: The object.
    """

    module: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        """Full name, by which it is imported."""
        return f"{self.module}.{self.name}"

    @property
    def key(self) -> str | int:
        """What is equal for the same object by another name; data by two names is two things."""
        return self.path if self.what == "data" else id(self.value)

    @property
    def what(self) -> str:
        """What it is: class, exception, function or data."""
        if inspect.isclass(self.value) and self.value is not Any:
            return "exception" if issubclass(self.value, BaseException) else "class"
        return "function" if inspect.isroutine(self.value) else "data"


def modules() -> tuple[str, ...]:
    """Public modules: the package, the files at its top that parts may import, and each package that exports names."""
    found = ["diffkit"]
    for entry in sorted(pkgutil.iter_modules([str(PACKAGE)]), key=lambda entry: (entry.ispkg, entry.name)):
        if not entry.name.startswith("_") and entry.name not in NOT_AN_API and _exported(f"diffkit.{entry.name}"):
            found.append(f"diffkit.{entry.name}")
    return tuple(found)


@cache
def public_names() -> tuple[Name, ...]:
    """Every public name: those that public modules export, that the pages mention, and that signatures are made of."""
    found = {each.path: each for module in modules() for each in _names_of(module)}
    for path in sorted(mentioned()):
        module, _, name = path.rpartition(".")
        if path not in found and not any(part.startswith("_") for part in path.split(".")):
            found |= {each.path: each for each in _mentioned_names(module, name)}
    todo = list(found.values())
    known = {each.key for each in todo}
    while todo:
        for each in _in_signatures(todo.pop()):
            if each.key not in known:
                known.add(each.key)
                found[each.path] = each
                todo.append(each)
    return tuple(found.values())


def _names_of(module: str) -> list[Name]:
    return [Name(module, name, value) for name, value in _exported(module)]


def _mentioned_names(module: str, name: str) -> list[Name]:
    """The function, class or value of that name, or the names of the module that it is; none for a class's member."""
    try:
        value = _found(module, name)
    except (ImportError, AttributeError):
        return []
    if isinstance(value, types.ModuleType):
        return [] if value.__name__ in modules() or _is_internal(value.__name__) else _names_of(value.__name__)
    return [] if str(getattr(value, "__module__", "")).startswith("diffkit.parts.") else [Name(module, name, value)]


def _found(module: str, name: str) -> Any:
    """A name of a module, or its submodule, whether or not that was imported before."""
    home = importlib.import_module(module)
    return getattr(home, name) if hasattr(home, name) else importlib.import_module(f"{module}.{name}")


def _is_internal(module: str) -> bool:
    return module.split(".")[1] in (*NOT_AN_API, "parts", "system")


@cache
def _types() -> Mapping[str, str]:
    """Name of each public class and documented type alias -> its module, where only one has that name."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        entries = module.split(".")[1:]
        if not any(entry.startswith("_") or entry in ("cli", "parts", "demo") for entry in entries):
            for name in _defined_names(path):
                if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name):
                    found.setdefault(name, []).append(module)
    return {name: modules[0] for name, modules in found.items() if len(modules) == 1}


def aliases() -> tuple[str, ...]:
    """Names of type aliases that signatures are written with."""
    return tuple(each.name for each in public_names() if each.what == "data" and each.name in _types())


def _in_signatures(name: Name) -> Iterator[Name]:
    """Classes and type aliases of diffkit that the signatures of a name, and of its public methods, are made of."""
    value = name.value
    members = [m for key, m in vars(value).items() if not key.startswith("_")] if inspect.isclass(value) else []
    holders = [value, *(getattr(m, "fget", None) or getattr(m, "__func__", m) for m in members)]
    text = " ".join(str(hint) for each in holders for hint in getattr(each, "__annotations__", {}).values())
    for word in sorted(set(re.findall(r"\b[A-Z]\w+", text))):
        if word in _types():
            module = _types()[word]
            yield Name(module, word, getattr(importlib.import_module(module), word))


def _exported(module: str) -> list[tuple[str, Any]]:
    """Names that a module offers: its ``__all__``, else what it defines or, as a package, imports by the same name."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        names: Iterable[str] = loaded.__all__
    elif hasattr(loaded, "__path__"):
        names = _imported_names(Path(loaded.__file__ or ""))
    else:
        names = _defined_names(Path(loaded.__file__ or ""))
    return [(name, getattr(loaded, name)) for name in sorted(names, key=str.lower) if not name.startswith("_")]


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imported_names(path: Path) -> list[str]:
    """Names of ``from module import name as name``, which is how a package marks what it exports; and functions."""
    body = _tree(path).body
    imported = [a.name for node in body if isinstance(node, ast.ImportFrom) for a in node.names if a.asname == a.name]
    return imported or _defined_names(path)


def _defined_names(path: Path) -> list[str]:
    """Classes, functions and constants with a docstring that a file defines."""
    body, found = _tree(path).body, list[str]()
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(target, ast.Name) and text:
                found.append(target.id)
    return [name for name in found if not name.startswith("_")]


def pages() -> Iterator[Path]:
    """The pages written by hand."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))
    yield from sorted((ROOT / "docs" / "learn").glob("**/*.md"))


def mentioned() -> set[str]:
    """Full names in the pages: ``diffkit.data.loading.load``."""
    found = set()
    for page in pages():
        text = page.read_text(encoding="utf-8")
        found |= set(re.findall(r"\bdiffkit(?:\.[A-Za-z]\w*)+(?!/)", text))
        for module, names in re.findall(r"\bfrom (diffkit[\w.]*) import (\w+(?:, \w+)*)", text):
            found |= {f"{module}.{name}" for name in names.split(", ")}
    return found


@cache
def full_names() -> frozenset[str]:
    """Full names of all public objects, also by the module that defines them."""
    found = {each.path for each in public_names()}
    for each in public_names():
        if each.what != "data":
            found.add(f"{each.value.__module__}.{each.value.__qualname__}")
    return frozenset(found)
