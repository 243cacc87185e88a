"""A command line to values, by cyclopts; every value is read by `diffkit.cli.parsing.values`, which is stricter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

from attrs import NOTHING
from cyclopts import App, Group, Parameter
from cyclopts.exceptions import (
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from diffkit.cli.parsing.options import Option
from diffkit.cli.parsing.values import from_text, is_flag, item_of, metavar
from diffkit.errors import OptionError, nearest
from diffkit.runtime.output import printable

UnknownOption = Callable[[str], str | None]
"""Given an unknown option such as "--schedule.ss", returns its fault, or None for the usual text."""

_HELP = ("--help", "-h")
_UNSET = object()


def normalized(tokens: Sequence[str], options: Sequence[Option] = ()) -> list[str]:
    """Options with "-" for "_", and every switch with its value: ``--flag``, ``--flag true`` and ``--no-flag``."""
    switches = [option for option in options if is_flag(option.kind)]
    unwrap_module = {o.flag: f"{o.flag}=true" for o in switches} | {o.negative: f"{o.flag}=false" for o in switches}
    out: list[str] = []
    for i, token in enumerate(tokens):
        if token == "--":
            return out + list(tokens[i:])
        previous = tokens[i - 1].replace("_", "-") if i else ""
        if token in ("true", "false") and any(previous == option.flag for option in switches):
            out[-1] = f"{previous}={token}"
        elif token.startswith("--"):
            name, equals, value = token.partition("=")
            name = name.replace("_", "-")
            out.append(name + equals + value if equals else unwrap_module.get(name, name))
        else:
            out.append(token)
    return out


def parse(name: str, tokens: Sequence[str], options: Sequence[Option], unknown: UnknownOption) -> dict[str, Any]:
    """Return what was set: option key -> value.

    Args:
        name: The command.
        tokens: The words after it.
        options: Every option it has.
        unknown: Called with unknown options, for the error text.
    Raises:
        OptionError: An unknown option, a missing or superfluous word, or a value of the wrong type.
    """
    app = build(name, "", options, {}, for_help=False)
    try:
        _, bound, _ = app.parse_args(normalized(tokens, options), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise OptionError(_after_switch(tokens, options) or _message(error, options, unknown)) from error
    keys = {option.identifier: option.key for option in options}
    return {keys[name]: value for name, value in bound.arguments.items() if value is not _UNSET}


def build(name: str, text: str, options: Sequence[Option], defaults: Mapping[str, str], for_help: bool = True) -> App:
    """Return the cyclopts application of one command.

    Args:
        name: The command.
        text: Its description.
        options: Every option it has.
        defaults: Words for a default that depends on something, by option key.
        for_help: Show switches as such; to parse them they are options with a value.
    """
    words = [_usage(option) for option in options if option.positional]
    app = App(
        name=f"diffkit {name}",
        help="\n\n".join(printable(" ".join(paragraph.split())) for paragraph in text.split("\n\n")),
        usage=" ".join(["Usage: diffkit", name, *words, "[OPTIONS]"]),
        help_format="plaintext",
        version_flags=(),
        help_flags=_HELP if for_help else (),
        default_parameter=Parameter(show_env_var=False),
    )
    if for_help:
        app["--help"].group = Group("Options", sort_key=0)
    groups = {group: i for i, group in enumerate(dict.fromkeys(option.group for option in options))}
    arguments = [
        _argument(o, groups[o.group], defaults.get(o.key), for_help and is_flag(o.kind))
        for o in options
        if is_flag(o.kind) or metavar(o.kind)  # options that have no text form are for files only
    ]

    def command(*values: Any, **named: Any) -> None:
        """Stand for the command; the values are read off its bound arguments."""

    command.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    command.__annotations__ = {argument.name: argument.annotation for argument in arguments}
    command.__doc__ = None
    app.default(command)
    return app


def _argument(option: Option, order: int, default_text: str | None, as_switch: bool) -> inspect.Parameter:
    parameter = Parameter(
        name=None if option.positional else [option.flag, *([option.short] if option.short else [])],
        help=printable(_help(option, default_text)),
        group=Group(printable(option.group), help=printable(option.group_help), sort_key=order),
        negative=option.negative if as_switch and option.default is not False else (),
        show_default=False,
        required=False,
        metavar=None if as_switch else printable(option.metavar or metavar(option.kind)),
        converter=_converter(option),
        n_tokens=None if as_switch else 1,
        accepts_keys=False,
        allow_leading_hyphen=not as_switch and not option.positional,
    )
    annotation: Any = Annotated[bool if as_switch else str, parameter]
    if _takes_many(option):
        return inspect.Parameter(option.identifier, inspect.Parameter.VAR_POSITIONAL, annotation=annotation)
    kind = inspect.Parameter.POSITIONAL_ONLY if option.positional else inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.identifier, kind, default=_UNSET, annotation=annotation)


def _takes_many(option: Option) -> bool:
    """True if it takes all words that are not options."""
    return option.positional and item_of(option.kind) is not None


def _usage(option: Option) -> str:
    word = f"{option.flag}..." if _takes_many(option) else option.flag
    return word if option.default is NOTHING else f"[{word}]"


def _help(option: Option, default_text: str | None) -> str:
    if option.default is NOTHING and default_text is None:
        return option.help if option.positional else f"{option.help} [required]"
    text = option.default_text if default_text is None else default_text
    return f"{option.help} [default: {text}]" if text else option.help


def _converter(option: Option) -> Callable[[Any, Any], Any]:
    kind_of_word = item_of(option.kind) if _takes_many(option) else option.kind

    def convert(kind: Any, tokens: Any) -> Any:
        try:
            return from_text(tokens[0].value, kind_of_word)
        except OptionError as error:
            raise OptionError(f"{option.flag} {error}") from error

    return convert


def _after_switch(tokens: Sequence[str], options: Sequence[Option]) -> str | None:
    """Return an error text if a switch is followed by a word other than true or false; else None."""
    if any(option.positional for option in options):
        return None  # the word may be one that goes by its position
    switches = {option.flag for option in options if is_flag(option.kind)}
    for token, following in pairwise(tokens):
        flag = token.replace("_", "-")
        if flag in switches and not following.startswith("-") and following not in ("true", "false"):
            return f"{flag} must be true or false, got {following!r}"
    return None


def _message(error: CycloptsError, options: Sequence[Option], unknown: UnknownOption) -> str:
    if isinstance(error, UnknownOptionError):
        return _unknown((error.token.keyword or error.token.value).partition("=")[0], options, unknown)
    if isinstance(error.__cause__, OptionError):
        return str(error.__cause__)
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice; leave one of them out"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{error.argument.name} needs a value"
    if isinstance(error, UnusedCliTokensError):
        words = error.unused_tokens or []
        if words and words[0].startswith("-"):
            return _unknown(words[0].partition("=")[0], options, unknown)
        return f"unexpected {' '.join(map(repr, words))}; options start with '--'"
    return str(error).strip()


def _unknown(flag: str, options: Sequence[Option], unknown: UnknownOption) -> str:
    known = {option.flag.lstrip("-"): option.flag for option in options if not option.positional} | {"help": "--help"}
    near = nearest(flag.lstrip("-"), known)  # dashes would make any two alike
    hint = "; --help lists those there are" if near is None else f"; did you mean {known[near]!r}?"
    return unknown(flag) or f"no option {flag!r}{hint}"
