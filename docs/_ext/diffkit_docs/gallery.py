"""The gallery: a page for each built-in part of every kind, made from its class."""

from __future__ import annotations

import importlib
import inspect
import multiprocessing
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from diffkit.errors import DiffkitError
from diffkit.registry import KINDS, SLOTS, registry
from diffkit.testing import checks_for
from diffkit_docs import cache, docstrings, facts, figures, options
from diffkit_docs.docstrings import inline
from diffkit_docs.files import title, toctree, write_pages
from diffkit_docs.names import ROOT, full_names
from diffkit_docs.plots import panels_of

_PROCESSES = 2
_CALLS = {"optimizer": "train", "lr_schedule": "train"}
"""Kind that `diffkit.compose` has no keyword for -> the call that has."""
_PAPER = re.compile(r"([A-Z][^;:,()]*\d{4}), arXiv:(\d+\.\d+)")
"""As a docstring names a source: authors and year, and number."""


@frozen
class Shown:
    """A part as the gallery shows it.

    Attributes:
        kind: Its kind.
        name: Its registered name.
        cls: Its class.
        panels: Titles of the panels of its figure; empty without a figure.
        found: What was measured: "orders" and "calls" of a sampler.
    """

    kind: str
    name: str
    cls: Any
    panels: tuple[str, ...]
    found: dict[str, Any]

    @property
    def line(self) -> str:
        """What it is in one line: the first of its file."""
        return docstrings.parse(inspect.getmodule(self.cls).__doc__).summary.rstrip(".") + "."

    @property
    def doc(self) -> docstrings.Docstring:
        """The docstring of its class."""
        return docstrings.parse(self.cls.__doc__)


def write_gallery(folder: Path, kept: Path) -> None:
    """Write the pages and figures of the gallery.

    Args:
        folder: Of the sources.
        kept: Folder of what is cached between builds.
    """
    parts = _parts(folder, kept)
    misfits = cache.read(kept / "misfits.json") or facts.misfits()
    cache.write(kept / "misfits.json", misfits)
    pages = {"index.rst": _index(parts), "papers.rst": _papers(parts)}
    for kind, each in parts.items():
        pages[f"{kind}/index.rst"] = _kind_page(kind, each)
        pages |= {f"{kind}/{part.name}.rst": _part_page(part, misfits) for part in each}
    write_pages(folder, pages)


def _parts(folder: Path, kept: Path) -> dict[str, list[Shown]]:
    names = [(kind, name) for kind in KINDS for name in facts.built_in(kind)]
    jobs = [(folder, kept, kind, name) for kind, name in names if not _is_kept(folder, kept, kind, name)]
    with multiprocessing.get_context("fork").Pool(_PROCESSES) as pool:
        pool.starmap(_compute, jobs, chunksize=1)
    found: dict[str, list[Shown]] = {}
    for kind, name in names:
        held = cache.read(kept / kind / f"{name}.json", kind)
        part = Shown(kind, name, registry(kind).get(name), tuple(held["panels"]), held["found"])
        found.setdefault(kind, []).append(part)
    return found


def _is_kept(folder: Path, kept: Path, kind: str, name: str) -> bool:
    held = cache.read(kept / kind / f"{name}.json", kind)
    return bool(held) and all(
        (folder / kind / f"{name}.{i}.dark.svg").exists() for i in range(1, len(held["panels"]) + 1)
    )


def _compute(folder: Path, kept: Path, kind: str, name: str) -> None:
    """Draw the figure of a part, and measure it."""
    part = made(kind, name)
    panels = panels_of(kind, name, part)
    if panels:
        figures.write(panels, folder / kind / name)
    found = {}
    if kind == "sampler":
        plot = importlib.import_module("diffkit_docs.plots.sampler")
        found = {"orders": facts.orders(part), "calls": round(plot.calls_per_step(part), 2)}
    held = {"panels": [panel.title for panel in panels], "found": found}
    cache.write(kept / kind / f"{name}.json", held, kind)


def made(kind: str, name: str) -> Any:
    """Return a part with its defaults; its class if it has options that must be given."""
    try:
        return registry(kind).create(name)
    except DiffkitError:
        return registry(kind).get(name)


