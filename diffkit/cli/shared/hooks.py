"""The hooks of a command that trains, from its parsed options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffkit.cli.parsing.parts import names_of
from diffkit.cli.parsing.spec import ParsedOptions


def hooks_of(parsed: ParsedOptions) -> list[tuple[str, Mapping[str, Any]]]:
    """Return names and options of the hooks that were chosen, as `diffkit.train` takes them."""
    if "hook" not in parsed.parts:
        return []
    joined, options = parsed.parts["hook"]
    names = names_of("hook", joined)
    if len(names) == 1:
        return [(names[0], options)]
    pairs = [(*key.partition(".")[::2], value) for key, value in options.items()]
    return [(name, {key: value for owner, key, value in pairs if owner == name}) for name in names]
