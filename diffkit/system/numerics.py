"""Float64 arithmetic of parts with extreme options: overflow becomes one clear error or an infinity."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from diffkit.errors import OptionError


@contextmanager
def computing(what: str) -> Iterator[None]:
    """Run float64 arithmetic of parts: NumPy's overflow gives infinity without warnings, Python's an `OptionError`.

    Args:
        what: Name of the computation, for the message.
    Raises:
        OptionError: Python's own arithmetic overflows, or memory does not suffice.
    """
    try:
        with np.errstate(all="ignore"):
            yield
    except (ArithmeticError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise OptionError(f"{what} cannot be computed: {reason}; use less extreme options") from error
