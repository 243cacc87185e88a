"""List the parts and commands that can be named: built-in, and those of installed plugins.

No part is imported. A plugin's part that has the name of another is marked, with the full name that reaches it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.options import flag, number
from diffkit.presets import table
from diffkit.registry import describe, registry
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
    parts = "" if kind == PRESETS else describe(kind)
    for line in [*parts.splitlines(), *(preset_lines() if presets else ())]:
        show_cut(line)


def preset_lines() -> Iterator[str]:
    """Yield the published configurations: name, number of parameters, what it is."""
    yield PRESETS
    rows = table()
    longest = max(len(name) for name, _, _ in rows)
    for name, size, about in rows:
        yield f"  {name:{longest}}  {size:>6}  {about}"
