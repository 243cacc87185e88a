"""Printing without terminal control characters, on streams that may be closed, full or of another encoding.

`show` prints the results of a command on standard output. `note` prints remarks there, and `log` on standard error; if
a remark cannot be written, the work continues.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


def printable(text: str, keep: str = "") -> str:
    r"""Return printable text: control characters are escaped, such as ``\x1b``.

    Args:
        text: Any text.
        keep: Characters that are not escaped, such as a line break.
    """
    if all(map(str.isprintable, re.split(f"[{re.escape(keep)}]", text) if keep else [text])):
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def show_cut(line: str) -> None:
    """Print a line of results; on a terminal it is cut to the width."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else len(line)
    show(line if len(line) <= width else f"{line[: width - 1]}…")


def show(text: object) -> None:
    """Print a result on standard output; if it cannot be written, a command exits with an error."""
    with results():
        _print(sys.stdout, text)


def note(text: object) -> None:
    """Print a remark on standard output, such as where a command writes; errors of writing are ignored."""
    _print(safe_stream(sys.stdout), text)


def log(text: object) -> None:
    """Log a text on standard error: progress, a remark or an error; errors of writing are ignored."""
    _print(safe_stream(sys.stderr), text)


def _print(stream: TextIO, text: object) -> None:
    stream.write(printable(str(text), keep="\n\t") + "\n")
    stream.flush()


class SafeStream(io.TextIOBase):
    r"""A standard stream whose `write` and `flush` never raise.

    A character that the encoding lacks is escaped (``\u96ea``). Text is written without the stream's buffer, whose
    content would raise again when Python exits.

    Args:
        stream: The stream; None if it is closed.
    Attributes:
        results: Whether the text that is written now is a result, not a remark.
        lost: Why a result could not be written, or None.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.results = False
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Write text if possible."""
        self._attempt(lambda: _write(_require_open(self.stream), text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream's own buffer."""
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
        return _require_open(self.stream).fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def safe_stream(stream: TextIO | None) -> TextIO:
    """Return a stream whose writes never raise."""
    return cast("TextIO", stream if isinstance(stream, SafeStream) else SafeStream(stream))


@contextmanager
def safe_output() -> Iterator[SafeStream]:
    """Replace standard output and error inside the block by safe streams, whose writes never raise; yield output."""
    before = sys.stdout, sys.stderr
    _occupy_descriptors()
    sys.stdout, sys.stderr = safe_stream(before[0]), safe_stream(before[1])
    try:
        yield cast("SafeStream", sys.stdout)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def results() -> Iterator[None]:
    """Mark what the block prints on standard output as results, whose loss is an error of the command."""
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
    """Open null devices for closed standard streams; otherwise a file could get their descriptors and be written to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor


def _require_open(stream: TextIO | None) -> TextIO:
    if stream is None:
        raise ValueError("it is closed")
    return stream


def _write(stream: TextIO, text: str) -> None:
    raw = getattr(stream.buffer, "raw", None) if type(stream) is io.TextIOWrapper else None
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if raw is None:  # a stream without a buffer, such as a notebook's or a test's
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return
    stream.flush()
    left = text.replace("\n", os.linesep).encode(encoding, "backslashreplace")
    while left:
        written = raw.write(left)
        if written is None:
            raise BlockingIOError("it does not take more")
        left = left[written:]


__all__ = ["SafeStream", "log", "note", "printable", "results", "safe_output", "safe_stream", "show"]
