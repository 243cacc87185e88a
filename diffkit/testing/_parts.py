"""Laws of every part, whatever its kind: it holds options that can be saved, and nothing else."""

from __future__ import annotations

import copy
import enum
import itertools
import json
import pathlib
import pickle
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import torch

from diffkit.errors import DiffkitError, ProtocolError
from diffkit.options import python_objects
from diffkit.protocols import LearnedSchedule, TimeSampler
from diffkit.registry import KINDS, registry
from diffkit.registry.contracts import check_contract
from diffkit.testing._check import LawError, NotApplicableError, Where, check
from diffkit.testing._close import require

DATA_SHAPES = ((2,), (3, 16, 16), (2, 16), (2, 8, 8, 8), (3, 64, 64))
"""Shapes of data that networks are tried on, in this order: a point, an image, a signal, a volume, a larger image."""

_PLAIN = (bool, int, float, str, type(None), enum.Enum, pathlib.PurePath)
_MUTABLE = (list, dict, set, bytearray, np.ndarray, torch.Tensor, torch.Generator, torch.nn.Module)


@check()
def contract(part: Any, kind: str) -> None:
    """A part has every member of its protocol, with the right arguments and types.

    Usually: a misspelt method, an argument left out, or a class attribute of the wrong type.
    """
    try:
        check_contract(kind, part)
    except ProtocolError as error:
        raise LawError("every member of the protocol", str(error)) from error


@check()
def frozen_options(part: Any, kind: str) -> None:
    """A part is a frozen attrs class: no option can be changed, nothing can be added.

    Usually: attrs.define or a plain class where attrs.frozen belongs.
    """
    require(attrs.has(type(part)), "an attrs class", f"{type(part).__name__}, which is none")
    for name in (*_options(part), "an_attribute_of_the_kit"):
        try:
            setattr(part, name, getattr(part, name, 0))
        except (attrs.exceptions.FrozenInstanceError, AttributeError):
            continue
        raise LawError(f"an error when {name!r} is set", "none")


@check()
def equal_when_rebuilt(part: Any, kind: str) -> None:
    """A part made again from its options is equal, with the same hash.

    Usually: eq=False, an option that is not hashable (a list), or state that is not an option.
    """
    other = type(part)(**_options(part))
    require(other == part, "an equal part", f"{other!r} != {part!r}")
    require(hash(other) == hash(part), "the same hash", "another one")


@check()
def repr_round_trip(part: Any, kind: str) -> None:
    """A part is made again by the Python code that it prints.

    Usually: repr=False on an option, or a __repr__ of its own.
    """
    _needs_plain_options(part)
    names = vars(pathlib) | vars(sys.modules[type(part).__module__]) | {type(part).__name__: type(part)}
    try:
        other = eval(repr(part).rpartition("<locals>.")[2], dict(names))
    except Exception as error:
        raise LawError("a repr that Python can read", f"{part!r} ({error})") from error
    require(other == part, f"{part!r}", f"{other!r}")


@check()
def plain_options(part: Any, kind: str) -> None:
    """A part holds options only: numbers, words, paths, tuples of them; no tensor, generator, array, list or module.

    Usually: a table, cache or history kept on the part; compute it in columns or carry it as state.
    """
    attributes = {**vars(part)} if hasattr(part, "__dict__") else {}
    objects = python_objects(type(part)) if KINDS[kind].objects else ()
    options = {n: tuple(v.values()) if isinstance(v, Mapping) else v for n, v in _options(part).items()}
    for name, value in (attributes | options).items():
        for item in () if name in objects else _flatten(value):
            plain = isinstance(item, _PLAIN) or (attrs.has(type(item)) and not _is_mutable(type(item)))
            require(plain, "plain values", f"{name} holds {type(item).__name__}")
    for name, value in _class_attributes(type(part)):
        require(not isinstance(value, _MUTABLE), "nothing mutable on the class", f"{name} is {type(value).__name__}")


