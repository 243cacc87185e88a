"""The cache of what a system's calls use again: respaced tables, sampling programs, compiled steps."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from torch import nn

T = TypeVar("T")

MOST_CACHED_STEPS = 1000
"""Steps of the longest table or program that is cached; a program with all that it unpacks then takes some 8 MB."""


class SystemCache(Generic[T]):
    """Values by system and key, safe to use from several threads.

    A system's values are freed with it; above ``most`` of them the oldest is removed first.
    """

    def __init__(self, most: int):
        self.most = most
        self._of: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, T]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(
        self, system: nn.Module, key: Hashable, make: Callable[[], T], keep: Callable[[T], bool] | None = None
    ) -> T:
        """Return the value of a key, made by ``make()`` at first; not stored if ``keep(value)`` is False."""
        with self._lock:
            found = self._of.setdefault(system, {})
            if key in found:
                return found[key]
        value = make()
        if keep is not None and not keep(value):
            return value
        with self._lock:
            if key in found:  # made by another thread meanwhile
                return found[key]
            while len(found) >= self.most:
                del found[next(iter(found))]
            found[key] = value
        return value

    def drop(self, system: nn.Module) -> None:
        """Forget the values of a system."""
        with self._lock:
            self._of.pop(system, None)

    def count(self, system: nn.Module) -> int:
        """Return the number of values of a system."""
        return len(self._of.get(system, ()))

    def __len__(self) -> int:
        return len(self._of)


def has_value(part: Any) -> bool:
    """Return whether equal parts are interchangeable: attrs compares all fields, and they hold plain values only."""
    if part is None or isinstance(part, int | float | str):
        return True
    if isinstance(part, tuple):
        return all(map(has_value, part))
    own = vars(type(part))
    if "__attrs_attrs__" not in own or own.get("__hash__") is None:
        return False
    return all(field.eq and has_value(getattr(part, field.name)) for field in own["__attrs_attrs__"])
