"""Which conditions a network takes, and keywords that are none: misspelt options end here, not inside the network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable, Iterator
from difflib import get_close_matches
from functools import lru_cache
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from attrs import frozen
from torch import Tensor, nn

from diffkit.errors import OptionError, did_you_mean
from diffkit.registry.aliases import SAMPLING_ALIASES
from diffkit.system.call_options import OPTIONS

_TYPO_TARGETS = OPTIONS - {"estimates", "grad", "level", "level_to", "model", "noise", "table", "teacher"}
"""Options for which typos are detected; the others resemble likely names of conditions, such as mode."""

_TIMES = ("t", "time", "timestep", "timesteps", "sigma", "noise_level", "noise_labels")
"""Names that networks use for their time argument."""

_NO_CONDITIONS = ("time_to", "previous_x_start")
"""Keywords that a network gets from diffkit: its second time, and its previous estimate."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

_NEAR = 0.85
"""Similarity (difflib's ratio) to an option from which a condition counts as a typo: 'step' does, 'scale' not."""


class NamedTime(nn.Module):
    """A foreign network whose time argument is passed by name.

    Args:
        network: The network.
        argument: Name of its time; None for its second argument.
        argument_to: Name of the second time of a network that takes two; None for one that takes one.
    """

    def __init__(self, network: nn.Module, argument: str | None, argument_to: str | None = None):
        super().__init__()
        parameters = _signature(network.forward).parameters
        if argument is None:
            argument = [*parameters][1]  # `check_takes_time` found one
        if argument_to is not None:
            keywords = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            if argument_to == argument or not (argument_to in parameters or keywords):
                raise OptionError(
                    f"{type(network).__name__}.forward has no argument {argument_to!r} for the time that a step goes "
                    f"to (arguments: {', '.join(parameters)})"
                )
        keywords = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        found = parameters.get(argument) if isinstance(argument, str) else None
        if found is None and not (keywords and isinstance(argument, str)):
            raise OptionError(
                f"{type(network).__name__}.forward has no argument {argument!r} for the time "
                f"(arguments: {', '.join(parameters)})"
            )
        if found is not None and found.kind not in (found.POSITIONAL_OR_KEYWORD, found.KEYWORD_ONLY):
            raise OptionError(
                f"{type(network).__name__}.forward takes {argument!r} by position only; leave time_argument out, and "
                "let it come second"
            )
        if list(parameters) == [argument]:
            raise OptionError(f"{type(network).__name__}.forward takes {argument!r} alone; it must take data and time")
        self.network = network
        self.argument, self.argument_to = argument, argument_to
        names = list(parameters)
        self.data = names[1] if len(names) > 1 and names[0] == argument else None

    def forward(self, x: Tensor, time: Tensor, *, time_to: Tensor | None = None, **conditions: Any) -> Tensor:
        """Return the network's output."""
        named = {self.argument: time}
        if self.argument_to is not None:
            named[self.argument_to] = time if time_to is None else time_to
        out: Tensor
        if self.data is None:
            out = self.network(x, **named, **conditions)
        else:  # the time comes first
            out = self.network(**{self.data: x}, **named, **conditions)
        return out


def check_takes_time(network: nn.Module) -> None:
    """Raise `OptionError` if a foreign network's signature does not allow ``network(x, time)``."""
    try:
        signature = _signature(network.forward)
        names = list(signature.parameters)
    except (TypeError, ValueError):  # a function without a signature
        return
    arguments, name = ", ".join(names) or "none", type(network).__name__
    if getattr(network.forward, "__name__", "") == "_forward_unimplemented":
        raise OptionError(f"{name} has no forward, so nothing can be computed with it; give a network that has one")
    if names and names[0] in _TIMES:
        raise OptionError(
            f"{name}.forward takes {names[0]!r} first, where data comes (arguments: {arguments}); pass "
            f"time_argument={names[0]!r}"
        )
    positional = [p.name for p in signature.parameters.values() if p.kind in _POSITIONAL]
    if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values()):
        named = next((n for n in names if n in _TIMES), None)
        hint = f"pass time_argument={named!r}" if named else "let it take the time second, or pass time_argument="
        raise OptionError(f"{name}.forward must take data and time (arguments: {arguments}); {hint}")


@frozen
class _Taken:
    """Conditions in a network's signature: names, those without default, and any other name if ``anything``."""

    names: frozenset[str]
    anything: bool
    needed: tuple[str, ...] = ()


