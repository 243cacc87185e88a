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
def digest(kind: str = "") -> str:
    """Return a digest of all code that the gallery of a kind is computed by, and of the libraries that it uses.

    Without a kind: of what is computed from all parts together.
    """
    found = hashlib.sha256()
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in _WITHOUT]
    own = [
        _HERE / "figures.py",
        *([] if kind else [_HERE / "facts.py"]),
        *_HERE.glob("plots/_*.py"),
        *_HERE.glob(f"plots/{kind}.py"),
    ]
    for path in sorted([*files, *own]):
        found.update(path.read_bytes())
    for library in ("torch", "numpy", "matplotlib"):
        found.update(version(library).encode())
    return found.hexdigest()


def read(path: Path, kind: str = "") -> dict[str, Any]:
    """Return what a file holds if it was computed by the present code; else nothing."""
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held["value"] if held.get("digest") == digest(kind) else {}


def write(path: Path, value: dict[str, Any], kind: str = "") -> None:
    """Keep a value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"digest": digest(kind), "value": value}), encoding="utf-8")
