"""The contract of a data source."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from diffkit.data.base import Data


class Source(Protocol):
    """Options that name some data."""

    @abstractmethod
    def open(self) -> Data:
        """Read the data.

        Raises:
            DataError: It is missing or cannot be used.
            MissingExtraError: A package that reads it is not installed.
        """
