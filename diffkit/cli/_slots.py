"""Which parts a command line or a file names, so that only their options are looked up.

Data is named in the same way: ``--data digits --data.split train``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from attrs import NOTHING

from diffkit._errors import OptionError, did_you_mean
from diffkit.cli._options import Option, options_of, spelled
from diffkit.data import NAMED, File, Folder, Source, source_for
from diffkit.registry import canonical, registry

HEADINGS = ("Parts", "Data")
"""Headings of the options that choose parts, or data."""

DATA = "data"
"""The slot that is no kind of part: where data comes from."""
_HELP = {
    "schedule": "Noise schedule.",
    "mean": "What the network predicts.",
    "var": "Variance of the reverse step.",
    "loss": "What training minimizes.",
    "timesteps": "Which levels training visits.",
    "sampler": "How samples are drawn.",
    "backbone": "The network.",
    DATA: f"{', '.join(NAMED)}, a folder of images, or a .npz or .npy file.",
}


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
    """The options that choose a part of each kind."""
    return [
        Option((kind,), str, NOTHING if kind in required else default, _slot_help(kind), _heading(kind), metavar="NAME")
        for kind, default in kinds.items()
    ]


def part_options(kind: str, name: str) -> list[Option]:
    """The options of one part; imports that part and no other."""
    if kind == DATA:
        source = source_class(name)
        return [o for o in options_of(source, (DATA,), f"{DATA} {name}") if o.path[-1] != "path"]
    return options_of(registry(kind).get(name), (kind,), f"{kind} {canonical(name)}")


def source_class(name: str) -> type[Source]:
    """Which options a source of data has; it is looked at only when it is opened."""
    if name in NAMED:
        return NAMED[name]
    return File if Path(name).suffix in (".npz", ".npy") else Folder


def unknown_option(kind: str, name: str, word: str) -> str:
    """Say that a part has no such option, and which built-in of its kind has."""
    own = [option.path[-1] for option in part_options(kind, name)]
    text = f"{kind} {name!r} has no option {word!r}{did_you_mean(word, own)} (options: {', '.join(own) or 'none'})"
    if kind == DATA:
        return text
    others = [n for n in registry(kind).built_in_names() if n != canonical(name)]
    having = [n for n in others if word in {option.path[-1] for option in part_options(kind, n)}]
    return f"{text}; {kind} {having[0]!r} has it: {spelled((kind,))} {having[0]}" if having else text


def check_name(kind: str, name: str) -> None:
    """Raise the registry's error unless a part has that name."""
    if not name:
        raise OptionError(f"{spelled((kind,))} needs a name; {_slot_help(kind)}")
    if kind != DATA:
        registry(kind).get(name)
    elif name not in NAMED and not Path(name).exists():
        source_for(name)  # says what is wrong with it


def _heading(kind: str) -> str:
    return HEADINGS[kind == DATA]


def _slot_help(kind: str) -> str:
    if kind == DATA:
        return _HELP[DATA]
    return f"{_HELP.get(kind, kind)} Built in: {', '.join(registry(kind).built_in_names())}."
