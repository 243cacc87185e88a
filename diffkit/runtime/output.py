"""Printing: without terminal control characters, on streams that may be closed, full or of another encoding.

`show` prints the results of a command on standard output. `note` prints remarks there, and `log` on standard error; if
a remark cannot be written, the work continues.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


def printable(text: str, keep: str = "") -> str:
    r"""Return text with control characters escaped, such as ``\x1b``.

    Args:
        text: Any text.
        keep: Characters that are not escaped, such as a line break.
    """
    if all(map(str.isprintable, re.split(f"[{re.escape(keep)}]", text) if keep else [text])):
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def show(text: object) -> None:
    """Print a result on standard output; in a command, one that cannot be written decides the exit code."""
    with results():
        _print(sys.stdout, text)


def note(text: object) -> None:
    """Print on standard output what a command does, such as where it writes, if that can be written."""
    _print(safe(sys.stdout), text)


def log(text: object) -> None:
    """Print progress, a remark or an error on standard error, if that can be written."""
    _print(safe(sys.stderr), text)


def _print(stream: TextIO, text: object) -> None:
    stream.write(printable(str(text), keep="\n\t") + "\n")
    stream.flush()


class SafeStream(io.TextIOBase):
    r"""A standard stream whose `write` and `flush` never raise.

    A character that the encoding lacks is escaped (``\u96ea``). Text goes past the buffer of the stream: what stays
    in one would fail once more when Python exits.

    Args:
        stream: The stream; None is one that is closed.
    Attributes:
        results: What is written now is a result, not a remark.
        lost: Why a result could not be written, or None.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.results = False
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Write text as well as it can be."""
        self._attempt(lambda: _write(_open(self.stream), text))
        return len(text)

    def flush(self) -> None:
        """Pass on what the stream itself has in its buffer."""
        if self.stream is not None:
            self._attempt(self.stream.flush)

    def _attempt(self, write: Any) -> None:
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: closed since
            if self.results:
                self.lost = self.lost or error

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        try:
            return self.stream is not None and self.stream.isatty()
        except (OSError, ValueError):
            return False

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the stream."""
        return _open(self.stream).fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def safe(stream: TextIO | None) -> TextIO:
    """Return a stream whose writes never raise."""
    return cast("TextIO", stream if isinstance(stream, SafeStream) else SafeStream(stream))


@contextmanager
def safe_output() -> Iterator[SafeStream]:
    """Make printing inside the block never raise, in any code; yields standard output."""
    before = sys.stdout, sys.stderr
    _occupy_descriptors()
    sys.stdout, sys.stderr = safe(before[0]), safe(before[1])
    try:
        yield cast("SafeStream", sys.stdout)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def results() -> Iterator[None]:
    """Mark what the block prints on standard output as results, which must not be lost."""
    stream = sys.stdout
    if not isinstance(stream, SafeStream):
        yield
        return
    before, stream.results = stream.results, True
    try:
        yield
    finally:
        stream.flush()
        stream.results = before


def _occupy_descriptors() -> None:
    """Keep files from getting the descriptor of a standard stream that is closed: others would print into them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


def _open(stream: TextIO | None) -> TextIO:
    if stream is None:
        raise ValueError("it is closed")
    return stream


def _write(stream: TextIO, text: str) -> None:
    raw = getattr(stream.buffer, "raw", None) if type(stream) is io.TextIOWrapper else None
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if raw is None:  # a notebook's, a test's, one that has no buffer
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return
    stream.flush()
    left = text.replace("\n", os.linesep).encode(encoding, "backslashreplace")
    while left:
        written = raw.write(left)
        if written is None:
            raise BlockingIOError("it does not take more")
        left = left[written:]


__all__ = ["SafeStream", "log", "note", "printable", "results", "safe", "safe_output", "show"]
