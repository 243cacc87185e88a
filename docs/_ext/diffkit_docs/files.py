"""Generated pages: written only if they change, and removed with the thing they are about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Make a folder hold these pages and no others.

    Args:
        folder: Where.
        pages: Path below the folder -> text.
    """
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*.rst"):
        if path.relative_to(folder).as_posix() not in pages:
            path.unlink()


def title(text: str, line: str = "=") -> str:
    """Return a heading as reStructuredText."""
    return f"{text}\n{line * max(len(text), 3)}\n"


def toctree(entries: list[str], *options: str) -> str:
    """Return a table of contents as reStructuredText."""
    lines = [".. toctree::", *(f"   :{option}:" for option in options), "", *(f"   {entry}" for entry in entries)]
    return "\n".join(lines) + "\n"
