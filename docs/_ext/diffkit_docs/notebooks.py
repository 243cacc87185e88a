"""Pages of docs/learn as notebooks, made when the site is built and offered on the page.

A ``python`` block is a cell; under a line with the name of a file the cell writes that file. Lines of ``bash`` blocks,
and of ``sh`` blocks of diffkit's own commands, go to the shell. What a ``text`` block below shows, the cell prints
itself. Everything else is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path("_build", "notebooks")
TUTORIALS = ("first-hour", "seven-decisions", "your-own-part", "beyond-images", "likelihood")
"""Pages of docs/learn that can be run from top to bottom in one place."""

_BLOCK = re.compile(
    r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<language>python|bash|sh)\n(?P<code>.*?)^```\n"
    r"(?:\n+^```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
_FIGURES = re.compile(r"^```\{gallery-figures\}.*?^```\n", re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r"\{[\w:]+\}`~?([^`<]*?)\s*(?:<[^`]*>)?`")
_LINK_TO_PAGE = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")
_PICTURE = re.compile(r"^!\[[^\]]*\]\([^)]*\)\n", re.MULTILINE)
_ERROR = re.compile(r"\w+Error: ")


def write_notebooks(docs: Path, release: str) -> None:
    """Write a notebook for each tutorial below the folder of the sources."""
    folder = docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name in TUTORIALS:
        page = (docs / "learn" / f"{name}.md").read_text(encoding="utf-8")
        path, text = folder / f"{name}.ipynb", json.dumps(notebook(page, release), indent=1) + "\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def with_download(text: str, page: Path) -> str:
    """Return the text of a page with a link to its notebook below the title, if it has one."""
    if page.parent.name != "learn" or page.stem not in TUTORIALS:
        return text
    title, _, rest = text.partition("\n")
    return f"{title}\n\n{{download}}`This page as a notebook </{(FOLDER / page.stem).as_posix()}.ipynb>`\n{rest}"


def notebook(page: str, release: str) -> dict[str, Any]:
    """Return a page of Markdown as a notebook, in Jupyter's format 4.5."""
    title, _, rest = page.partition("\n")
    needs = f'A page of the site of diffkit {release}. It needs `python -m pip install "diffkit[demo,testing,ode]"`.'
    cells = [_text(f"{title}\n\n{needs}"), *_cells(rest)]
    return {
        "cells": [{"id": f"cell-{i}", **cell} for i, cell in enumerate(cells)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cells(page: str) -> Iterator[dict[str, Any]]:
    end = 0
    for block in _BLOCK.finditer(page):
        code = _code(block)
        if code is None:  # it stays a part of the text
            continue
        if text := _plain(page[end : block.start()]):
            yield _text(text)
        yield _run(code, raises=bool(_ERROR.match(block["shown"] or "")))
        end = block.end()
    if text := _plain(page[end:]):
        yield _text(text)


def _code(block: re.Match[str]) -> str | None:
    code = block["code"].rstrip("\n")
    if block["file"]:
        return f"%%writefile {block['file']}\n{code}"
    if block["language"] == "python":
        return code
    lines = code.splitlines()
    if block["language"] == "sh" and not all(line.startswith("diffkit ") for line in lines):
        return None
    return "\n".join(f"!{line}" for line in lines)


def _plain(text: str) -> str:
    """Text without what only the site can show: its figures, its pictures, and links between its pages."""
    text = _PICTURE.sub("", _FIGURES.sub("", text))
    return _LINK_TO_PAGE.sub(r"\1", _ROLE.sub(r"\1", text)).strip()


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source.splitlines(keepends=True)}


def _run(source: str, raises: bool) -> dict[str, Any]:
    """A cell of code; one that shows an error says so, and Jupyter then goes on."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {"tags": ["raises-exception"]} if raises else {},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }
