"""What extreme options come to: an error that names them, never a raw one, and no infinity without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from diffkit.errors import OptionError


@contextmanager
def computing(what: str) -> Iterator[None]:
    """Let parts do float64 arithmetic: what overflows is infinite, as its results show, and nothing raw is raised.

    Args:
        what: What is computed, for the message.
    Raises:
        OptionError: Python's own arithmetic overflows, or memory does not suffice.
    """
    try:
        with np.errstate(all="ignore"):
            yield
    except (ArithmeticError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise OptionError(f"{what} cannot be computed: {reason}; use less extreme options") from error
