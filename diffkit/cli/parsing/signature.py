"""The signature of a command for cyclopts, made from its options and those of the parts that were chosen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import Annotated, Any

from attrs import NOTHING
from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import RepeatArgumentError, UnknownOptionError, UnusedCliTokensError

from diffkit.cli.parsing.options import Option
from diffkit.cli.parsing.values import has_word, is_flag, item_of, metavar, read
from diffkit.errors import OptionError
from diffkit.runtime.output import printable

_UNSET = object()


def sign(app: App, options: Sequence[Option], help_of: Callable[[Option, int], Parameter] | None = None) -> None:
    """Give an application the signature of a command.

    Args:
        app: The application of the command.
        options: Every option it has.
        help_of: Returns what help shows of an option besides; called with the number of its heading.
    """
    headings = list(dict.fromkeys([option.group for option in options]))
    arguments = [
        _argument(option, None if help_of is None else help_of(option, headings.index(option.group)))
        for option in options
        if has_word(option.kind)  # others are for files only
    ]

    def command(*values: Any, **named: Any) -> None:
        """Stand for the command; the values are read off its bound arguments."""

    arguments.sort(key=attrgetter("kind"))  # those by position first
    command.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    command.__annotations__ = {argument.name: argument.annotation for argument in arguments}
    command.__doc__ = None
    app.default(command)


def sign_for_help(app: App, name: str, options: Sequence[Option], defaults: Mapping[str, str]) -> None:
    """Give an application the signature of a command, with everything that its help shows.

    Args:
        app: The application of the command.
        name: The command.
        options: Every option it has.
        defaults: Words for a default that depends on something, by option key.
    """

    def help_of(option: Option, heading: int) -> Parameter:
        group = Group(printable(option.group), help=printable(option.about_group()), sort_key=heading + 1)
        value = None if is_flag(option.kind) else printable(option.metavar or metavar(option.kind))
        return Parameter(help=printable(_help(option, defaults.get(option.key))), group=group, metavar=value)

    sign(app, options, help_of)
    words = [_usage(option) for option in options if option.positional]
    app.usage = " ".join(["Usage: diffkit", name, *words, "[OPTIONS]"])


def parse(
    app: App, words: Sequence[str], options: Sequence[Option], unknown: Callable[[str], str | None]
) -> dict[str, Any]:
    """Return what a command line sets: option key -> value.

    Args:
        app: The application, with its signature.
        words: The words after the name of the command.
        options: Every option it has.
        unknown: Called with an unknown option such as "--schedule.ss"; returns its fault, or None for the usual text.
    Raises:
        OptionError: An unknown option, a missing or superfluous word, or a value of the wrong type.
    """
    keys = {option.key.replace(".", "__"): option for option in options}
    try:
        _, bound, _ = app.parse_args(_with_values(words, options), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        if isinstance(error.__cause__, OptionError) and error.argument is not None:
            raise OptionError(str(error.__cause__), option=keys[error.argument.field_info.name].key) from error
        flag = _unknown_flag(error)
        if flag in {option.flag for option in options}:
            raise OptionError(f"{flag} stands behind '--', where no options are read; put it before") from error
        raise OptionError((flag and unknown(flag)) or plain_text(error)) from error
    return {keys[name].key: value for name, value in bound.arguments.items() if value is not _UNSET}


def _with_values(words: Sequence[str], options: Sequence[Option]) -> list[str]:
    """The words, in which ``--flag true`` is ``--flag=true``: a switch of cyclopts takes no word after it.

    Raises:
        OptionError: An option stands where the value of the one before should.
    """
    switches = {option.flag for option in options if is_flag(option.kind)}
    bare = [option for option in options if option.positional]  # any other word may be one that goes by its position
    found: list[str] = list(words[:1])
    for before, word in pairwise(words):
        flag = before.replace("_", "-")
        if word.startswith("--") and flag.startswith("-") and "--" not in found and _lacks_value(flag, word, options):
            raise OptionError(f"{before} needs a value, got the option {word}; write {before}={word} if that is meant")
        if (
            "--" not in found
            and flag in switches
            and not word.startswith("-")
            and (word in ("true", "false") or not bare)
        ):
            found[-1] = f"{flag}={word}"
        else:
            found.append(word)
    return found


def _lacks_value(flag: str, word: str, options: Sequence[Option]) -> bool:
    """Whether an option that takes a value is followed by another option."""
    name = word.partition("=")[0].replace("_", "-")
    valued = any(flag in (o.flag, o.short) and not (o.positional or is_flag(o.kind)) for o in options)
    return valued and any(name in (o.flag, o.negative) for o in options)


def _argument(option: Option, for_help: Parameter | None) -> inspect.Parameter:
    kind, switch = option.kind, is_flag(option.kind)
    many = item_of(kind) if option.positional else None
    parameter = Parameter(
        name=None if option.positional else [option.flag, option.short] if option.short else option.flag,
        negative=option.negative if switch and option.default is not False else (),
        show_default=False,
        required=False,
        converter=None if switch else partial(_read_word, many or kind),
        n_tokens=None if switch else 1,
        accepts_keys=False,
        allow_leading_hyphen=not switch and not option.positional,
    )
    name = option.key.replace(".", "__")
    hint: Any = many or (bool if switch else kind)
    annotation = Annotated[hint, Parameter.combine(parameter, for_help)]
    if many:
        return inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL, annotation=annotation)
    place = inspect.Parameter.POSITIONAL_ONLY if option.positional else inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, place, default=_UNSET, annotation=annotation)


def _usage(option: Option) -> str:
    word = option.flag if item_of(option.kind) is None else f"{option.flag}..."
    return word if option.default is NOTHING else f"[{word}]"


def _help(option: Option, default: str | None) -> str:
    if option.default is NOTHING and default is None:
        return option.about() if option.positional else f"{option.about()} [required]"
    text = option.default_text if default is None else default
    return f"{option.about()} [default: {text}]" if text else option.about()


def _read_word(kind: Any, _: Any, tokens: Any) -> Any:
    """The converter of an option; cyclopts itself would pass its type without None, and take a list's option twice."""
    if len(tokens) > 1:
        raise RepeatArgumentError(token=tokens[1])
    return read(tokens[0].value, kind)


def _unknown_flag(error: CycloptsError) -> str | None:
    """The unknown option that an error is about, if it is."""
    if isinstance(error, UnknownOptionError):
        return (error.token.keyword or error.token.value).partition("=")[0].replace("_", "-")
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens and error.unused_tokens[0].startswith("-"):
        return error.unused_tokens[0].partition("=")[0].replace("_", "-")
    return None


def plain_text(error: CycloptsError) -> str:
    """The text of an error of cyclopts as ours are written."""
    text = " ".join(str(error).split()).removesuffix(".")
    return text[:1].lower() + text[1:]
