"""A folder on sys.path for each test, and registries that forget what a test taught them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from registry_support import Site

from diffkit.registry import OFFERED, refresh, registry


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty site-packages; what is imported from it, registered or loaded is forgotten afterwards."""
    monkeypatch.delenv("DIFFKIT_PLUGINS", raising=False)
    path = tmp_path / "site"
    path.mkdir()
    monkeypatch.syspath_prepend(str(path))
    before = set(sys.modules)
    memories = [getattr(registry(kind), name) for kind in OFFERED for name in ("_here", "_imported", "_provenance")]
    kept = [dict(memory) for memory in memories]
    refresh()
    yield Site(path)
    for memory, old in zip(memories, kept, strict=True):
        built_in = {k: v for k, v in memory.items() if getattr(v, "origin", str(k).partition(":")[0]) == "diffkit"}
        memory.clear()
        memory.update(built_in | old)  # what stays in sys.modules must stay registered
    for name in set(sys.modules) - before:
        if str(path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
    monkeypatch.undo()
    refresh()
