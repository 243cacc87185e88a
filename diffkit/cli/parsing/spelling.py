"""The options of an error as each surface spells them: ``num_steps=10`` is ``--num-steps 10`` on a command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from diffkit.cli.parsing.options import Option, spelled
from diffkit.cli.parsing.values import is_flag, shown, toml
from diffkit.errors import UNSET, DiffkitError, Message, Setting


@contextmanager
def as_cli_flags(options: Sequence[Option]) -> Iterator[None]:
    """Spell these options as flags in errors of the block."""
    try:
        yield
    except DiffkitError as error:
        error.args = (in_flags(error.message, options),)
        raise


def in_flags(message: Message, options: Sequence[Option]) -> Message:
    """Return a message in which options are flags, as far as there are such; the others stay data."""
    named = {option.path: option for option in options}
    pieces = ((_setting(piece, named) if isinstance(piece, Setting) else piece) for piece in message.pieces)
    return Message(*pieces)


def toml_spelling(setting: Setting) -> str:
    """Return ``num_steps = 10``, or ``schedule.s``, as a file has it."""
    name = f"{setting.part}.{setting.option}" if setting.part else setting.option
    return name if setting.value is UNSET else f"{name} = {toml(setting.value)}"


def _setting(setting: Setting, named: Mapping[tuple[str, ...], Option]) -> str | Setting:
    option = _find(setting, named)
    if option is None or isinstance(setting.value, Mapping):
        return setting
    return _with_value(option, setting.value)


def _find(setting: Setting, named: Mapping[tuple[str, ...], Option]) -> Option | None:
    """The option of that name: of the part in the message, of the command, or of the only part that has it."""
    name = setting.option
    own = named.get((setting.part, name)) or named.get(tuple(name.split(".")))
    of_parts = [option for path, option in named.items() if path[1:] == (name,)]
    return own or (of_parts[0] if len(of_parts) == 1 else None)


def _with_value(option: Option, value: Any) -> str:
    flag = option.short or option.flag
    if value is UNSET or value is True:
        return flag
    if value is False:
        return option.negative if is_flag(option.kind) else f"{flag} false"
    if value is ...:
        return f"{flag} ..."
    if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[1], Mapping):
        return " ".join([f"{flag} {value[0]}", *(_of_part(option, *item) for item in value[1].items())])
    return f"{flag} {shown(value)}".rstrip()


def _of_part(chosen: Option, name: str, value: Any) -> str:
    """An option of a part that another option chooses: ``--loss.scale-by-steps=false``."""
    flag = spelled((*chosen.path, name))
    return f"{flag}={shown(value)}" if isinstance(value, bool) else f"{flag} {shown(value)}"
