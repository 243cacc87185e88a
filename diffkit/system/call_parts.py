"""The composition of a call: the system's, with another sampler and with guidance."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from diffkit.errors import CompositionError, problem
from diffkit.protocols import Composition
from diffkit.registry.contracts import problems_of
from diffkit.registry.resolve import Slot, resolve
from diffkit.system.guidance import GuidanceSlot, with_guidance


def parts_for(parts: Composition, sampler: Slot = None, guidance: GuidanceSlot = None) -> Composition:
    """Return a composition with another sampler and with guidance.

    Raises:
        CompositionError: They do not fit it; every problem is listed.
    """
    return with_guidance(with_sampler(parts, sampler), guidance)


def with_sampler(parts: Composition, slot: Slot) -> Composition:
    """Return a composition with another sampler, or unchanged for None.

    Raises:
        CompositionError: It cannot work with the other parts.
    """
    if slot is None:
        return parts
    sampler, name = resolve("sampler", slot)
    changed = attrs.evolve(parts, sampler=sampler, names={**parts.names, "sampler": name})
    problems = [*problems_of(changed.label("sampler"), sampler, changed), *noise_problems(changed)]
    if problems:
        raise CompositionError("\n  ".join([f"sampler {name!r} does not fit this system:", *problems]))
    return changed


def noise_problems(parts: Composition) -> Iterator[str]:
    """Yield why the noise that a sampler adds does not fit how the network was trained."""
    if parts.coupling is not None and parts.sampler.stochastic:
        yield problem(
            f"{parts.label('sampler')} adds noise, but with {parts.label('coupling')} noise depends on the data, so "
            "that only deterministic samplers lead to the data's distribution",
            fix=[{"sampler": "ddim"}, {"sampler": "heun"}],
        )
