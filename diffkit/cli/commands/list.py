"""List the parts and commands that can be named: built-in, and those of installed plugins.

No part is imported. A plugin's part that has the name of another is marked, with the full name that reaches it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata

from attrs import field, frozen

from diffkit.cli.parsing.commands import as_typed
from diffkit.cli.parsing.docstrings import summary
from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.sources import docstring_of
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.options import flag, number
from diffkit.presets import table
from diffkit.registry import BUILT_IN, COMMAND, KINDS, LOCAL, Entry, registry
from diffkit.runtime.output import show_cut

PRESETS = "presets"


@frozen
class Options:
    """Options of ``diffkit list``.

    Attributes:
        kind: One kind only, such as schedule or sampler; or command; or presets, the published configurations.
        check: Load every plugin, each in a process of its own, and print the time it took or its error; status 1
            if any fails.
        timeout: Seconds that one plugin may take with --check.
    """

    kind: str | None = field(default=None, metadata=POSITIONAL)
    check: bool = flag(False)
    timeout: float = number(10.0, gt=0)


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Print the parts."""
    options = parsed.make(Options)
    kind = options.kind
    if options.check:
        from diffkit.registry.check_plugins import main

        if status := main(None if kind is None else [registry(kind).kind], options.timeout):
            sys.exit(status)
        return
    presets = kind in (None, PRESETS)
    kinds = tuple(KINDS) if kind is None else () if presets else (registry(kind).kind,)
    for line in [*lines(kinds), *(preset_lines() if presets else ())]:
        show_cut(line)


def lines(kinds: tuple[str, ...]) -> Iterator[str]:
    """Yield the listing, a heading for each kind and a line for each part."""
    found = {kind: registry(kind).entries() for kind in kinds}
    entries = [entry for each in found.values() for entry in each]
    names = max((len(_name(entry)) for entry in entries), default=0)
    origins = max((len(_origin(entry)) for entry in entries), default=0)
    for kind, each in found.items():
        yield kind
        for entry in each:
            yield f"  {_name(entry):{names}}  {_origin(entry):{origins}}  {_remark(entry)}".rstrip()


def preset_lines() -> Iterator[str]:
    """Yield the published configurations: name, number of parameters, what it is."""
    yield PRESETS
    rows = table()
    longest = max(len(name) for name, _, _ in rows)
    for name, size, about in rows:
        yield f"  {name:{longest}}  {size:>6}  {about}"


def _name(entry: Entry) -> str:
    return as_typed([entry.name])[0] if entry.kind == COMMAND.name else entry.name


def _origin(entry: Entry) -> str:
    return f"{entry.origin} {entry.version}".strip()


def _remark(entry: Entry) -> str:
    text = _one_line(entry)
    return f"[shadowed; use {entry.qualified}] {text}" if entry.shadowed else text


def _one_line(entry: Entry) -> str:
    """What a part is: the first line of its file or class, or what its distribution is; imports nothing."""
    if entry.origin == LOCAL:
        return summary(registry(entry.kind).get(entry.name).__doc__)
    return summary(docstring_of(entry.value)) or (
        "" if entry.origin == BUILT_IN else _distribution_summary(entry.origin)
    )


@cache
def _distribution_summary(distribution: str) -> str:
    try:
        return " ".join((metadata.metadata(distribution)["Summary"] or "").split())
    except Exception:  # metadata of others may be missing, or be no text
        return ""