@check()
def copies(part: Any, kind: str) -> None:
    """A part can be pickled and copied, and the copies are equal.

    Usually: a lambda or another thing that cannot be pickled among the options.
    """
    _needs_plain_options(part)
    for how, again in (("pickle", _pickle_and_load), ("copy.deepcopy", copy.deepcopy), ("copy.copy", copy.copy)):
        try:
            other = again(part)
        except Exception as error:
            raise LawError(f"a copy by {how}", f"{type(error).__name__}: {error}") from error
        require(bool(other == part), f"an equal copy by {how}", repr(other))


@check()
def json_round_trip(part: Any, kind: str) -> None:
    """A part's options survive JSON, where a tuple comes back as a list.

    Usually: an option without a converter from list to tuple, or of a type that JSON does not know.
    """
    _needs_plain_options(part)
    try:
        text = _as_json(_options(part))
        other = type(part)(**json.loads(text))
    except (TypeError, ValueError) as error:
        raise LawError("options that JSON can hold and the class takes back", str(error)) from error
    require(other == part, repr(part), repr(other))


@check()
def spec_round_trip(part: Any, kind: str) -> None:
    """Whatever holds the part, such as a system, can be saved, and is rebuilt from what was saved.

    Usually: a converter that changes an option when it is given a second time.
    """
    import diffkit

    _needs_plain_options(part)
    known = registry(kind).provenance(part)
    if known is None:
        raise NotApplicableError("its class has no registered name")
    system = system_with(kind, part) if KINDS[kind].slot else None
    if system is None:  # what is saved asks the registry just this
        other = registry(kind).create(f"{known.origin}:{known.name}", **json.loads(_as_json(_options(part))))
    else:
        with tempfile.TemporaryDirectory() as folder:
            again = diffkit.load(system.save(folder))
        other = again.parts.backbone if kind == "backbone" else getattr(again.parts, kind)
    require(other == part, repr(part), repr(other))


@check()
def refuses_nonsense(part: Any, kind: str) -> None:
    """A part's option that is a number takes neither a word nor NaN.

    Usually: an option without a validator; write it as number(...) or integer(...) of diffkit.options.
    """
    for name, value in _options(part).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        for nonsense in ("nonsense", float("nan")):
            try:
                type(part)(**_options(part) | {name: nonsense})
            except (TypeError, ValueError):
                continue
            raise LawError("an OptionError", f"{name}={nonsense!r} was taken", Where(detail=f"option {name}"))


def _as_json(options: Mapping[str, Any]) -> str:
    """Return options as JSON, paths as texts."""
    paths = {name: str(value) for name, value in options.items() if isinstance(value, pathlib.PurePath)}
    return json.dumps({**options, **paths})


def _needs_plain_options(part: Any) -> None:
    if objects := python_objects(type(part)):
        raise NotApplicableError(f"its option {objects[0]!r} holds an object of Python")


def system_with(kind: str, part: Any) -> Any:
    """Return a small system of built-in parts around one part, or None if none fits."""
    import diffkit

    plain: dict[str, Any] = dict(schedule="cosine", loss="vlb", backbone=("mlp", {"hidden": 8, "depth": 1}))
    for mean, var, shape in itertools.product(("eps", "v"), ("fixed_small", "learned_range"), DATA_SHAPES):
        slots = plain | {"mean": mean, "var": var, kind: part}
        if isinstance(part, LearnedSchedule):
            slots |= {"loss": "continuous_vlb", "timesteps": "uniform_time", "var": "fixed_large"}
        elif isinstance(part, TimeSampler):
            slots |= {"loss": "continuous_vlb", "schedule": "monotone", "var": "fixed_large"}
        try:
            return diffkit.compose(num_steps=1000, data_shape=shape, bins=None, **slots)
        except DiffkitError:
            continue
    return None


def _options(part: Any) -> dict[str, Any]:
    if not attrs.has(type(part)):
        return {}
    return {f.alias or f.name: getattr(part, f.name) for f in attrs.fields(type(part)) if f.init}


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | frozenset):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def _is_mutable(cls: type[Any]) -> bool:
    return "__setattr__" not in {name for base in cls.__mro__[:-1] for name in vars(base)}


def _class_attributes(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("builtins", "typing", "abc"):
            continue
        yield from ((n, v) for n, v in vars(base).items() if not n.startswith(("__", "_abc_", "_is_")))


def _pickle_and_load(part: Any) -> Any:
    return pickle.loads(pickle.dumps(part))
