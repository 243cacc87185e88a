"""Checks that a class or instance follows the protocol of its kind; see `diffkit.protocols`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType, UnionType
from typing import Any, ClassVar, Generic, Literal, Protocol, Union, get_args, get_origin, get_type_hints

from diffkit.errors import ProtocolError, naming
from diffkit.options import option_names
from diffkit.protocols import Composition
from diffkit.registry.kinds import OFFERED

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
"""What makes a part, and is none."""


def check_contract(kind: str, part: object, source: str | None = None) -> None:
    """Raise `ProtocolError`, member by member, unless a class or instance follows the protocol of its kind.

    A plain function is accepted as a factory; what it returns is checked when a system is composed.
    """
    if type(part) not in _FUNCTIONS:
        found = OFFERED[kind]
        name = source or f"{kind} {_name_of(part)!r}"
        check_protocol(found.contract, part, name, home=found.home.rpartition(".")[0], plain_options=not found.objects)


def check_protocol(
    protocol: type[Any], part: object, name: str, *, home: str | None = None, plain_options: bool = True
) -> None:
    """Raise `ProtocolError`, member by member, unless a class or instance follows a protocol.

    It also has to follow every further contract that its class inherits, such as `ContinuousSchedule`, and to inherit
    the one that a member of it belongs to.

    Args:
        protocol: A protocol in the module of its further contracts.
        part: The class or instance.
        name: Its name in messages.
        home: Module that users import the protocol from; its own by default.
        plain_options: Whether its options have to be known, as they are saved.
    """
    with naming(name):
        own = tuple(c for c in protocol.__mro__ if c not in (object, Protocol, Generic))
        contracts = _inherited(own, part)
        faults = [
            *_method_faults(contracts, part),
            *_property_faults(contracts, part),
            *_attribute_faults(contracts, part),
            *_option_faults(part, plain_options),
        ]
        misplaced = [*_misplaced(own, contracts, part)]
    if not faults and not misplaced:
        return
    lines = "\n".join(f"  {fault}" for fault in (*faults, *misplaced))
    names = [c.__name__ for c in contracts if protocol in c.__mro__ and not _extended(c, contracts)]
    advice = f"\ninherit from {' and '.join(f'{home or protocol.__module__}.{n}' for n in names)} for the defaults"
    advice = "" if not faults or inspect.ismodule(part) else advice
    raise ProtocolError(f"{name} does not honour the {' and '.join(names)} contract:\n{lines}{advice}")


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
def _extensions(own: tuple[type[Any], ...]) -> tuple[type[Any], ...]:
    """The contracts that extend a protocol, in its own module.

    Args:
        own: The protocol, then those that it extends itself.
    """
    protocol = own[0]
    classes = [c for c in vars(sys.modules[protocol.__module__]).values() if isinstance(c, type)]
    return tuple(c for c in classes if c.__module__ == protocol.__module__ and protocol in c.__mro__[1:])


def _inherited(own: tuple[type[Any], ...], part: object) -> tuple[type[Any], ...]:
    """The contracts that a part has to follow, in the order in which Python looks them up."""
    known = {id(contract) for contract in (*own, *_extensions(own))}  # a metaclass may compare classes in its own way
    found = tuple([base for base in _bases(_class_of(part)) if id(base) in known])
    return found if own[0] in found else own


def _extended(contract: type[Any], contracts: tuple[type[Any], ...]) -> bool:
    return any(contract in other.__mro__[1:] for other in contracts)


@cache
def _methods(contracts: tuple[type[Any], ...]) -> dict[str, tuple[Any, inspect.Signature]]:
    """Methods of contracts and their signatures, by name."""
    found = {}
    for base in reversed(contracts):
        for name, member in vars(base).items():
            if inspect.isfunction(member) and (name == "__call__" or not name.startswith("_")):
                found[name] = member, inspect.signature(member)
    return found


@cache
def _attributes(contracts: tuple[type[Any], ...]) -> dict[str, Any]:
    """Types of the class attributes and properties of contracts, by name."""
    found: dict[str, Any] = {}
    for base in reversed(contracts):
        hints = get_type_hints(base)
        for name in inspect.get_annotations(base):
            if not name.startswith("_"):
                found[name] = hints[name]
        for name, member in vars(base).items():
            if isinstance(member, property) and not name.startswith("_"):
                found[name] = _returned(member)
    return found


def _returned(member: property) -> Any:
    try:
        return get_type_hints(member.fget).get("return", Any)
    except NameError:  # a type that is imported for type checkers only
        return Any


def _method_faults(contracts: tuple[type[Any], ...], part: object) -> Iterable[str]:
    is_class = _is_class(part)
    for name, (member, signature) in _methods(contracts).items():
        expected = f"{name}({', '.join(list(signature.parameters)[1:])})"
        found = _static(part, name)
        if found is None or (found is member and getattr(member, "__isabstractmethod__", False)):
            yield f"{name}: expected {expected}, found nothing"
            continue
        method = getattr(part, name)
        if not callable(method):
            yield f"{name}: expected {expected}, found {type(method).__name__}"
            continue
        if inspect.isfunction(found) and not is_class and _accepts(found, len(signature.parameters)):
            continue
        bound = not is_class or isinstance(found, staticmethod | classmethod)
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


def _property_faults(contracts: tuple[type[Any], ...], part: object) -> Iterable[str]:
    abstract = _abstract_properties(contracts)
    options = option_names(_class_of(part)) or () if abstract else ()
    for name, member in abstract:
        if name not in options and _static(part, name) in (None, member):
            yield f"{name}: expected a property, found nothing"


@cache
def _abstract_properties(contracts: tuple[type[Any], ...]) -> list[tuple[str, property]]:
    members = [member for contract in contracts for member in vars(contract).items()]
    return [(n, m) for n, m in members if isinstance(m, property) and getattr(m.fget, "__isabstractmethod__", False)]


def _attribute_faults(contracts: tuple[type[Any], ...], part: object) -> Iterable[str]:
    is_class = _is_class(part)
    for name, hint in sorted(_attributes(contracts).items()):
        value = _static(part, name)
        if is_class and (isinstance(value, property) or inspect.isdatadescriptor(value)):
            continue
        value = getattr(part, name, None)
        label, fits = _expected(hint)
        if not fits(value):
            yield f"{name}: expected {label}, found {'nothing' if value is None else repr(value)}"


@cache
def _expected(hint: Any) -> tuple[str, Callable[[Any], bool]]:
    """What an annotation allows, in words and as a test of a value."""
    if get_origin(hint) is ClassVar:
        (hint,) = get_args(hint)
    if hint is Any:
        return "a value", lambda value: value is not None
    if get_origin(hint) in (Union, UnionType):
        labels, tests = zip(*map(_expected, get_args(hint)), strict=True)
        return " or ".join(labels), lambda value: any(fits(value) for fits in tests)
    if hint is type(None):
        return "None", lambda value: value is None
    if get_origin(hint) is Literal:
        words = get_args(hint)
        return " or ".join(map(repr, words)), lambda value: isinstance(value, str) and value in words
    kind: type[Any] = get_origin(hint) or hint
    return kind.__name__, lambda value: isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _misplaced(own: tuple[type[Any], ...], contracts: tuple[type[Any], ...], part: object) -> Iterable[str]:
    """Report members of further contracts that the part does not inherit, without which nothing reads them."""
    for name, contract in _not_inherited(own, contracts):
        if _static(part, name) is not None:
            owner = f"{contract.__module__}.{contract.__name__}"
            yield f"{name}: belongs to {owner}; inherit from it, or rename this member"


@cache
def _not_inherited(own: tuple[type[Any], ...], contracts: tuple[type[Any], ...]) -> tuple[tuple[str, type[Any]], ...]:
    """Members that further contracts of a protocol add, each with its contract."""
    found = []
    for contract in _extensions(own):
        if contract not in contracts:
            added = {*_methods((contract,)), *_attributes((contract,))} - {*_methods(own), *_attributes(own)}
            found += [(name, contract) for name in sorted(added)]
    return tuple(found)


def _option_faults(part: object, plain: bool) -> Iterable[str]:
    names = option_names(_class_of(part))
    if "name" in (names or ()):
        yield "options: expected any name but 'name', which stands for the part itself where parts are written down"
    if plain and names is None and _is_class(part):
        yield (
            "options: expected fields of a frozen attrs class, found a class with its own __init__, whose options no "
            "saved system could hold"
        )


def _static(part: object, name: str) -> Any:
    """A member as it is defined, found on the class itself only: every class inherits a __call__ from `type`."""
    is_class = issubclass(type(part), type)
    own = {} if is_class else getattr(part, "__dict__", {})
    if name in own:
        return own[name]
    for base in map(_namespace, _bases(part if is_class else type(part))):
        if name in base:
            return base[name]
    return None


_bases = type.__dict__["__mro__"].__get__
_namespace = type.__dict__["__dict__"].__get__
_name = type.__dict__["__name__"].__get__
"""Namespace and name of a class, not overridden by its metaclass."""


def _is_class(part: object) -> bool:
    """As `isinstance`, but without reading the part's own ``__class__``."""
    return issubclass(type(part), type)


def _class_of(part: object) -> Any:
    return part if issubclass(type(part), type) else type(part)


def _name_of(part: object) -> str:
    found: str = _name(_class_of(part))
    return found
