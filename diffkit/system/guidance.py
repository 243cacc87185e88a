"""Guidance of a call: checked against the system, bound to it, with the conditions it adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diffkit.errors import CompositionError, Message, OptionError, joined
from diffkit.protocols import (
    BindableGuidance,
    Composition,
    ConditionalGuidance,
    Conditions,
    Guidance,
    IntervalGuidance,
    NetworkGuidance,
)
from diffkit.registry import registry
from diffkit.registry.contracts import problems_of
from diffkit.registry.resolve import Slot, resolve_several
from diffkit.table import Coefs


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


GuidanceSlot = Slot | Sequence[Slot] | None
"""Guidance of a call: none, one, or several in the order they act, nearest to the network first.

Each is a name, a pair ("cfg", {"scale": 2.0}), a mapping {"name": "cfg", "scale": 2.0} or an instance.
"""


def with_guidance(parts: Composition, guidance: GuidanceSlot) -> Composition:
    """Return a composition with the guidance of a call.

    Raises:
        UnknownComponentError, OptionError, ProtocolError: It is not a guidance, or one of its options is wrong.
        CompositionError: It cannot work with the parts; every problem is listed.
    """
    listed = resolve_several("guidance", guidance)
    found = ((name, problems_of(f"guidance {name!r}", one, parts)) for one, name in listed)
    problems = [Message(f"guidance {name!r}: ", each) for name, several in found for each in several]
    if problems:
        raise CompositionError(joined("\n  ", ["guidance does not fit this system:", *problems]))
    for one, _ in listed:  # `bind` needs the guidance nearer to the network
        bound = one.bind(parts) if isinstance(one, BindableGuidance) else one
        parts = attrs.evolve(parts, guidance=(*parts.guidance, bound))
    return parts


def check_guidance(parts: Composition, conditions: Mapping[str, Any], device: torch.device) -> None:
    """Raise `OptionError` if guidance lacks a required condition, or has a network on another device."""
    for guidance in parts.guidance:
        name = _label(guidance)
        required = guidance.required_conditions if isinstance(guidance, ConditionalGuidance) else frozenset()
        for missing in sorted(required - set(conditions)):
            raise OptionError(f"{name} needs the condition {missing!r}; pass {missing}=...")
        for place in {parameter.device for network in networks_of([guidance]) for parameter in network.parameters()}:
            if place != device:
                raise OptionError(f"{name} has a network on {place}, the system is on {device}; move one of them")


def _label(guidance: Guidance) -> str:
    known = registry("guidance").provenance(guidance)
    return f"guidance {(known.name if known else type(guidance).__name__)!r}"
