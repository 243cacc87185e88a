"""What a slot of `diffkit.compose` may hold, and how it becomes a part."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffkit._contracts import check_contract
from diffkit._errors import OptionError, naming
from diffkit.protocols import PROTOCOLS
from diffkit.registry import registry

Slot = Any
"""A name, a (name, options) pair, a mapping with "name" and options, or an instance of the part."""


def resolve(kind: str, slot: Slot) -> tuple[Any, str]:
    """Return the part a slot asks for, and the name messages call it by.

    Raises:
        UnknownComponentError, OptionError, PluginLoadError, ProtocolError: As `diffkit.registry`.
    """
    with naming(f"{kind} {type(slot).__name__!r}"):
        return _resolved(kind, slot)


def _resolved(kind: str, slot: Slot) -> tuple[Any, str]:
    name, options = _name_and_options(kind, slot)
    if name is not None:
        part = registry(kind).create(name, **options)
        check_contract(kind, part)
        return part, registry(kind).shortest(name)
    if isinstance(slot, type):
        raise OptionError(f"{kind} must be an instance, not the class {slot.__name__}; write {slot.__name__}()")
    if inspect.isroutine(slot):
        raise OptionError(
            f"{kind} must be a part, not the function {getattr(slot, '__name__', slot)!r}; "
            + (
                "pass it as model= to each call of a system with backbone=None, or wrap it in an nn.Module"
                if kind == "backbone"
                else f"write a class that inherits from diffkit.protocols.{PROTOCOLS[kind].__name__}"
            )
        )
    check_contract(kind, slot)
    known = registry(kind).provenance(slot)
    return slot, known.name if known else type(slot).__name__


def _name_and_options(kind: str, slot: Slot) -> tuple[str | None, Mapping[str, Any]]:
    if isinstance(slot, str):
        return slot, {}
    if isinstance(slot, Mapping):
        if not isinstance(slot.get("name"), str):
            raise OptionError(f"{kind} as a mapping needs a 'name', got {dict(slot)!r}")
        return slot["name"], {key: value for key, value in slot.items() if key != "name"}
    if isinstance(slot, tuple | list):
        if len(slot) == 2 and isinstance(slot[0], str) and isinstance(slot[1], Mapping):
            return slot[0], slot[1]
        raise OptionError(f"{kind} as a pair must be (name, {{option: value}}), got {slot!r}")
    if slot is None or isinstance(slot, bool | int | float):
        raise OptionError(f"{kind} must be a name, a (name, options) pair, a mapping or an instance, got {slot!r}")
    return None, {}
