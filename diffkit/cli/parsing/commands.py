"""The table of commands: ``diffkit train`` is `commands/train.py`, ``diffkit data check`` `commands/data__check.py`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Protocol, cast

from attrs import frozen

from diffkit.cli.parsing.options import module_docstring, summary
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions

_PACKAGE = "diffkit.cli.commands"
_FOLDER = Path(__file__).parent.parent / "commands"


class CommandModule(Protocol):
    """The members of a command's module."""

    SPEC: CommandSpec

    def run(self, parsed: ParsedOptions) -> None:
        """Do the work."""


@frozen
class Command:
    """One command.

    Attributes:
        name: As it is typed, of one word or two.
        module: Dotted name of its module.
        file: File of that module; its docstring is the help of the command.
    """

    name: str
    module: str
    file: Path

    @property
    def docstring(self) -> str:
        """Docstring of its module, which is not imported."""
        return module_docstring(self.file)

    @property
    def one_line(self) -> str:
        """What it does, in one line."""
        return summary(self.docstring)

    def load(self) -> CommandModule:
        """Import its module."""
        return cast("CommandModule", importlib.import_module(self.module))


@cache
def table() -> dict[str, Command]:
    """Return every command by name, sorted; imports none."""
    found = [_built_in(m.name) for m in pkgutil.iter_modules([str(_FOLDER)]) if not m.name.startswith("_")]
    return {command.name: command for command in sorted(found, key=lambda command: command.name)}


def _built_in(module: str) -> Command:
    typed = module.rstrip("_").replace("__", " ").replace("_", "-")
    return Command(typed, f"{_PACKAGE}.{module}", _FOLDER / f"{module}.py")
