"""The contract of a data source."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from diffkit.data.base import Data


class Source(Protocol):
    """Protocol of a data source: options that identify data, for Python, the command line and TOML files."""

    @abstractmethod
    def open(self) -> Data:
        """Read the data.

        Raises:
            DataError: The data is missing or cannot be used.
            MissingExtraError: A package that it needs is not installed.
        """
