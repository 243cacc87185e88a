"""A command line to values, by cyclopts; every value is read by `diffkit.cli._values`, which is stricter."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from diffkit._errors import OptionError, did_you_mean
from diffkit.cli._options import Option
from diffkit.cli._values import from_text, is_flag, metavar

UnknownOption = Callable[[str], str | None]
"""Given an unknown option such as "--schedule.ss", says what is wrong with it, or None for the usual text."""

_UNSET = object()


def normalized(tokens: Sequence[str], flags: Iterable[str] = ()) -> list[str]:
    """Options with "-" for "_", and ``--flag true`` as ``--flag=true``; nothing after "--" is touched."""
    out: list[str] = []
    for i, token in enumerate(tokens):
        if token == "--":
            return out + list(tokens[i:])
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            out.append(name.replace("_", "-") + equals + value)
        elif out and out[-1] in flags and token.lower() in ("true", "false"):
            out[-1] += f"={token}"
        else:
            out.append(token)
    return out


def parse(app: App, tokens: Sequence[str], options: Sequence[Option], unknown: UnknownOption) -> dict[str, Any]:
    """Return what was set: option key -> value.

    Raises:
        OptionError: An unknown option, a missing or superfluous word, or a value of the wrong type.
    """
    flags = [option.flag for option in options if is_flag(option.kind)]
    try:
        _, bound, _ = app.parse_args(normalized(tokens, flags), print_error=False, exit_on_error=False)
    except OptionError:
        raise
    except CycloptsError as error:
        raise OptionError(_message(error, options, unknown)) from error
    keys = {option.identifier: option.key for option in options}
    return {keys[name]: value for name, value in bound.arguments.items() if value is not _UNSET}


def build(name: str, text: str, options: Sequence[Option], defaults: Mapping[str, str], epilogue: str = "") -> App:
    """Return the cyclopts application of one command."""
    words = [
        option.flag if option.default is NOTHING else f"[{option.flag}]" for option in options if option.positional
    ]
    app = App(
        name=f"diffkit {name}",
        help="\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n")),
        usage=" ".join(["Usage: diffkit", name, *words, "[OPTIONS]"]),
        help_format="plaintext",
        help_epilogue=epilogue or None,
        version_flags=(),
        default_parameter=Parameter(show_env_var=False),
    )
    app["--help"].group = Group("Options", sort_key=0)
    groups = {group: i for i, group in enumerate(dict.fromkeys(option.group for option in options))}
    arguments = [_argument(option, groups[option.group], defaults.get(option.key)) for option in options]

    def command(*values: Any, **named: Any) -> None:
        """Stand for the command; the values are read off its bound arguments."""

    command.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    command.__annotations__ = {argument.name: argument.annotation for argument in arguments}
    command.__doc__ = None
    app.default(command)
    return app


def _argument(option: Option, order: int, default_text: str | None) -> inspect.Parameter:
    parameter = Parameter(
        name=None if option.positional else [option.flag, *([option.short] if option.short else [])],
        help=_help(option, default_text),
        group=Group(option.group, help=option.group_help, sort_key=order),
        negative=option.negative if is_flag(option.kind) and option.default is not False else (),
        show_default=False,
        required=False,
        metavar=None if is_flag(option.kind) else option.metavar or metavar(option.kind),
        converter=_converter(option),
        n_tokens=None if is_flag(option.kind) else 1,
        accepts_keys=False,
        allow_leading_hyphen=not is_flag(option.kind) and not option.positional,
    )
    kind = inspect.Parameter.POSITIONAL_ONLY if option.positional else inspect.Parameter.KEYWORD_ONLY
    shown: Any = bool if is_flag(option.kind) else str
    return inspect.Parameter(option.identifier, kind, default=_UNSET, annotation=Annotated[shown, parameter])


def _help(option: Option, default_text: str | None) -> str:
    if option.default is NOTHING and default_text is None:
        return option.help if option.positional else f"{option.help} [required]"
    text = option.default_text if default_text is None else default_text
    return f"{option.help} [default: {text}]" if text else option.help


def _converter(option: Option) -> Callable[[Any, Any], Any]:
    def convert(kind: Any, tokens: Any) -> Any:
        token = tokens[0]
        if token.implicit_value not in (None, inspect.Parameter.empty) and isinstance(token.implicit_value, bool):
            return token.implicit_value
        try:
            return from_text(token.value, option.kind)
        except OptionError as error:
            raise OptionError(f"{option.flag} {error}") from error

    return convert


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
    known = [option.flag for option in options if not option.positional]
    near = did_you_mean(flag, known) or "; --help lists those there are"
    return unknown(flag) or f"no option {flag!r}{near}"
