"""Help texts, read off docstrings."""

from __future__ import annotations

import inspect
import re
from functools import cache

_ENTRY = re.compile(r"(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)")


def plain(text: str) -> str:
    """The text without double or single backticks."""
    return text.replace("`", "")


@cache
def section(docstring: str | None, title: str) -> dict[str, str]:
    """Entries of an ``Attributes:`` or ``Args:`` section: name -> text on one line."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in _lines_of(inspect.cleandoc(docstring or ""), title):
        entry = _ENTRY.match(line)
        if entry:
            current = [entry[2]]
            found |= dict.fromkeys(entry[1].split(", "), current)
        else:
            current.append(line.strip())
    return {name: plain(" ".join(lines)) for name, lines in found.items()}


def _lines_of(docstring: str, title: str) -> list[str]:
    """Lines of a section, its own indentation removed."""
    lines = docstring.splitlines()
    if f"{title}:" not in lines:
        return []
    body = []
    for line in lines[lines.index(f"{title}:") + 1 :]:
        if line.strip() and not line.startswith("    "):
            break
        body.append(line[4:])
    return [line for line in body if line.strip()]