def _index(parts: dict[str, list[Shown]]) -> str:
    total = sum(map(len, parts.values()))
    lines = [title("Gallery"), f"The {total} built-in parts, by kind. Every page is made from the part itself: its", ""]
    lines[-1:] = ["equation, source and options from its docstring, its figure by running it.", ""]
    for kind, each in parts.items():
        lines += [title(kind, "-"), f":doc:`{KINDS[kind].about} <{kind}/index>`", "", *_cards(each, f"{kind}/"), ""]
    lines += [":doc:`The papers <papers>` that parts follow, each with its parts.", ""]
    return "\n".join([*lines, toctree([*(f"{kind}/index" for kind in parts), "papers"], "hidden")])


def _papers(parts: dict[str, list[Shown]]) -> str:
    """The papers that docstrings name as sources, newest first, each with its parts."""
    found: dict[tuple[str, str], list[str]] = {}
    for part in (part for each in parts.values() for part in each):
        for section in part.doc.sections:
            for authors, number in _PAPER.findall(" ".join(section.text.split())):
                of = found.setdefault((number, authors), [])
                of += [f":doc:`{part.name} <{part.kind}/{part.name}>`"]
    lines = [title("Papers"), "The papers that parts follow; each part's page names the equation.", ""]
    lines += [".. list-table::", "   :header-rows: 1", "", "   * - paper", "     - parts"]
    for (number, authors), of in sorted(found.items(), reverse=True):
        lines += [f"   * - {inline(f'{authors}, arXiv:{number}')}", f"     - {', '.join(dict.fromkeys(of))}"]
    return "\n".join([*lines, ""])


def _cards(parts: list[Shown], prefix: str) -> Iterator[str]:
    yield ".. container:: cards"
    yield ""
    for part in parts:
        yield "   .. container:: card"
        yield ""
        if part.panels:
            for shade in ("light", "dark"):
                yield f"      .. image:: {prefix}{part.name}.thumb.{shade}.svg"
                yield f"         :class: only-{shade}"
                yield f"         :alt: {part.name}"
                yield f"         :target: {prefix}{part.name}.html"
                yield ""
        yield f"      :doc:`{part.name} <{prefix}{part.name}>`"
        yield ""
        yield f"      {inline(part.line)}"
        yield ""


def _kind_page(kind: str, parts: list[Shown]) -> str:
    record = KINDS[kind]
    lines = [title(kind), record.about, ""]
    lines += [f"Its contract is :py:obj:`~{record.home}`. {_how_to_choose(kind)}", "", *_cards(parts, ""), ""]
    laws = _laws(kind)
    if laws:
        lines += [
            title("Laws", "-"),
            "``diffkit check NAME`` checks these of every part of this kind, yours included:",
            "",
        ]
        for law in laws:
            lines += [f"``{law.name}``", f"   {inline(' '.join(law.law.split()))}", ""]
    lines += ["To write one of your own, see :doc:`/repository/CONTRIBUTING` and :doc:`/conformance`.", ""]
    return "\n".join([*lines, toctree([part.name for part in parts], "hidden")])


def _how_to_choose(kind: str) -> str:
    if kind not in SLOTS:
        return ""
    default = inspect.signature(importlib.import_module("diffkit").compose).parameters[kind].default
    return f"``diffkit.compose({kind}=...)`` chooses one; the default is :doc:`{default}`."


def _laws(kind: str) -> tuple[Any, ...]:
    try:
        return checks_for(kind)
    except (DiffkitError, KeyError):
        return ()


