"""Imports point one way, those under TYPE_CHECKING and inside functions too; parts import the authoring API only."""

from __future__ import annotations

import ast
import pkgutil
from functools import cache
from pathlib import Path

import pytest

import diffkit
from diffkit.registry import KINDS, registry

ROOT = Path(diffkit.__file__).parent
ORDER = (
    *("_version", "errors", "options", "table", "protocols", "tensors", "gaussian"),
    *("runtime", "registry", "parts", "spacing", "system", "guidance"),
    *("presets", "weights", "likelihood", "tasks", "serving", "data", "training", "explain", "evaluation"),
    *("__init__", "testing", "demo", "cli", "__main__"),
)
"""Entries of the package, lowest first: each may import itself and what stands before it; see CONTRIBUTING."""

AUTHORING_API = {"errors", "options", "table", "protocols", "gaussian", "tensors", "registry"}
"""What a part may import, besides modules of its own folder whose names start with "_"."""

CIRCLES: dict[frozenset[str], str] = {
    frozenset({"diffkit.explain.explanation", "diffkit.explain.plot"}): "an explanation has a method that draws it",
    frozenset({"diffkit.likelihood.scores", "diffkit.likelihood._plot"}): "scores have a method that draws them",
}
"""Files that import each other, each with the reason; at most two."""

FILES = {
    ".".join(("diffkit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


@cache
def imports_of(module: str) -> frozenset[str]:
    """Every module of diffkit that a file imports, at whatever place."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update({name for name in names if name in FILES} or {node.module})
    return frozenset(found & FILES.keys() - {module})


def entry(module: str) -> str:
    """The entry of the top level that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def circles() -> set[frozenset[str]]:
    """Groups of files each of which imports every other, by way of others or directly."""
    reach: dict[str, set[str]] = {}
    for module in FILES:
        seen: set[str] = set()
        todo = [module]
        while todo:
            new = imports_of(todo.pop()) - seen
            seen |= new
            todo.extend(new)
        reach[module] = seen
    return {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in FILES
        if module in reach[module]
    }


def test_the_list_names_every_entry():
    assert {entry(module) for module in FILES} == set(ORDER)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str):
    own = ORDER.index(entry(module))
    upward = {name for name in imports_of(module) if ORDER.index(entry(name)) > own}
    assert not upward, f"{module} imports {', '.join(sorted(upward))}, above it in the list"


def test_no_files_import_each_other():
    assert circles() == CIRCLES.keys()
    assert len(CIRCLES) <= 2


@pytest.mark.parametrize("module", [m for m in FILES if m.startswith("diffkit.parts.")])
def test_parts_import_the_authoring_api_and_their_own_folder(module: str):
    folder = module.rpartition(".")[0]
    for name in imports_of(module):
        own = name.startswith(f"{folder}._")
        assert own or entry(name) in AUTHORING_API, f"{module} imports {name}"


def test_few_entries_at_the_top():
    entries = {path.name for path in ROOT.iterdir()} - {"__pycache__"}
    assert len(entries) <= 28


@pytest.mark.parametrize("module", [m for m, path in FILES.items() if path.name == "__init__.py"])
def test_no_submodule_is_named_as_something_its_package_exports(module: str):
    package = __import__(module, fromlist=["x"])
    submodules = {found.name for found in pkgutil.iter_modules([str(FILES[module].parent)])}
    exported = set(getattr(package, "__all__", ()))
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    exported |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and f"{node.module}.{node.names[0].name}" not in FILES
        for alias in node.names
    }
    assert not submodules & exported


@pytest.mark.parametrize("kind", KINDS)
def test_file_stem_is_registered_name(kind: str):
    for name in registry(kind).built_in_names():
        part = registry(kind).get(name)
        assert part.__module__ == f"{KINDS[kind].package}.{name}"
