"""Every error diffkit raises on purpose, as one tree.

DiffkitError
├── UnknownComponentError   (LookupError)          no part has that name
├── AmbiguousComponentError (LookupError)          two plugins offer that name
├── DuplicateComponentError (ValueError)           a name is registered twice in this process
├── PluginLoadError         (ImportError)          an installed plugin cannot be imported
├── ProtocolError           (TypeError)            a part violates the protocol of its kind
├── OptionError             (TypeError, ValueError) an option or argument is wrong
├── CompositionError        (ValueError)           parts do not fit each other
├── SpecError               (ValueError)           a saved system cannot be rebuilt here
├── CheckpointError         (RuntimeError)         a file is damaged or of another kind than expected
├── DataError               (ValueError)           data cannot be used
├── HookError               (RuntimeError)         a hook of training failed
├── ProcessLostError        (RuntimeError)         another process of the job is gone
├── DivergedError           (ArithmeticError)      consecutive losses, or all samples, are not finite
├── QueueFullError          (RuntimeError)         a loop of requests has no room for another one
└── MissingExtraError       (ImportError)          an optional dependency is not installed
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple


class _Unset:
    def __reduce__(self) -> str:
        return "UNSET"  # pickled by name, so that there is one


UNSET: Any = _Unset()
"""No value: a message names the option only."""


class Setting(NamedTuple):
    """An option in a message, with a value if one is meant; as text it is spelled as in Python.

    Attributes:
        option: Its name in Python.
        value: What it is, or should be; ``...`` is any value.
        part: Kind of the part whose option it is; "" for an argument, or where the message does not say.
    """

    option: str
    value: Any = UNSET
    part: str = ""

    def __str__(self) -> str:
        if self.value is UNSET:
            return self.option
        return f"{self.option}={repr(self.value).replace('Ellipsis', '...')}"


Spelling = Callable[[Setting], str]
"""How an option and its value are written: ``num_steps=10`` in Python, ``--num-steps 10`` on a command line."""


class Message(str):
    """A text that holds the options it speaks of as data; as a text it is spelled as in Python.

    Args:
        pieces: Texts and settings, in order.
    """

    pieces: tuple[str | Setting, ...]

    def __new__(cls, *pieces: str | Setting) -> Message:
        """Return the message."""
        self = super().__new__(cls, "".join(map(str, pieces)))
        self.pieces = tuple(each for piece in pieces for each in getattr(piece, "pieces", (piece,)))
        return self

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The options it speaks of, in order."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Setting))

    def spelled(self, spelling: Spelling) -> str:
        """Return the text with its options in another spelling."""
        return "".join(spelling(piece) if isinstance(piece, Setting) else piece for piece in self.pieces)

    def of(self, part: str, names: Mapping[str, str] | None = None) -> Message:
        """Return the message with its options as those of a kind of part, unless it says so already.

        Args:
            part: The kind.
            names: Other names of options.
        """
        names = names or {}
        named = (
            Setting(names.get(p.option, p.option), p.value, p.part or part) if isinstance(p, Setting) else p
            for p in self.pieces
        )
        return Message(*named)


def changed(option: str, was: Any, now: Any) -> Message:
    """Return ``lr=0.0001, now lr=0.0002``."""
    return Message(Setting(option, was), ", now ", Setting(option, now))


def joined(separator: str, texts: Iterable[str]) -> Message:
    """Return texts as one message, as `str.join`; settings stay data."""
    return Message(*[piece for text in texts for piece in (separator, text)][1:])


Fix = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""Options with values that would work; several are alternatives."""


def problem(text: str, *, option: str = "", value: Any = UNSET, fix: Fix = ()) -> Message:
    """Return a message about one option: ``num_steps must be >= 1, got 0``, or ``groups=3 does not fit; use groups=4``.

    Args:
        text: Why the value cannot work; one that begins with "must" is followed by the value.
        option: Name of the option.
        value: Its value.
        fix: What would work; an option that is `UNSET` is to be left out.
    """
    pieces: list[str | Setting] = [text]
    if option and text.startswith("must "):
        pieces = [*_named(option), " ", text, *([] if value is UNSET else [f", got {value!r}"])]
    elif option:
        pieces = [Setting(option, value), " ", text]
    if fixes := [fix] if isinstance(fix, Mapping) else list(fix):
        pieces += ["; ", _advice(fixes)]
    return Message(*pieces)


def _advice(fixes: Sequence[Mapping[str, Any]]) -> Message:
    """``use var='learned_range' or loss='simple'``, or ``leave preview_every out``."""
    used = [joined(" and ", [Message(Setting(*item)) for item in fix.items()]) for fix in fixes if not _leaves(fix)]
    out = [
        Message("leave ", joined(" and ", [Message(Setting(name)) for name in fix]), " out")
        for fix in fixes
        if _leaves(fix)
    ]
    return joined(" or ", [*([Message("use ", joined(" or ", used))] if used else []), *out])


