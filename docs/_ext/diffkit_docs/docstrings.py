"""Docstrings of diffkit as reStructuredText.

A docstring is a first paragraph, more paragraphs, and sections: "Args:", "Attributes:", "Raises:" with an indented
entry each, "Returns:", "Source:", "Deviates:" with text. Double backticks hold formulas and code, single ones names.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence

from attrs import frozen

ENTRIES = ("Args", "Attributes", "Raises")
"""Sections with an entry for each name."""
TEXTS = ("Returns", "Yields", "Source", "Deviates")
"""Sections of text."""

_HEADING = re.compile(rf"({'|'.join((*ENTRIES, *TEXTS))}):(?:\s+|$)")
_ENTRY = re.compile(r"(\*{0,2}\w[\w.]*(?:, \*{0,2}\w[\w.]*)*): ?(.*)")
_SPAN = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_LIST_ITEM = re.compile(r"(?:[*-]|\d+\.) ")


@frozen
class Section:
    """One section.

    Attributes:
        title: Such as "Args".
        text: Its text, "" for entries.
        entries: Pairs of names and text.
    """

    title: str
    text: str = ""
    entries: tuple[tuple[str, str], ...] = ()


@frozen
class Docstring:
    """A docstring in pieces.

    Attributes:
        blocks: Paragraphs, lists, tables and code before the first section.
        sections: In their order.
    """

    blocks: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()

    @property
    def summary(self) -> str:
        """The first paragraph on one line."""
        return " ".join(self.blocks[0].split()) if self.blocks else ""

    def section(self, title: str) -> Section | None:
        """Return the section of that title."""
        return next((each for each in self.sections if each.title == title), None)

    def entry(self, name: str) -> str:
        """Return the text about one argument or attribute; "" if there is none."""
        for each in self.sections:
            for names, text in each.entries:
                if name in names.split(", "):
                    return text
        return ""


def parse(text: str | None) -> Docstring:
    """Return a docstring in pieces."""
    lines = inspect.cleandoc(text or "").splitlines()
    starts = [i for i, line in enumerate(lines) if _HEADING.match(line)]
    body = lines[: starts[0]] if starts else lines
    ends = [*starts[1:], *([len(lines)] if starts else [])]
    sections, trailing = [], list[str]()
    for start, end in zip(starts, ends, strict=True):
        section, rest = _section(lines[start:end])
        sections.append(section)
        trailing += rest
    return Docstring((*_blocks(body), *_blocks(trailing)), tuple(sections))


def _blocks(lines: Sequence[str]) -> Iterator[str]:
    """Groups of lines between blank ones; blank lines within code stay."""
    block: list[str] = []
    for line in lines:
        if line.strip():
            if block and not block[-1].strip() and not (_is_code(block) and line.startswith("    ")):
                yield "\n".join(block).rstrip()
                block = []
            elif block and line.startswith("    ") and not block[-1].startswith("    ") and _ends_paragraph(block[-1]):
                yield "\n".join(block)
                block = []
            block.append(line)
        elif block:
            block.append("")
    if block:
        yield "\n".join(block).rstrip()


def _is_code(block: Sequence[str]) -> bool:
    return all(line.startswith("    ") or not line.strip() for line in block)


def _ends_paragraph(line: str) -> bool:
    return line.rstrip().endswith(":") and not _LIST_ITEM.match(line.lstrip())


def _section(lines: Sequence[str]) -> tuple[Section, Sequence[str]]:
    """A section, and the lines of body text after it."""
    title = lines[0].partition(":")[0]
    if title in TEXTS:
        end = next((i for i, line in enumerate(lines) if not line.strip()), len(lines))
        first = lines[0].partition(":")[2].strip()
        rest = textwrap.dedent("\n".join(lines[1:end]))
        return Section(title, f"{first}\n{rest}".strip()), lines[end:]
    outside = (i for i, line in enumerate(lines[1:], 1) if line.strip() and not line.startswith("    "))
    end = next(outside, len(lines))
    entries: list[tuple[str, list[str]]] = []
    for line in textwrap.dedent("\n".join(lines[1:end])).splitlines():
        found = None if line.startswith(" ") else _ENTRY.fullmatch(line)
        if found:
            entries.append((found[1], [found[2]]))
        elif entries:
            entries[-1][1].append(line.strip())
        elif line.strip():
            entries.append(("", [line]))
    return Section(title, "", tuple((name, " ".join(text).strip()) for name, text in entries)), lines[end:]


def inline(text: str) -> str:
    """Return text of a docstring as reStructuredText: its literals stay, names become links, the rest is escaped."""
    out, last = [], 0
    for span in _SPAN.finditer(text):
        out += [
            escaped(text[last : span.start()]),
            _span(span[0], text[: span.start()], text[span.end() :]),
        ]
        last = span.end()
    return "".join([*out, escaped(text[last:])])


def escaped(text: str) -> str:
    """Return text without markup as reStructuredText; papers of arXiv become links."""
    escaped = re.sub(r"([\\*|`_])", r"\\\1", text)
    return _PAPER.sub(r"`\g<0> <https://arxiv.org/abs/\1>`__", escaped)


def _span(span: str, before: str, after: str) -> str:
    """A literal or a link, set off from letters that touch it."""
    content = span.strip("`")
    name = content.removesuffix("()")
    text = f":py:obj:`{content} <{name}>`" if not span.startswith("``") and _NAME.fullmatch(name) else f"``{content}``"
    left = "\\ " if before[-1:] and not before[-1:].isspace() and before[-1:] not in "([{'\"/-<:" else ""
    right = "\\ " if after[:1].isalnum() or after[:1] in ("_", "^", "*", "+", "=", "`") else ""
    return f"{left}{text}{right}"


def block(text: str) -> str:
    """Return one block as reStructuredText: code, a table, a list or a paragraph."""
    lines = text.splitlines()
    if lines[0].startswith("===") and lines[-1].startswith("==="):
        return "\n".join(_table(lines))
    if _is_code(lines):
        code = textwrap.dedent(text)
        language = "python" if _is_python(code) else "text"
        return f".. code-block:: {language}\n\n{textwrap.indent(code, '   ')}"
    if _LIST_ITEM.match(lines[0]):
        return "\n".join(_items(lines))
    return inline(" ".join(line.strip() for line in lines))


def _table(lines: Sequence[str]) -> Iterator[str]:
    """A table with its columns at the same places, as a list-table."""
    ends = [match.span() for match in re.finditer("=+", lines[0])]
    yield ".. list-table::"
    yield ""
    for line in lines:
        if not line.startswith("==="):
            cells = [line[start : end if i < len(ends) - 1 else None] for i, (start, end) in enumerate(ends)]
            if not cells[0].strip():
                continue
            for i, cell in enumerate(cells):
                yield f"   {'* -' if i == 0 else '  -'} {inline(cell.strip())}"


def _items(lines: Sequence[str]) -> Iterator[str]:
    """A list; lines that continue an item are joined with it."""
    items: list[str] = []
    for line in lines:
        if _LIST_ITEM.match(line):
            items.append(line)
        else:
            items[-1] += f" {line.strip()}"
    for item in items:
        mark, _, text = item.partition(" ")
        yield f"{mark} {inline(text)}"


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def sections(doc: Docstring, without: Sequence[str] = ()) -> Iterator[str]:
    """Yield each section as reStructuredText."""
    titles = {"Args": "Arguments"}
    for each in doc.sections:
        if each.title in without:
            continue
        title = titles.get(each.title, each.title)
        if each.title in TEXTS:
            yield f":{title}: {inline(' '.join(each.text.split()))}"
            continue
        yield f":{title}:"
        for names, text in each.entries:
            shown = ", ".join(f"**{escaped(name)}**" if name else "" for name in names.split(", "))
            if each.title == "Raises":
                shown = ", ".join(f":py:obj:`{name}`" for name in names.split(", ") if name)
            yield f"   | {shown}: {inline(text)}" if shown else f"   | {inline(text)}"


def to_rst(text: str | None) -> list[str]:
    """Return a docstring as lines of reStructuredText."""
    doc = parse(text)
    out: list[str] = []
    for each in doc.blocks:
        out += [*block(each).splitlines(), ""]
    if doc.sections:
        out += [*sections(doc), ""]
    return out
