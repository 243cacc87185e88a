"""Every name that a package offers can be imported from it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import diffkit

PACKAGES = ("diffkit", *(f"diffkit.{entry.name}" for entry in pkgutil.iter_modules(diffkit.__path__) if entry.ispkg))


@pytest.mark.parametrize("package", PACKAGES)
def test_each_exported_name_can_be_imported(package: str):
    loaded = importlib.import_module(package)
    assert [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)] == []
