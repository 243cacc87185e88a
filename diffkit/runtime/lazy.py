"""Public names that a package imports on first use, so that importing the package stays light."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any


def on_first_use(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__all__``, ``__getattr__`` and ``__dir__`` for lazy imports of public names (PEP 562).

    The one list of names is the package's own block ``if TYPE_CHECKING:``, which type checkers and editors read too:
    each ``from module import name as name`` in it is exported, in the order written; other imports there are not.
    Submodules are imported on first use, too.

    Args:
        package: Its ``__name__``.
    """
    home = _reexported(package)

    def find(name: str) -> Any:
        if name in home:
            value = getattr(importlib.import_module(home[name]), name)
            setattr(sys.modules[package], name, value)
            return value
        if find_spec(f"{package}.{name}"):
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def public() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return list(home), find, public


def _reexported(package: str) -> dict[str, str]:
    """Name -> module that has it."""
    tree = ast.parse(inspect.getsource(sys.modules[package]))
    blocks = [node.body for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    return {name.name: str(node.module) for node in imports for name in node.names if name.asname == name.name}
