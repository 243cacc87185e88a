"""Checks that a class or instance follows the protocol of its kind; see `diffkit.protocols`."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache, lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Protocol

from diffkit.errors import ProtocolError, naming
from diffkit.options import option_names
from diffkit.protocols import Composition
from diffkit.registry.kinds import KINDS

_ATTRIBUTE_TYPES: dict[str, type[Any] | tuple[type[Any], ...]] = {
    "continuous": bool,
    "between_levels": bool,
    "extra_outputs": int,
    "needs": (frozenset, set),
    "trains_variance": bool,
    "domain": str,
    "order": int,
    "stochastic": bool,
    "uses_last": bool,
}

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
"""What makes a part, and is none."""

_WORDS: dict[str, set[str]] = {
    "domain": {"discrete", "log_snr"},
    "needs": {"transition", "learned_variance"},
}


def check_contract(kind: str, part: object, source: str | None = None) -> None:
    """Raise `ProtocolError`, member by member, unless a class or instance follows the protocol of its kind.

    A plain function is accepted as a factory; what it returns is checked when a system is composed.
    """
    if type(part) in _FUNCTIONS:
        return
    protocol = KINDS[kind].contract
    name = source or f"{kind} {_name_of(part)!r}"
    with naming(name):
        faults = [*_method_faults(protocol, part), *_property_faults(protocol, part)]
        faults += [*_attribute_faults(protocol, part), *_option_faults(part)]
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise ProtocolError(
            f"{name} does not honour the {protocol.__name__} contract:\n{lines}\n"
            f"inherit from {KINDS[kind].home} for the defaults"
        )


def problems_of(name: str, part: Any, composition: Composition) -> list[str]:
    """Return the problems of a part in a composition.

    Args:
        name: The part's name in messages.
        part: A part, or a guidance.
        composition: Argument of its `problems`.
    Raises:
        ProtocolError: It fails, or returns no sentences.
    """
    with naming(name):
        found = part.problems(composition)
        problems = [found] if isinstance(found, str) else list(found)
    for problem in problems:
        if not isinstance(problem, str):
            raise ProtocolError(f"{name}: problems() must return sentences, got {type(problem).__name__}")
    return problems


@cache
def _members(protocol: type[Any]) -> dict[str, tuple[Any, inspect.Signature]]:
    """Methods of a contract and their signatures, by name."""
    found: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if vars(base).get("_is_protocol") and base is not Protocol:
            found |= {n: m for n, m in vars(base).items() if inspect.isfunction(m)}
    return {n: (m, inspect.signature(m)) for n, m in found.items() if not n.startswith("_") or n == "__call__"}


def _method_faults(protocol: type[Any], part: object) -> Iterable[str]:
    for name, (member, signature) in _members(protocol).items():  # type: ignore[arg-type]
        expected = f"{name}({', '.join(list(signature.parameters)[1:])})"
        found = _static(part, name)
        if found is None or (found is member and getattr(member, "__isabstractmethod__", False)):
            yield f"{name}: expected {expected}, found nothing"
            continue
        method = getattr(part, name)
        if not callable(method):
            yield f"{name}: expected {expected}, found {type(method).__name__}"
            continue
        if inspect.isfunction(found) and not _is_class(part) and _accepts(found, len(signature.parameters)):
            continue
        bound = not _is_class(part) or isinstance(found, staticmethod | classmethod)
        arguments = [None] * (len(signature.parameters) - (1 if bound else 0))
        try:
            own = inspect.signature(method)
        except (TypeError, ValueError):  # written in C, or without a readable signature
            continue
        try:
            own.bind(*arguments)
        except TypeError:
            yield f"{name}: expected {expected}, found {name}{own}"


@lru_cache(maxsize=1024)
def _accepts(function: FunctionType, count: int) -> bool:
    """Whether a function can be called with so many arguments by position; cached, as every call checks its sampler."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _property_faults(protocol: type[Any], part: object) -> Iterable[str]:
    options = option_names(_class_of(part)) or ()
    for name, member in vars(protocol).items():
        abstract = isinstance(member, property) and getattr(member.fget, "__isabstractmethod__", False)
        if abstract and name not in options and _static(part, name) in (None, member):
            yield f"{name}: expected a property, found nothing"


def _attribute_faults(protocol: type[Any], part: object) -> Iterable[str]:
    names = {n for n in _declared(protocol) if n in _ATTRIBUTE_TYPES}
    for name in sorted(names):
        value = _static(part, name)
        if _is_class(part) and (isinstance(value, property) or inspect.isdatadescriptor(value)):
            continue
        value = getattr(part, name, None)
        kinds = _ATTRIBUTE_TYPES[name]
        if not isinstance(value, kinds) or (kinds is int and isinstance(value, bool)):
            label = kinds.__name__ if isinstance(kinds, type) else kinds[0].__name__
            yield f"{name}: expected {label}, found {'nothing' if value is None else repr(value)}"
        elif name in _WORDS and not set([value] if isinstance(value, str) else value) <= _WORDS[name]:
            yield f"{name}: expected {' or '.join(map(repr, sorted(_WORDS[name])))}, found {value!r}"


def _option_faults(part: object) -> Iterable[str]:
    if "name" in (option_names(_class_of(part)) or ()):
        yield "options: expected any name but 'name', which stands for the part itself where parts are written down"
    if _is_class(part) and option_names(_class_of(part)) is None:
        yield (
            "options: expected fields of a frozen attrs class, found a class with its own __init__, whose options no "
            "saved system could hold"
        )


def _static(part: object, name: str) -> Any:
    """A member as it is defined, found on the class itself only: every class inherits a __call__ from `type`."""
    own = {} if _is_class(part) else getattr(part, "__dict__", {})
    bases = map(_namespace, _bases(_class_of(part)))
    return own.get(name, next((base[name] for base in bases if name in base), None))


_bases = type.__dict__["__mro__"].__get__
_namespace = type.__dict__["__dict__"].__get__
_name = type.__dict__["__name__"].__get__
"""Namespace and name of a class, not overridden by its metaclass."""


def _is_class(part: object) -> bool:
    """As `isinstance`, but without reading the part's own ``__class__``."""
    return issubclass(type(part), type)


def _class_of(part: object) -> Any:
    return part if _is_class(part) else type(part)


def _name_of(part: object) -> str:
    found: str = _name(_class_of(part))
    return found


def _declared(protocol: type[Any]) -> tuple[str, ...]:
    """Names of the class attributes that a protocol declares."""
    return tuple(inspect.get_annotations(protocol))
