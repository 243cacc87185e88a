"""Programs that a system keeps between calls: for a small network, making one takes as long as some of its steps."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.protocols import Composition
from diffkit.system.sampling import Program
from diffkit.table import ProcessTable

_KEPT = 8
"""Programs kept for a system; the one made first goes first."""

_LONGEST = 1000
"""Steps of the longest program that is kept; one of these takes some 8 MB with all that it unpacks."""

_made: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Program]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def cached_program(
    system: nn.Module, kind: Hashable, parts: Composition, table: ProcessTable, make: Callable[[], Program]
) -> Program:
    """Return what ``make()`` returns, or what it returned for the same sampler and an equal table before.

    Not kept are long programs and those with guidance, whose columns depend on more; nor any program for fake tensors.

    Args:
        system: Whose program it is; programs go with it.
        kind: Which of the sampler's walks.
        parts: The system's, with the call's sampler and guidance.
        table: The table in use.
        make: Makes the program.
    """
    fake = type(torch.empty(0)) is not Tensor
    if parts.guidance or fake or not _has_value(parts.sampler):
        return make()
    key = (kind, parts.sampler, table)
    with _lock:
        found = _made.setdefault(system, {}).get(key)
    if found is not None:
        return found
    program = make()
    if program.num_steps > _LONGEST:
        return program
    with _lock:
        programs = _made.setdefault(system, {})
        while len(programs) >= _KEPT:
            del programs[next(iter(programs))]
        programs[key] = program
    return program


def _has_value(part: Any) -> bool:
    """True if equality says all there is to a part: attrs compares all of its fields, and they hold values alone."""
    if part is None or isinstance(part, int | float | str):
        return True
    if isinstance(part, tuple):
        return all(map(_has_value, part))
    own = vars(type(part))
    if "__attrs_attrs__" not in own or own.get("__hash__") is None:
        return False
    return all(field.eq and _has_value(getattr(part, field.name)) for field in own["__attrs_attrs__"])
