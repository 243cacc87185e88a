"""Every error diffkit raises on purpose, as one tree.

DiffkitError
├── UnknownComponentError   (LookupError)          no part has that name
├── AmbiguousComponentError (LookupError)          two plugins offer that name
├── DuplicateComponentError (ValueError)           a name is registered twice in this process
├── PluginLoadError         (ImportError)          an installed plugin cannot be imported
├── ProtocolError           (TypeError)            a part does not honour its contract
├── OptionError             (TypeError, ValueError) an option or argument is wrong
├── CompositionError        (ValueError)           parts that do not fit each other
├── SpecError               (ValueError)           a saved system that cannot be rebuilt here
├── CheckpointError         (RuntimeError)         a file that is damaged or not what it should be
├── DataError               (ValueError)           data that cannot be used
├── ProcessLostError        (RuntimeError)         another process of the job is gone
├── DivergedError           (ArithmeticError)      losses in a row, or all samples, that are not finite
└── MissingExtraError       (ImportError)          an optional dependency is not installed
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class DiffkitError(Exception):
    """Root of all errors raised on purpose by diffkit."""


class UnknownComponentError(DiffkitError, LookupError):
    """No part of that kind has that name."""


class AmbiguousComponentError(DiffkitError, LookupError):
    """Several installed distributions offer that name."""


class DuplicateComponentError(DiffkitError, ValueError):
    """A name was registered a second time in this process."""


class PluginLoadError(DiffkitError, ImportError):
    """An installed plugin could not be imported."""


class ProtocolError(DiffkitError, TypeError):
    """A part does not honour the contract of its kind."""


class OptionError(DiffkitError, TypeError, ValueError):
    """An option or argument has the wrong name, type or value."""


class CompositionError(DiffkitError, ValueError):
    """Parts that do not fit each other; the text lists every problem."""


class SpecError(DiffkitError, ValueError):
    """A saved system that cannot be rebuilt here."""


class CheckpointError(DiffkitError, RuntimeError):
    """A file that is damaged, truncated or not what it should be."""


class DataError(DiffkitError, ValueError):
    """Data that cannot be used for what was asked."""


class DivergedError(DiffkitError, ArithmeticError):
    """Training met too many losses or gradients in a row that are not finite, or no sample is."""


class ProcessLostError(DiffkitError, RuntimeError):
    """Another process of the job ended, whose own error says why."""


class MissingExtraError(DiffkitError, ImportError):
    """Optional dependencies are not installed; the text says how to get them all.

    Args:
        extra: One of the project's extras.
        purpose: What needs it.
        more: Others, each with what needs it.
    """

    def __init__(self, extra: str, purpose: str, *more: tuple[str, str]):
        missing = ((extra, purpose), *more)
        needs = ", ".join(f"{purpose} needs the {extra!r} extra" for extra, purpose in missing)
        extras = ",".join(extra for extra, _ in missing)
        super().__init__(f'{needs}; run: pip install "diffkit[{extras}]"')


def failure(error: BaseException) -> str:
    """Return what went wrong in code of others, on one line: its class and text, however odd that is."""
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # from its own __str__
        return name
    return f"{name}: {text}" if text else name


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Raise `ProtocolError` that names a part for whatever its own code raises meanwhile.

    Exceptions that end a process are among them; Ctrl-C, and our own errors, pass.
    """
    try:
        yield
    except (DiffkitError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ProtocolError(f"{part} cannot be used: its own code raised {described(error)}") from error


def described(error: BaseException) -> str:
    """Return an exception as text: its class, and what it says if it can be printed."""
    try:
        said = str(error)
    except Exception:  # an exception of someone else's
        said = ""
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or an empty string."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that another one is most like, or None if it is like none."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)  # difflib's own; below it words share but letters
    return near[0] if near else None
