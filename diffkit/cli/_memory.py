"""Memory that ran out, said as other errors are: what was tried, and which options ask for less."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffkit._errors import DiffkitError
from diffkit.cli._options import Option

_SAVING = ("microbatch", "rows_per_call", "batch_size", "num_steps", "n")
"""Options that decide how much is computed at a time, those that change no result first."""
_FULL = ("can't allocate memory", "Storage size calculation overflowed")
"""What torch says of a CPU in a plain RuntimeError; of a GPU it raises an OutOfMemoryError."""


@contextmanager
def memory_said(options: Sequence[Option]) -> Iterator[None]:
    """Let the block say that memory ran out.

    Raises:
        DiffkitError: In place of torch's or Python's error, which is its cause.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, DiffkitError) or not _is_full(error):
            raise
        known = {option.key: option.flag for option in options}
        less = ", ".join(["network", *(known[name] for name in _SAVING if name in known)])
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DiffkitError(f"memory ran out ({reason}); use a smaller {less}") from error


def _is_full(error: Exception) -> bool:
    kind = type(error).__name__
    return kind in ("MemoryError", "OutOfMemoryError") or any(words in str(error) for words in _FULL)
