"""Guidance of a call: checked against the system, bound to it, with the conditions it adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffkit.errors import CompositionError, OptionError
from diffkit.protocols import (
    BindableGuidance,
    Composition,
    ConditionalGuidance,
    Conditions,
    Guidance,
    IntervalGuidance,
    NetworkGuidance,
)
from diffkit.registry.contracts import check_protocol, problems_of
from diffkit.table import Coefs


def joint_problem(name: str, values: Sequence[Any], batch: int) -> str | None:
    """Return why values of a condition cannot be evaluated in one call on a larger batch; None if they can.

    Args:
        name: Name of the condition.
        values: Its value in each set.
        batch: Number of examples in each set.
    """
    first, text = values[0], f"condition {name!r} cannot be evaluated with and without in one call: "
    if all(isinstance(value, Mapping) and value.keys() == first.keys() for value in values):
        inside = (joint_problem(name, [value[key] for value in values], batch) for key in first)
        return next(filter(None, inside), None)
    if all(isinstance(value, tuple) and len(value) == len(first) for value in values):
        inside = (joint_problem(name, entries, batch) for entries in zip(*values, strict=True))
        return next(filter(None, inside), None)
    if all(isinstance(value, list) and len(value) == batch for value in values):
        return None
    if all(isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch for value in values):
        shapes = [tuple(value.shape[1:]) for value in values]
        other = next((shape for shape in shapes if shape != shapes[0]), None)
        return None if other is None else f"{text}its shapes are {shapes[0]} and {other}; use joint=False"
    if all(value is first or (isinstance(value, _PLAIN) and value == first) for value in values):
        return None
    return f"{text}it needs one row for each of {batch} examples in both; use joint=False"


_PLAIN = (str, bytes, bool, int, float)
"""Types compared by value rather than by identity."""


def own_conditions(guidance: Iterable[Guidance]) -> frozenset[str]:
    """Return the names of conditions for guidance only, which the network does not receive."""
    return frozenset().union(*(one.own_conditions for one in guidance if isinstance(one, ConditionalGuidance)))


def networks_of(guidance: Iterable[Guidance]) -> tuple[nn.Module, ...]:
    """Return the networks that guidance holds."""
    return tuple(network for one in guidance if isinstance(one, NetworkGuidance) for network in one.networks)


def inactive_at(guidance: Guidance, at: Coefs) -> NDArray[np.bool_]:
    """Return where guidance certainly changes nothing; see `IntervalGuidance.inactive_at`."""
    if isinstance(guidance, IntervalGuidance):
        return guidance.inactive_at(at)
    return np.zeros(np.shape(at.alpha), dtype=bool)


def row_conditions(guidance: Iterable[Guidance], conditions: Conditions, n: int) -> dict[str, Any]:
    """Return the conditions that guidance adds; arguments as of `ConditionalGuidance.row_conditions`.

    Raises:
        OptionError: Two guidances add one of the same name.
    """
    found: dict[str, Any] = {}
    for one in guidance:
        added = one.row_conditions(conditions, n) if isinstance(one, ConditionalGuidance) else {}
        for name, value in added.items():
            if name in found:
                raise OptionError(f"two guidances add rows for {name!r}; let one of them use another name")
            found[name] = value
    return found


GuidanceSlot = Guidance | Sequence[Guidance] | None
"""Guidance of a call: none, one, or several in the order they act, nearest to the network first."""


def with_guidance(parts: Composition, guidance: GuidanceSlot) -> Composition:
    """Return a composition with the guidance of a call.

    Raises:
        OptionError: It is not a guidance.
        CompositionError: It cannot work with the parts; every problem is listed.
    """
    if guidance is None:
        return parts
    listed = tuple(guidance) if isinstance(guidance, tuple | list) else (guidance,)
    for one in listed:
        if isinstance(one, type) or not isinstance(one, Guidance):
            raise OptionError(
                f"guidance must be a guidance, such as diffkit.guidance.ClassifierFree(2.0), or a list, got {one!r}"
            )
        check_protocol(Guidance, one, f"guidance {type(one).__name__}")
    names = [type(one).__name__ for one in listed]
    found = ((name, problems_of(f"guidance {name}", one, parts)) for name, one in zip(names, listed, strict=True))
    problems = [f"{name}: {problem}" for name, several in found for problem in several]
    if problems:
        raise CompositionError("\n  ".join(["guidance does not fit this system:", *problems]))
    for one in listed:  # `bind` needs the guidance nearer to the network
        bound = one.bind(parts) if isinstance(one, BindableGuidance) else one
        parts = attrs.evolve(parts, guidance=(*parts.guidance, bound))
    return parts


def check_guidance(parts: Composition, conditions: Mapping[str, Any], device: torch.device) -> None:
    """Raise `OptionError` if guidance lacks a required condition, or has a network on another device."""
    for guidance in parts.guidance:
        name = type(guidance).__name__
        required = guidance.required_conditions if isinstance(guidance, ConditionalGuidance) else frozenset()
        for missing in sorted(required - set(conditions)):
            raise OptionError(f"{name} needs the condition {missing!r}; pass {missing}=...")
        for place in {parameter.device for network in networks_of([guidance]) for parameter in network.parameters()}:
            if place != device:
                raise OptionError(f"{name} has a network on {place}, the system is on {device}; move one of them")
