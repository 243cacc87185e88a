"""Which parts a command line or a file names, so that only their options are looked up."""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from attrs import NOTHING

from diffkit.cli.parsing.families import family
from diffkit.cli.parsing.options import Option, options_of, spelled
from diffkit.errors import OptionError, did_you_mean
from diffkit.registry import KINDS, canonical


def named_on_line(tokens: Sequence[str], kinds: Sequence[str]) -> dict[str, str]:
    """Part names on a command line: ``--schedule cosine`` or ``--schedule=cosine``; the first of each kind."""
    found: dict[str, str] = {}
    for token, following in zip_longest(tokens, tokens[1:], fillvalue=""):
        flag, equals, value = token.partition("=")
        kind = flag.removeprefix("--")
        if flag.startswith("--") and kind in kinds and (equals or following):
            found.setdefault(kind, value if equals else following)
    return found


def named_in_file(config: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, str]:
    """Part names of a configuration file: ``schedule = "cosine"`` or a table with a ``name``."""
    found = {}
    for kind in kinds:
        slot = config.get(kind)
        name = slot.get("name") if isinstance(slot, Mapping) else slot
        if isinstance(name, str):
            found[kind] = name
    return found


def slot_options(kinds: Mapping[str, str | None], required: Collection[str] = ()) -> list[Option]:
    """The options that choose what fills each slot."""
    return [
        Option(
            (kind,),
            str,
            NOTHING if kind in required else default,
            _help(kind),
            family(kind).heading,
            metavar="NAME",
            chooses=True,
        )
        for kind, default in kinds.items()
    ]


def part_options(kind: str, name: str) -> list[Option]:
    """The options of what fills a slot; imports that part and no other."""
    found = family(kind)
    return [o for o in options_of(found.factory(name), (kind,), f"{kind} {name}") if o.path[-1] not in found.hidden]


def lasting_options(kind: str, one: str, other: str) -> set[str]:
    """Keys of the options of one that are meant for the other as well; none but for data."""
    if not family(kind).lasting:
        return set()
    both = {(o.key, o.kind) for o in part_options(kind, one)} & {(o.key, o.kind) for o in part_options(kind, other)}
    return {key for key, value in both if Path not in (value, *typing.get_args(value))}


def unknown_option(kind: str, name: str, word: str) -> str:
    """Return the error text for an unknown option, with the built-in part that has it."""
    own = [option.path[-1] for option in part_options(kind, name)]
    text = f"{kind} {name!r} has no option {word!r}{did_you_mean(word, own)} (options: {', '.join(own) or 'none'})"
    others = [n for n in family(kind).listed() if n != canonical(name)] if kind in KINDS else []
    having = [n for n in others if word in {option.path[-1] for option in part_options(kind, n)}]
    return f"{text}; {kind} {having[0]!r} has it: {spelled((kind,))} {having[0]}" if having else text


def check_name(kind: str, name: str) -> None:
    """Raise unless something has that name."""
    if not name:
        raise OptionError(f"{spelled((kind,))} needs a name; {_help(kind)}")
    family(kind).check(name)


def _help(kind: str) -> str:
    found = family(kind)
    return f"{found.help} Built in: {', '.join(found.listed())}."
