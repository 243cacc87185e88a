"""A page for each command of ``diffkit``, made from its own help text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import frozen

from diffkit_docs.docstrings import escaped
from diffkit_docs.files import title, toctree, write_pages

_WIDTH = 4000
"""Columns, so that no line of a table is broken."""
_PANEL = re.compile(r"^╭─ (.+?) ─*╮$")

_NOTE = re.compile(r"\[(default|choices|required)(?:: (.*?))?\](?= \[|$)")
"""What a help text says at the end of an option."""


@frozen
class Panel:
    """A titled table of a help text: rows of a name and its text."""

    title: str
    rows: tuple[tuple[str, str], ...]


@frozen
class Help:
    """A help text in pieces."""

    usage: str
    text: tuple[str, ...]
    panels: tuple[Panel, ...]


def write_commands(folder: Path) -> None:
    """Write a page for each command, and an index, into a folder of the sources."""
    overview = help_of()
    commands = _commands(overview)
    with ThreadPoolExecutor(2) as pool:
        helps = list(pool.map(lambda row: help_of(*row[0].split()), commands))
        groups = {name: _commands(each) for (name, _), each in zip(commands, helps, strict=True)}
        within = [(f"{name} {word}", about) for name, rows in groups.items() for word, about in rows]
        helps += pool.map(lambda row: help_of(*row[0].split()), within)
    found = sorted(zip([*commands, *within], helps, strict=True))
    commands = [row for row, _ in found if not groups.get(row[0])]
    pages = {f"{_slug(name)}.rst": _page(name, each) for (name, _), each in found if not groups.get(name)}
    rows = [f"   * - :doc:`diffkit {name} <{_slug(name)}>`\n     - {escaped(about)}" for name, about in commands]
    pages["index.rst"] = "\n".join(
        [
            title("Commands"),
            *(f"{escaped(text)}\n" for text in overview.text),
            ".. list-table::\n   :class: names\n   :widths: 25 75\n",
            *rows,
            "",
            toctree([f"diffkit {name} <{_slug(name)}>" for name, _ in commands], "hidden"),
        ]
    )
    write_pages(folder, pages)


def _commands(of: Help) -> list[tuple[str, str]]:
    """Commands that a help text lists, with what they do."""
    return [row for panel in of.panels if panel.title == "Commands" for row in panel.rows]


def help_of(*words: str) -> Help:
    """Return the help text of a command, or of diffkit itself."""
    env = os.environ | {"COLUMNS": str(_WIDTH), "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
    line = [sys.executable, "-m", "diffkit", *words, "--help"]
    text = subprocess.run(line, env=env, capture_output=True, check=True, encoding="utf-8").stdout
    return read(text)


def read(text: str) -> Help:
    """Return a help text in pieces."""
    usage, paragraphs, panels = "", list[str](), list[Panel]()
    rows: list[tuple[str, str]] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("Usage:"):
            usage = line.removeprefix("Usage:").strip()
        elif found := _PANEL.match(line):
            rows = []
            panels.append(Panel(found[1], ()))
        elif line.startswith("╰"):
            panels[-1] = Panel(panels[-1].title, tuple(rows))
        elif line.startswith("│"):
            rows += _row(line.strip("│"), rows)
        elif line:
            paragraphs.append(line)
    return Help(usage, tuple(paragraphs), tuple(panels))


def _row(line: str, before: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The row of a line; none if it continues the one before, to which it is then added."""
    name, _, about = line.strip().partition("  ")
    if line.startswith("  ") and before:
        before[-1] = (before[-1][0], f"{before[-1][1]} {line.strip()}".strip())
        return []
    return [(name, about.strip())]


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _page(name: str, each: Help) -> str:
    lines = [title(f"diffkit {name}"), ".. code-block:: text", "", f"   {each.usage}", ""]
    for text in each.text:
        lines += [escaped(text), ""]
    for panel in each.panels:
        lines += [title(panel.title, "-"), *_rows(panel), ""]
    return "\n".join(lines)


def _rows(panel: Panel) -> Iterator[str]:
    yield from (".. list-table::", "   :class: options", "   :widths: 30 70", "")
    for name, about in panel.rows:
        notes = dict(_NOTE.findall(about))
        shown = " ".join([escaped(_NOTE.sub("", about).strip()), *_notes(notes)]).strip() or "\\ "
        yield f"   * - ``{name}``"
        yield f"     - {shown}"


def _notes(notes: dict[str, str]) -> Iterator[str]:
    for key, value in notes.items():
        yield f"{key.capitalize()}: ``{value}``." if value else f"{key.capitalize()}."
