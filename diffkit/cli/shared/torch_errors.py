"""Messages about torch's compiler and exhausted memory, in the form of other errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffkit.cli.parsing.options import Option
from diffkit.errors import DiffkitError

_SAVING = ("microbatch", "rows_per_call", "batch_size", "num_steps", "n")
"""Options that decide how much is computed at a time, those that change no result first."""
_FULL = ("can't allocate memory", "Storage size calculation overflowed")
"""Texts of torch's RuntimeError on a CPU; on a GPU it raises an OutOfMemoryError."""


@contextmanager
def torch_errors(options: Sequence[Option]) -> Iterator[None]:
    """Turn exhausted memory, and failures of torch's compiler such as a missing C++ compiler, into `DiffkitError`.

    Raises:
        DiffkitError: Instead of torch's or Python's error, which is its cause.
    """
    try:
        yield
    except DiffkitError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if _is_full(error):
            known = {option.key: option.flag for option in options}
            less = ", ".join(["network", *(known[name] for name in _SAVING if name in known)])
            raise DiffkitError(f"memory ran out ({reason}); use a smaller {less}") from error
        from diffkit.system.compiling import is_of_the_compiler  # which needs torch

        if is_of_the_compiler(error):
            raise DiffkitError(f"torch's compiler failed ({reason}); leave --compile out") from error
        raise


def _is_full(error: Exception) -> bool:
    kind = type(error).__name__
    return kind in ("MemoryError", "OutOfMemoryError") or any(words in str(error) for words in _FULL)
