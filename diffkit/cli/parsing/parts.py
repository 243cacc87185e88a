"""What fills the slots of a command: parts of a kind, data, guidance. Each has a name and options of its own."""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from attrs import NOTHING

from diffkit.cli.parsing.importing import FLAG
from diffkit.cli.parsing.options import Option, options_of, spelled
from diffkit.cli.shared.guidance import FOLDERS, guidance_class, with_folder
from diffkit.data.loading import class_for_path, registered_name
from diffkit.errors import OptionError, did_you_mean
from diffkit.registry import KINDS, canonical, registry

_DATA = {
    "data": "A folder, .zip or .tar files of images, a .npz or .npy file, or a name.",
    "val": "Held-out data to validate on, as for --data.",
}
"""Slots that data fills, with their help."""
_SHOWN = 3
"""Names of parts that an error lists at most."""
_MAY_BE_EMPTY = ("guidance",)
"""Slots in which "none" is no part, in place of a default of the system."""


# ---- which are chosen ------------------------------------------------------------------------------------------------


def named_on_line(words: Sequence[str], kinds: Collection[str]) -> dict[str, str]:
    """Names on a command line: ``--schedule cosine`` or ``--schedule=cosine``; the first of each kind."""
    found: dict[str, str] = {}
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        kind = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and kind in kinds and (equals or following):
            found.setdefault(kind, value if equals else following)
    return found


def is_empty(kind: str, name: str | None) -> bool:
    """Return whether a name stands for no part."""
    return not name or (kind in _MAY_BE_EMPTY and name == "none")


def check_name(kind: str, name: str) -> None:
    """Raise unless something has that name."""
    if not name:
        raise OptionError(f"{spelled((kind,))} needs a name; {_help(kind)}")
    if kind not in _DATA or registered_name(name):
        refuse_file(name, f"{spelled((kind,))} ")
        for each in names_of(kind, name) if "," in name else (name,):
            part_factory(kind, each)
    else:
        class_for_path(Path(name))


def refuse_file(name: str, flag: str = "") -> None:
    """Raise `OptionError` for a Python file in place of the name of a part; ``flag`` stands before that name."""
    if name.endswith(".py"):
        raise OptionError(f"{name!r} is a file, not the name of a part; write {FLAG} {name} {flag}NAME")


# ---- their options ---------------------------------------------------------------------------------------------------


def slot_options(kinds: Mapping[str, str | None], required: Collection[str] = ()) -> list[Option]:
    """The options that choose what fills each slot."""
    defaults = {kind: NOTHING if kind in required else default for kind, default in kinds.items()}
    return [
        Option(
            (kind,),
            str,
            default,
            partial(_help, kind),
            "Data" if kind in _DATA else "Parts",
            metavar="NAME",
            chooses=True,
        )
        for kind, default in defaults.items()
    ]


def part_factory(kind: str, name: str) -> Callable[..., Any]:
    """Class or function of a name, imported; raises for one that is not there."""
    if kind == "guidance":
        return guidance_class(name)
    if kind not in _DATA:
        return registry(kind).get(name)
    if registered := registered_name(name):
        found: Callable[..., Any] = registry("data").get(registered)
        return found
    return class_for_path(Path(name))


def names_of(kind: str, name: str) -> list[str]:
    """The names that a slot's value holds: one, or several of a kind that a command takes several of."""
    return [each.strip() for each in name.split(",")] if kind in KINDS and KINDS[kind].several else [name]


def part_options(kind: str, name: str) -> list[Option]:
    """The options of what fills a slot; imports that part and no other. Of several, each has its name before them."""
    if "," in name and (names := names_of(kind, name))[1:]:
        return [o for each in names for o in options_of(part_factory(kind, each), (kind, each), f"{kind} {each}")]
    found = options_of(part_factory(kind, name), (kind,), f"{kind} {name}")
    if kind == "guidance" and canonical(name) in FOLDERS:
        return with_folder(found, canonical(name))
    is_a_file = kind in _DATA and not registered_name(name)
    return [option for option in found if option.path[-1] != "path"] if is_a_file else found  # its path is its name


def lasting_options(kind: str, one: str, other: str) -> set[tuple[str, ...]]:
    """Paths of the options of one that are meant for the other as well; none but for data."""
    if kind not in _DATA:
        return set()
    both = {(o.path, o.kind) for o in part_options(kind, one)} & {(o.path, o.kind) for o in part_options(kind, other)}
    return {path for path, value in both if Path not in (value, *typing.get_args(value))}


def empty_slot(kind: str, flag: str, word: str) -> str:
    """Return the error text for an option of a part where none is chosen, with some built-in parts that have it."""
    having = _built_in_with(kind, word)[:_SHOWN]
    such = f", such as {' or '.join(filter(None, [', '.join(having[:-1]), having[-1]]))}" if having else ""
    return f"{flag} needs a {kind}; write {spelled((kind,))} NAME before it{such}"


def unknown_option(kind: str, name: str, word: str) -> str:
    """Return the error text for an unknown option, with the built-in part that has it."""
    own = [".".join(option.path[1:]) for option in part_options(kind, name)]
    text = f"{kind} {name!r} has no option {word!r}{did_you_mean(word, own)} (options: {', '.join(own) or 'none'})"
    having = _built_in_with(kind, word) if kind in KINDS and KINDS[kind].slot else []
    return f"{text}; {kind} {having[0]!r} has it: {spelled((kind,))} {having[0]}" if having else text


def _built_in_with(kind: str, word: str) -> list[str]:
    """Names of the built-in parts that have an option, and that a command line can choose."""
    found = []
    for name in _listed(kind):
        with suppress(OptionError):  # it can be made in Python only
            if word in {option.path[-1] for option in part_options(kind, name)}:
                found.append(name)
    return found


def _help(kind: str) -> str:
    none = ' "none" is none, whatever the default.' if kind in _MAY_BE_EMPTY else ""
    return f"{_DATA.get(kind) or KINDS[kind].about} Built in: {', '.join(_listed(kind))}.{none}"


def _listed(kind: str) -> Sequence[str]:
    return registry("data").names() if kind in _DATA else registry(kind).built_in_names()