def name_problems(model: Callable[..., Any], names: Iterable[str], own: frozenset[str]) -> Iterator[str]:
    """Report conditions that a network does not take.

    A network that names its conditions takes no others. One with ``**kwargs`` takes any, except options of a system's
    calls and likely typos of them.

    Args:
        model: The network.
        names: Names of the conditions.
        own: Names of conditions for guidance only.
    """
    unsure = [name for name in names if name not in own]
    taken = _taken(model) if unsure and not torch.compiler.is_compiling() else None
    if taken is None:
        return
    label = _label(model)
    for name in unsure:
        if name in taken.names:
            continue
        if name in SAMPLING_ALIASES and not (taken.anything and name not in OPTIONS):
            yield f"{name!r} is not a condition of {label}, nor an option here; it is {SAMPLING_ALIASES[name]}"
        elif name in OPTIONS:
            yield f"{name!r} is an option of other calls, not of this one, nor a condition of {label}; leave it out"
        elif taken.anything:
            if meant := _typo(name):
                yield f"condition {name!r} looks like the option {meant!r}; write that, or name {name!r} in {label}"
        else:
            known = ", ".join(sorted(taken.names)) or "none"
            guess = did_you_mean(name, taken.names | OPTIONS)
            yield f"{label} takes no condition {name!r}{guess} (conditions: {known})"


def missing_problems(model: Callable[..., Any], names: Container[str]) -> Iterator[str]:
    """Report required conditions of a network that are missing."""
    taken = None if torch.compiler.is_compiling() else _taken(model)
    for name in taken.needed if taken else ():
        if name not in names:
            yield f"{_label(model)} needs the condition {name!r}; pass {name}=..."


def names_condition(model: Callable[..., Any], name: str) -> bool:
    """Return whether a network's signature has a condition of this name."""
    taken = None if torch.compiler.is_compiling() else _taken(model)
    return taken is not None and name in taken.names


def _label(model: Callable[..., Any]) -> str:
    return f"the network {type(model).__name__}" if isinstance(model, nn.Module) else "the function given as model"


@lru_cache(maxsize=256)
def _typo(name: str) -> str | None:
    """The option of which a condition is a likely typo; cached, as every training step looks it up."""
    return next(iter(get_close_matches(name, _TYPO_TARGETS, n=1, cutoff=_NEAR)), None)


def _taken(model: Callable[..., Any]) -> _Taken | None:
    """The conditions in a network's signature; None if it has no signature."""
    try:
        if isinstance(model, NamedTime):
            found = _read(model.network.forward, 1)
            own = {model.argument, model.argument_to, model.data}
            needed = tuple(name for name in found.needed if name not in own)
            return _Taken(found.names - own, found.anything, needed)
        if isinstance(model, nn.Module) and _has_plain_forward(model):
            return _read_once(type(model).forward)
        if isinstance(model, FunctionType):
            return _FUNCTIONS.get(model) or _FUNCTIONS.setdefault(model, _read(model, 2))
        return _read(model.forward if isinstance(model, nn.Module) else model, 2)
    except (TypeError, ValueError):  # a function without a signature
        return None


def _has_plain_forward(model: nn.Module) -> bool:
    """Whether a module's forward is its class's own function, not one set on it, scripted or written in C."""
    scripted = isinstance(model, torch.jit.ScriptModule)
    return not scripted and "forward" not in vars(model) and inspect.isfunction(type(model).forward)


_FUNCTIONS: WeakKeyDictionary[FunctionType, _Taken] = WeakKeyDictionary()
"""Cache of `_read`, which takes as long as a small layer and is needed at every training step."""


@lru_cache(maxsize=256)
def _read_once(forward: Callable[..., Any]) -> _Taken:
    """`_read`, once for all networks of a class."""
    return _read(forward, 3)


def _read(function: Callable[..., Any], skip: int) -> _Taken:
    """Names of a function's arguments after the first ones, which are the data and the time."""
    parameters = list(_signature(function).parameters.values())
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:skip]
    positional += _NO_CONDITIONS
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in positional]
    return _Taken(
        frozenset(p.name for p in named),
        any(p.kind is p.VAR_KEYWORD for p in parameters),
        tuple(p.name for p in named if p.default is p.empty),
    )


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """A function's signature; that of a scripted or traced one is in its schema, which inspect does not read."""
    if not isinstance(function, torch.ScriptMethod | torch.ScriptFunction):
        return inspect.signature(function)
    schema: Any = function.schema
    own = 1 if isinstance(function, torch.ScriptMethod) else 0  # a method's first argument is the module itself
    return inspect.Signature([_parameter(argument) for argument in schema.arguments[own:]])


def _parameter(argument: Any) -> inspect.Parameter:
    default = argument.default_value if argument.has_default_value() else inspect.Parameter.empty
    return inspect.Parameter(argument.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