def _leaves(fix: Mapping[str, Any]) -> bool:
    return UNSET in fix.values()


def _named(option: str) -> list[str | Setting]:
    """An option, or each of its items."""
    _, each, name = option.rpartition("each of ")
    return [each, Setting(name)]


class DiffkitError(Exception):
    """Root of all errors raised on purpose by diffkit.

    Args:
        text: The message; with an option, why its value cannot work, as of `problem`.
        option: Name of the option that is wrong, if one is.
        value: Its value.
        fix: Options with values that would work; several are alternatives.
    """

    def __init__(self, text: str = "", *, option: str = "", value: Any = UNSET, fix: Fix = ()):
        super().__init__(problem(text, option=option, value=value, fix=fix) if option or fix else text)
        self.option, self.value, self.fix = option, value, fix

    @property
    def message(self) -> Message:
        """Its text, which holds the options that it speaks of as data."""
        text = self.args[0] if self.args else ""
        return text if isinstance(text, Message) else Message(str(self))


class UnknownComponentError(DiffkitError, LookupError):
    """No part of that kind has that name."""


class AmbiguousComponentError(DiffkitError, LookupError):
    """Several installed distributions offer that name."""


class DuplicateComponentError(DiffkitError, ValueError):
    """A name was registered a second time in this process."""


class PluginLoadError(DiffkitError, ImportError):
    """An installed plugin could not be imported."""


class ProtocolError(DiffkitError, TypeError):
    """A part violates the protocol of its kind."""


class OptionError(DiffkitError, TypeError, ValueError):
    """An option or argument has the wrong name, type or value."""

    def in_part(self, kind: str, name: str) -> OptionError:
        """Return the error as one about an option of a part, which it names."""
        error = OptionError(Message(f"{kind} {name!r}: ", self.message.of(kind)))
        error.option, error.value, error.fix = self.option, self.value, self.fix
        return error


class CompositionError(DiffkitError, ValueError):
    """Parts do not fit each other; the text lists every problem."""


class SpecError(DiffkitError, ValueError):
    """A saved system cannot be rebuilt here."""


class CheckpointError(DiffkitError, RuntimeError):
    """A file is damaged, truncated or of another kind than expected."""


class DataError(DiffkitError, ValueError):
    """Data cannot be used for the requested operation."""


class DivergedError(DiffkitError, ArithmeticError):
    """Too many consecutive losses or gradients in training, or all samples, are not finite."""


class HookError(DiffkitError, RuntimeError):
    """The code of a hook of training raised an error; the text names the hook."""


class ProcessLostError(DiffkitError, RuntimeError):
    """Another process of the job ended; its own error contains the reason."""


class QueueFullError(DiffkitError, RuntimeError):
    """A loop of requests has no room for another one; there is once one of them is done."""


class MissingExtraError(DiffkitError, ImportError):
    """Optional dependencies are not installed; the text contains the command that installs them.

    Args:
        extra: One of the project's extras.
        purpose: The feature that needs it.
        more: Further extras, each with the feature that needs it.
    """

    def __init__(self, extra: str, purpose: str, *more: tuple[str, str]):
        missing = ((extra, purpose), *more)
        needs = ", ".join(f"{purpose} needs the {extra!r} extra" for extra, purpose in missing)
        extras = ",".join(extra for extra, _ in missing)
        super().__init__(f'{needs}; run: pip install "diffkit[{extras}]"')


@contextmanager
def needed(extra: str, purpose: str) -> Iterator[None]:
    """Import what an extra brings inside the block; raises `MissingExtraError` with these arguments if that fails."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(extra, purpose) from error


@contextmanager
def within(part: str = "", **names: str) -> Iterator[None]:
    """Let errors of the block speak of options of a kind of part or of data, or of options by other names."""
    try:
        yield
    except DiffkitError as error:
        error.args = (error.message.of(part, names),)
        raise


def failure(error: BaseException) -> str:
    """Return an exception of foreign code on one line: its class and text; never raises."""
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # from its own __str__
        return name
    return f"{name}: {text}" if text else name


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Turn any exception that a part's own code raises inside the block into a `ProtocolError` that names the part.

    This includes SystemExit. KeyboardInterrupt and diffkit's own errors pass unchanged.
    """
    try:
        yield
    except (DiffkitError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ProtocolError(f"{part} cannot be used: its own code raised {failure(error)}") from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or an empty string."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word most similar to ``word``, or None if none is similar."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)  # difflib's default
    return near[0] if near else None
