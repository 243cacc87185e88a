"""Checks of the finished site: every link inside it leads somewhere, and no page loads anything from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LINK = re.compile(r'<[^>]*?\s(?:href|src)="([^"]*)"')
_ID = re.compile(r'\s(?:id|name)="([^"]*)"')
_LOADED = re.compile(
    r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\ssrc="((?:https?:)?//[^"]*)"'
    r'|<link\b[^>]*?\shref="((?:https?:)?//[^"]*)"'
)
_LOADED_BY_CSS = re.compile(r"(?:@import\s+|url\()\s*[\"']?((?:https?:)?//[^\"')]*)")


def problems(site: Path) -> list[str]:
    """Return a line for each dead link and each thing that a page would load from another site."""
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(site.rglob("*.html"))}
    ids = {path: {html.unescape(each) for each in _ID.findall(text)} for path, text in pages.items()}
    found = []
    for path, text in pages.items():
        here = path.relative_to(site)
        found += [f"{here}: no {target}" for target in _dead(path, text, ids)]
        found += [f"{here}: loads {''.join(each)}" for each in _LOADED.findall(text)]
    for sheet in sorted(site.rglob("*.css")):
        loaded = _LOADED_BY_CSS.findall(sheet.read_text(encoding="utf-8"))
        found += [f"{sheet.relative_to(site)}: loads {each}" for each in loaded]
    return found


def _dead(page: Path, text: str, ids: dict[Path, set[str]]) -> Iterator[str]:
    for link in sorted(set(_LINK.findall(text))):
        parts = urlsplit(html.unescape(link))
        if parts.scheme or parts.netloc:
            continue
        there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        there = there / "index.html" if there.is_dir() else there
        anchor = unquote(parts.fragment)
        if not there.exists() or (anchor and there in ids and anchor not in ids[there]):
            yield link
