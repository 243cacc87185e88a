"""Pages of the repository that lie outside of docs/, and links to them.

They are copied into the sources, so that links between all pages stay within the site. A link to a file that is not a
page, such as a test, becomes its path.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from diffkit_docs.names import ROOT

FOLDER = "repository"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)]*)?\)")
_PICTURES = (".png", ".svg", ".jpg")


def sources() -> tuple[Path, ...]:
    """Pages outside of docs/ that the site shows: those of the top, of plugins, and results of benchmarks."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("plugins/**/README.md"), *ROOT.glob("benchmarks/**/*.md")]
    return tuple(
        sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(ROOT).parts))
    )


def write_repository(docs: Path) -> None:
    """Copy these pages, and the pictures they show, into the sources."""
    folder = docs / FOLDER
    wanted = set()
    for path in sources():
        wanted.add(_copy(path, folder, path.read_text(encoding="utf-8")))
        for mark, _, target, _ in _LINK.findall(path.read_text(encoding="utf-8")):
            picture = (path.parent / target).resolve()
            if mark and picture.suffix in _PICTURES and picture.is_file():
                wanted.add(_copy(picture, folder, None))
    for path in folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()


def _copy(path: Path, folder: Path, text: str | None) -> Path:
    to = folder / path.relative_to(ROOT)
    to.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        if not to.exists() or to.read_bytes() != path.read_bytes():
            shutil.copyfile(path, to)
    elif not to.exists() or to.read_text(encoding="utf-8") != text:
        to.write_text(text, encoding="utf-8")
    return to


def with_site_links(text: str, page: Path, docs: Path) -> str:
    """Return the text of a page with its links to files of the repository made links within the site.

    Args:
        text: Markdown.
        page: The source of the page.
        docs: The folder of the sources.
    """
    copied = page.is_relative_to(docs / FOLDER)
    original = ROOT / page.relative_to(docs / FOLDER) if copied else page

    def changed(link: re.Match[str]) -> str:
        mark, label, target, anchor = link.groups()
        there = (original.parent / target).resolve()
        if there.is_dir():
            there = there / "README.md"
        if not there.exists() or not there.is_relative_to(ROOT):
            return link[0]
        inside = there if there.is_relative_to(docs) else docs / FOLDER / there.relative_to(ROOT)
        if inside.exists():
            return f"{mark}[{label}]({os.path.relpath(inside, page.parent)}{anchor or ''})"
        return label if "`" in label or label == there.name else f"{label} (`{there.relative_to(ROOT)}`)"

    return _LINK.sub(changed, text)
