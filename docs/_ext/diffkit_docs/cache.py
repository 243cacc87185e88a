"""What is computed for the gallery, kept until the code that it depends on changes."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffkit_docs.names import PACKAGE

_WITHOUT = ("cli", "data", "evaluation", "likelihood", "presets", "runtime", "tasks", "training", "weights")
"""Packages on which no figure depends."""
_HERE = Path(__file__).parent


@cache
def digest() -> str:
    """Return a digest of all code that the gallery is computed by, and of the libraries that it uses."""
    found = hashlib.sha256()
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in _WITHOUT]
    for path in sorted([*files, *_HERE.glob("plots/*.py"), *(_HERE / f"{name}.py" for name in ("figures", "facts"))]):
        found.update(path.read_bytes())
    for library in ("torch", "numpy", "matplotlib"):
        found.update(version(library).encode())
    return found.hexdigest()


def read(path: Path) -> dict[str, Any]:
    """Return what a file holds if it was computed by the present code; else nothing."""
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held["value"] if held.get("digest") == digest() else {}


def write(path: Path, value: dict[str, Any]) -> None:
    """Keep a value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"digest": digest(), "value": value}), encoding="utf-8")
