"""What the gallery says of a part besides its docstring: found by running it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import diffkit
from diffkit.errors import DiffkitError
from diffkit.registry import BUILT_IN, KINDS, SLOTS, registry
from diffkit.testing import measured_orders


def built_in(kind: str) -> tuple[str, ...]:
    """Names of the built-in parts of a kind."""
    return tuple(entry.name for entry in registry(kind).entries() if entry.origin == BUILT_IN)


def properties(kind: str, part: Any) -> dict[str, str]:
    """What a part declares of itself: the attributes of its protocol that are not methods."""
    contract = KINDS[kind].contract
    names = [
        name
        for cls in reversed(contract.__mro__)
        for name in (*getattr(cls, "__annotations__", {}), *vars(cls))
        if not name.startswith("_") and not callable(getattr(contract, name, None))
    ]
    return {name: _shown(getattr(part, name)) for name in dict.fromkeys(names) if hasattr(part, name)}


def _shown(value: Any) -> str:
    if isinstance(value, frozenset | set):
        return ", ".join(sorted(map(str, value))) or "nothing"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def orders(part: Any) -> dict[str, float]:
    """Order of convergence that the conformance kit measures of a sampler, by path."""
    return {path: round(order, 2) for path, order in measured_orders(part).items()}


def misfits() -> dict[str, dict[str, str]]:
    """Return "kind name" -> the parts of other kinds it cannot be composed with -> why, in the library's own words."""
    kinds = [kind for kind in SLOTS if kind != "backbone"]
    found: dict[str, dict[str, str]] = {f"{kind} {name}": {} for kind in kinds for name in built_in(kind)}
    for i, first in enumerate(kinds):
        for second in kinds[i + 1 :]:
            for one, other in product(built_in(first), built_in(second)):
                why = misfit({first: one, second: other})
                if why:
                    found[f"{first} {one}"][f"{second} {other}"] = why
                    found[f"{second} {other}"][f"{first} {one}"] = why
    return found


def misfit(chosen: Mapping[str, str]) -> str:
    """Return why parts cannot be composed, whatever the other parts are; "" if they can."""
    needs = [needed(kind, name) for kind, name in chosen.items()]
    everything = {kind: name for each in needs for kind, name in each.items()}
    reasons = [problem({**others, **chosen}) for others in ({}, *needs, everything)]
    return "" if "" in reasons else reasons[-1]


def problem(chosen: Mapping[str, Any]) -> str:
    """Return why parts cannot be composed, with the default of every other kind; "" if they can."""
    try:
        diffkit.compose(**chosen, backbone=None, data_shape=(1, 8, 8))
    except DiffkitError as error:
        return " ".join(str(error).split("\n", 1)[-1].split())
    return ""


@cache
def needed(kind: str, name: str) -> Mapping[str, str]:
    """Return the other part that a part needs in place of a default, if any: a learned variance needs a loss for it."""
    others = ({other: each} for other in SLOTS if other not in (kind, "backbone") for each in built_in(other))
    return next((each for each in ({}, *others) if not problem({kind: name, **each})), {})
