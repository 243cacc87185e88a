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
├── ProcessLostError        (RuntimeError)         another process of the job is gone
├── DivergedError           (ArithmeticError)      consecutive losses, or all samples, are not finite
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
    """A part violates the protocol of its kind."""


class OptionError(DiffkitError, TypeError, ValueError):
    """An option or argument has the wrong name, type or value."""


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


class ProcessLostError(DiffkitError, RuntimeError):
    """Another process of the job ended; its own error contains the reason."""


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
        raise ProtocolError(f"{part} cannot be used: its own code raised {described(error)}") from error


def described(error: BaseException) -> str:
    """Return an exception as text: its class, and its message if that can be printed."""
    try:
        text = str(error)
    except Exception:  # from its own __str__
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known word, or an empty string."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean {near!r}?"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word most similar to ``word``, or None if none is similar."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)  # difflib's default
    return near[0] if near else None