def _part_page(part: Shown, misfits: dict[str, dict[str, str]]) -> str:
    equations = list(takewhile(lambda block: block.startswith("``"), part.doc.blocks))
    rest = part.doc.blocks[len(equations) :]
    lines = [title(part.name), inline(part.line), ""]
    if equations:
        lines += [".. container:: equation", ""]
        lines += [line for each in equations for line in (*_indented(docstrings.block(each)), "")]
    if part.panels:
        lines += [*_figure(part), ""]
    for block in rest:
        lines += [docstrings.block(block), ""]
    for section in part.doc.sections:
        if section.title in docstrings.TEXTS:
            lines += [f":{section.title}: {inline(' '.join(section.text.split()))}"]
    lines += ["", title("Options", "-"), *_options(part), "", *_use(part), ""]
    if properties := list(_properties(part)):
        lines += [title("Properties", "-"), *properties, ""]
    if part.kind in SLOTS and f"{part.kind} {part.name}" in misfits:
        lines += [title("What it fits", "-"), *_fits(misfits[f"{part.kind} {part.name}"]), ""]
    lines += [title("In Python", "-"), *_class(part), ""]
    lines += [title("The file", "-"), *_source(part), ""]
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"   {line}" if line else "" for line in text.splitlines()]


def _figure(part: Shown) -> Iterator[str]:
    yield ".. container:: panels"
    yield ""
    for i, panel in enumerate(part.panels, 1):
        for shade in ("light", "dark"):
            yield f"   .. image:: {part.name}.{i}.{shade}.svg"
            yield f"      :class: only-{shade}"
            yield f"      :alt: {part.name}: {panel}"
            yield ""


def _options(part: Shown) -> Iterator[str]:
    found = options.options_of(part.cls) if attrs.has(part.cls) else ()
    if not found:
        yield "None."
        return
    yield from options.table(found)


def _use(part: Shown) -> Iterator[str]:
    """How the part is named in Python and on the command line, with its first options."""
    call = "compose" if part.kind in SLOTS else _CALLS.get(part.kind)
    if call is None:
        return
    plain = [each for each in options.options_of(part.cls) if each.default not in ("", "None", "()")][:2]
    pairs = ", ".join(f'"{each.name}": {each.default}' for each in plain)
    slot = f'("{part.name}", {{{pairs}}})' if pairs else f'"{part.name}"'
    flags = "".join(_flag(part.kind, each) for each in plain)
    others = "" if call == "compose" else "system, data, ..., "
    yield from (".. code-block:: python", "", f"   diffkit.{call}({others}{part.kind}={slot})", "")
    yield from (".. code-block:: text", "", f"   --{part.kind.replace('_', '-')} {part.name}{flags}")


def _flag(kind: str, option: options.Option) -> str:
    name = f"--{kind}.{option.name}".replace("_", "-")
    if option.default in ("True", "False"):
        return f" {name}={option.default.lower()}"
    return f" {name} {option.default.strip(chr(39))}"


def _properties(part: Shown) -> Iterator[str]:
    instance = made(part.kind, part.name)
    found = {} if isinstance(instance, type) else facts.properties(part.kind, instance)
    for name, value in found.items():
        yield f":{name}: {value}"
    if part.found:
        measured = ", ".join(f"{order:g} ({path})" for path, order in part.found["orders"].items())
        yield f":measured order: {measured}, by the conformance kit"
        yield f":calls of the network: {part.found['calls']:g} a step, over 100 steps"


def _fits(misfits: dict[str, str]) -> Iterator[str]:
    if not misfits:
        yield "Every built-in part of the other kinds."
        return
    yield "Every built-in part of the other kinds, except:"
    yield ""
    for other, why in misfits.items():
        kind, _, name = other.partition(" ")
        yield f"* {kind} :doc:`{name} <../{kind}/{name}>`: {docstrings.escaped(why)}"


def _source(part: Shown) -> Iterator[str]:
    """The whole file of the part, from which one of one's own can start."""
    path = Path(inspect.getfile(part.cls)).relative_to(ROOT)
    yield from (f"``{path}``", "", f".. literalinclude:: /../{path}", "   :language: python")


def _class(part: Shown) -> Iterator[str]:
    path = f"{part.cls.__module__}.{part.cls.__qualname__}"
    if path in full_names():
        yield f":py:obj:`{path}`"
        return
    yield f".. py:class:: {path}{options.signature(part.cls) if attrs.has(part.cls) else ''}"
    yield ""
    yield f'   {inline(part.line)} The class that ``{part.kind}="{part.name}"`` stands for.'
