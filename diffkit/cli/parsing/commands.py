"""Commands found by file name: ``diffkit train`` is `commands/train.py`, ``diffkit import`` `commands/import_.py`.

A command of two words has two underscores: ``diffkit data check`` is `commands/data__check.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Protocol, cast

from diffkit.cli.parsing.options import module_docstring, summary
from diffkit.cli.parsing.takes import CommandSpec, ParsedOptions
from diffkit.errors import OptionError, did_you_mean

_FOLDER = Path(__file__).parent.parent / "commands"


class Command(Protocol):
    """The members of a command's module."""

    def takes(self) -> CommandSpec:
        """Return its options."""

    def run(self, given: ParsedOptions) -> None:
        """Do the work."""


def names() -> tuple[str, ...]:
    """Names of all commands, sorted; imports none."""
    return tuple(sorted(_typed(m.name) for m in pkgutil.iter_modules([str(_FOLDER)]) if not m.name.startswith("_")))


def split(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the command that a line starts with, of two words or one, and the words after it.

    Raises:
        OptionError: The first word begins commands of two, and the second is of none of them.
    """
    two = " ".join(words[:2])
    if two in names():
        return two, words[2:]
    within = _within(words[0])
    if within and words[1:] and not words[1].startswith("-"):
        raise OptionError(f"no command {two!r}{did_you_mean(two, within)} (diffkit {words[0]}: {', '.join(within)})")
    return words[0], words[1:]


def docstring(name: str) -> str:
    """Docstring of a command's file."""
    return module_docstring(_FOLDER / f"{_module(name)}.py")


def one_line(name: str) -> str:
    """Description of a command in one line; read from its file."""
    return summary(docstring(name))


def load(name: str) -> Command:
    """Import one command, or raise `OptionError`."""
    known = names()
    if name not in known and _typed(name) not in known:
        if within := _within(name):
            raise OptionError(f"diffkit {name} needs a command: {' or '.join(within)}")
        raise OptionError(f"no command {name!r}{did_you_mean(name, known)} (commands: {', '.join(known)})")
    return cast("Command", importlib.import_module(f"diffkit.cli.commands.{_module(name)}"))


def _within(word: str) -> list[str]:
    """Commands of two words that begin with this one."""
    return [each for each in names() if each.startswith(f"{word} ")]


def _module(name: str) -> str:
    return f"{name}_" if iskeyword(name) else name.replace("-", "_").replace(" ", "__")


def _typed(name: str) -> str:
    return name.rstrip("_").replace("__", " ").replace("_", "-")
