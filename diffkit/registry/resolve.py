"""Turn the value of a slot (a name, a pair, a mapping or an instance) into a part."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from diffkit.errors import OptionError, ProtocolError, naming
from diffkit.registry.aliases import alias_of
from diffkit.registry.contracts import check_contract
from diffkit.registry.entry_points import BUILT_IN
from diffkit.registry.kinds import KINDS
from diffkit.registry.lookup import registry

Slot = Any
"""A name, a (name, options) pair, a mapping with "name" and options, or an instance of the part."""


def resolve(kind: str, slot: Slot) -> tuple[Any, str]:
    """Return the part of a slot, and its name in messages.

    Raises:
        UnknownComponentError, OptionError, PluginLoadError, ProtocolError: As `diffkit.registry`.
    """
    with naming(f"{kind} {type(slot).__name__!r}"):
        return _resolved(kind, slot)


def resolve_several(kind: str, slots: Slot) -> tuple[tuple[Any, str], ...]:
    """Return the parts, and their names in messages, of a slot, a list of slots, or None.

    A name and a mapping of its options are one slot; a mapping with a name of its own stands for another part.

    Raises:
        UnknownComponentError, OptionError, PluginLoadError, ProtocolError: As `resolve`.
    """
    if slots is None:
        return ()
    one = not isinstance(slots, tuple | list) or is_pair(slots)
    return tuple(resolve(kind, slot) for slot in ([slots] if one else slots) if slot is not None)


def is_pair(slots: Sequence[Any]) -> bool:
    """Return whether a tuple or list is a name and a mapping of its options, not two parts."""
    return len(slots) == 2 and isinstance(slots[0], str) and isinstance(slots[1], Mapping) and "name" not in slots[1]


def _created(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """Return the part of that name, after checking the contract of one that is not diffkit's own."""
    part = registry(kind).create(name, **options)
    found = registry(kind).provenance(part)
    if found is None or found.origin != BUILT_IN:  # diffkit's own are checked by its tests
        check_contract(kind, part)
    return part


def _resolved(kind: str, slot: Slot) -> tuple[Any, str]:
    name, options = name_and_options(kind, slot)
    if name is not None:
        part = _created(kind, name, options)
        _refuse_weights(kind, name, part)
        return part, registry(kind).shortest(name)
    if isinstance(slot, type):
        _check_own(kind, slot)
        raise OptionError(f"{kind} must be an instance, not the class {slot.__name__}; write {slot.__name__}()")
    if inspect.isroutine(slot):
        raise OptionError(
            f"{kind} must be a part, not the function {getattr(slot, '__name__', slot)!r}; "
            + (
                "pass it as model= to each call of a system with backbone=None, or wrap it in an nn.Module"
                if kind == "backbone"
                else f"write a class that inherits from {KINDS[kind].home}"
            )
        )
    _check_own(kind, slot)
    known = registry(kind).provenance(slot)
    name = known.name if known else type(slot).__name__
    _refuse_weights(kind, name, slot)
    return slot, name


def _check_own(kind: str, part: object) -> None:
    """Check the contract of a class or instance; the error names the part here that another library calls so."""
    try:
        check_contract(kind, part)
    except ProtocolError as error:
        cls = part if isinstance(part, type) else type(part)
        near = alias_of(kind, cls.__name__, registry(kind).built_in_names())
        if near is None or KINDS[kind].contract in cls.__mro__:
            raise
        raise ProtocolError(f"{error}, or use {kind}={near!r}") from error


def _refuse_weights(kind: str, name: str, part: object) -> None:
    """Raise an error for a part that holds a network or tensor: it would not be trained, moved or saved."""
    if KINDS[kind].objects:
        return
    found = next(_weights_in(part, "", set()), None)
    if found is not None:
        place, what = found
        where = f" in {place.lstrip('.')!r}" if place else ""
        way = "put it into the backbone, or into a guidance"
        if KINDS[kind].weights:
            way = "inherit from diffkit.protocols.LearnedPart, and build it there"
        raise OptionError(
            f"{kind} {name!r} holds a {what}{where}, which would not be trained, moved or saved, as a part holds plain "
            f"options only; {way}"
        )


def _weights_in(value: object, place: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Place and class of each network or tensor inside a value."""
    import torch

    if isinstance(value, torch.nn.Module | torch.Tensor):
        yield place, type(value).__name__
        return
    if id(value) in seen or isinstance(value, type | str | bytes | int | float | types.ModuleType):
        return
    seen.add(id(value))
    for name, held in _held_by(value):
        yield from _weights_in(held, place + name, seen)


def _held_by(value: object) -> Iterator[tuple[str, object]]:
    """Contents of a value: entries, fields and, of a function, its closure and arguments."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield f"[{key!r}]", entry
    elif isinstance(value, tuple | list | set | frozenset):
        for i, entry in enumerate(value):
            yield f"[{i}]", entry
    elif isinstance(value, functools.partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    elif isinstance(value, types.MethodType):
        yield from ((".__self__", value.__self__), (".__func__", value.__func__))
    elif isinstance(value, types.FunctionType):
        variables = inspect.getclosurevars(value).nonlocals if value.__closure__ else {}
        yield from ((f".{name}", held) for name, held in variables.items())
        yield from ((".__defaults__", value.__defaults__), (".__kwdefaults__", value.__kwdefaults__))
    else:
        names = dict.fromkeys(getattr(value, "__dict__", {}))
        for base in type(value).__mro__:
            slots = vars(base).get("__slots__", ())
            names |= dict.fromkeys([slots] if isinstance(slots, str) else slots)
        for name in names:
            if not name.startswith("__"):
                yield f".{name}", getattr(value, name, None)


def plain_slot(kind: str, slot: Slot) -> str | tuple[str, dict[str, Any]]:
    """Return the part of a slot as plain data: its name, or its name and the options that were given.

    Raises:
        UnknownComponentError, OptionError, PluginLoadError, ProtocolError: As `resolve`.
        OptionError: It is an instance without a registered name.
    """
    name, options = name_and_options(kind, slot)
    known = registry(kind)
    if name is None:
        part, _ = resolve(kind, slot)
        found = known.provenance(part)
        if found is None:
            raise OptionError(
                f"{kind} {type(part).__name__!r} has no registered name, by which a run could be resumed; write "
                f'@registry("{kind}").register("...") before the class'
            )
        given = {field.alias or field.name: field.default for field in attrs.fields(type(part)) if field.init}
        options = {
            option: getattr(part, option) for option, default in given.items() if getattr(part, option) != default
        }
        name = f"{found.origin}:{found.name}"
    else:
        part = _created(kind, name, options)
        options = {option: getattr(part, option, value) for option, value in options.items()}
    name = known.shortest(name)
    return (name, dict(options)) if options else name


def name_and_options(kind: str, slot: Slot) -> tuple[str | None, Mapping[str, Any]]:
    """Return the name and options that stand for a part; the name is None if the value is a part itself."""
    if isinstance(slot, str):
        return slot, {}
    if isinstance(slot, Mapping):
        if not isinstance(slot.get("name"), str):
            raise OptionError(f"{kind} as a mapping needs a 'name', got {dict(slot)!r}")
        return slot["name"], {key: value for key, value in slot.items() if key != "name"}
    if isinstance(slot, tuple | list):
        if is_pair(slot):
            return slot[0], slot[1]
        raise OptionError(f"{kind} as a pair must be (name, {{option: value}}), got {slot!r}")
    if slot is None or isinstance(slot, bool | int | float):
        raise OptionError(f"{kind} must be a name, a (name, options) pair, a mapping or an instance, got {slot!r}")
    return None, {}
