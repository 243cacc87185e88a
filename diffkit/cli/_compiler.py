"""That torch's compiler is at work, and what it fails at, said as other errors are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffkit._errors import DiffkitError
from diffkit.output import log


def say_compiling(first: str) -> None:
    """Say on standard error that what comes first takes long, as nothing else is to be seen meanwhile."""
    log(f"compiling: {first} takes minutes")


@contextmanager
def compiler_said() -> Iterator[None]:
    """Let the block say that torch's compiler failed, as it does where there is none for C++.

    Raises:
        DiffkitError: In place of torch's error, which is its cause.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiffkitError):
            raise
        from diffkit.compiling import is_of_the_compiler  # which needs torch

        if not is_of_the_compiler(error):
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DiffkitError(f"torch's compiler failed ({reason}); leave --compile out") from error
