"""Examples that cannot be read: either an error that names them, or the next readable example in their place.

The replacement is a function of the index alone, so that resumed runs, ranks and workers read the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from diffkit.data.parallel import logs_for_job
from diffkit.errors import DataError, OptionError
from diffkit.options import check_number
from diffkit.runtime.output import log

T = TypeVar("T")
_SHARE, _FEW = 0.5, 10
"""Share of the examples that may be skipped by default, and at least how many; if more fail, the cause is probably not
a few damaged files."""


class Skipping:
    """Skips examples that cannot be read, or raises an error.

    Args:
        count: Number of examples.
        on_error: "stop" or "skip".
        max_skipped: The largest share of the examples that may be skipped, 0 to 1; by default a half, at least ten.
    """

    def __init__(self, count: int, on_error: str, max_skipped: float | None = None):
        if on_error not in ("stop", "skip"):
            raise OptionError("must be 'stop' or 'skip'", option="on_error", value=on_error)
        self.count, self.skips = count, on_error == "skip"
        self.most = most_skipped(count, max_skipped)
        self.bad: dict[int, str] = {}

    def read(self, index: int, read: Callable[[int], T]) -> tuple[int, T]:
        """Return an example and its index: that at ``index``, or if it is skipped the next one that can be read.

        Raises:
            DataError: The example cannot be read and none may be skipped, or too many cannot be read.
        """
        for away in range(self.count):
            at = (index + away) % self.count
            try:
                return at, read(at)
            except DataError as error:
                if not self.skips:
                    raise DataError(
                        f"{error}; correct it, or skip it, which also resumes a run", fix={"on_error": "skip"}
                    ) from error
                self._record_skipped(at, str(error))
        raise DataError(f"none of {self.count} examples can be read; the first: {self.bad[0]}")

    def _record_skipped(self, index: int, reason: str) -> None:
        """Log each skipped example once, and raise when there are too many; reading it is tried again each time."""
        if index in self.bad:
            return
        self.bad[index] = reason
        check_skipped_share(len(self.bad), self.count, self.most, reason)
        if logs_for_job():
            log(f"skipped {reason}; the next example replaces it")


def most_skipped(count: int, share: float | None) -> int:
    """Return how many of ``count`` examples may be skipped."""
    if share is None:
        return max(_FEW, int(_SHARE * count))
    return int(check_number("max_skipped", share, ge=0, le=1) * count)


def check_skipped_share(bad: int, count: int, most: int, reason: str) -> None:
    """Raise `DataError` if more examples cannot be read than may be skipped."""
    if bad > most:
        raise DataError(
            f"more than {most} of {count} examples cannot be read, the last: {reason}; correct the data, or pass a "
            "larger max_skipped, such as 0.9"
        )
