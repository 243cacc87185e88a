"""Cache of sampling programs by system: for a small network, making a program takes as long as some of its steps."""

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

_MAX_PROGRAMS = 8
"""Programs cached for a system; the oldest is removed first."""

_MAX_STEPS = 1000
"""Steps of the longest program that is cached; with all that it unpacks it takes some 8 MB."""

_cache: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Program]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def cached_program(
    system: nn.Module, kind: Hashable, parts: Composition, table: ProcessTable, make: Callable[[], Program]
) -> Program:
    """Return what ``make()`` returns, or what it returned for the same sampler and an equal table before.

    Not cached: long programs, programs with guidance, whose columns depend on more, and programs for fake tensors.

    Args:
        system: Owner of the program; its cache is freed with it.
        kind: Which of the sampler's programs: sampling, encoding, restarting.
        parts: The system's, with the call's sampler and guidance.
        table: The table in use.
        make: Called to make the program.
    """
    fake = type(torch.empty(0)) is not Tensor
    if parts.guidance or fake or not _has_value(parts.sampler):
        return make()
    key = (kind, parts.sampler, table)
    with _lock:
        found = _cache.setdefault(system, {}).get(key)
    if found is not None:
        return found
    program = make()
    if program.num_steps > _MAX_STEPS:
        return program
    with _lock:
        programs = _cache.setdefault(system, {})
        while len(programs) >= _MAX_PROGRAMS:
            del programs[next(iter(programs))]
        programs[key] = program
    return program


def _has_value(part: Any) -> bool:
    """True if equal parts are interchangeable: attrs compares all of the fields, and they hold plain values only."""
    if part is None or isinstance(part, int | float | str):
        return True
    if isinstance(part, tuple):
        return all(map(_has_value, part))
    own = vars(type(part))
    if "__attrs_attrs__" not in own or own.get("__hash__") is None:
        return False
    return all(field.eq and _has_value(getattr(part, field.name)) for field in own["__attrs_attrs__"])
