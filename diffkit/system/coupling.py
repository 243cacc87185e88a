"""The noise that a system's coupling gives the examples of a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import ProtocolError
from diffkit.protocols import Coupling, Pairing


def pair_noise(
    coupling: Coupling, x_start: Tensor, noise: Tensor, conditions: Mapping[str, Any], generator: torch.Generator
) -> Pairing:
    """Return what a coupling returns, without gradients, after checking its shapes.

    Args:
        coupling, x_start, noise, generator: As in `Coupling.pair`.
        conditions: The data's; those that are no numbers are left out.
    Raises:
        ProtocolError: It returns noise or weights of another shape.
    """
    with torch.no_grad():
        found = coupling.pair(x_start, noise, dict(_tensors(conditions, noise.device)), generator)
    shapes = found.noise.shape, (len(x_start),) if found.weight is None else found.weight.shape
    if shapes != (noise.shape, (len(x_start),)):
        raise ProtocolError(
            f"coupling {type(coupling).__name__!r} must return noise {tuple(noise.shape)} and weights "
            f"({len(x_start)},) or None, got {' and '.join(str(tuple(shape)) for shape in shapes)}"
        )
    return found


def _tensors(conditions: Mapping[str, Any], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    for name, value in conditions.items():
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # texts, mappings, lists of unequal entries
            yield name, torch.as_tensor(value, device=device)


def for_network(coupling: Coupling | None, conditions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the conditions without those that are the coupling's own."""
    if coupling is None or not coupling.own_conditions:
        return conditions
    return {name: value for name, value in conditions.items() if name not in coupling.own_conditions}


def on_cpu(generator: torch.Generator | None) -> torch.Generator:
    """Return a generator on the CPU that goes on from another one, the global one if None."""
    device = torch.device("cpu") if generator is None else generator.device
    seed = torch.randint(2**62, (), generator=generator, device=device)
    return torch.Generator().manual_seed(int(seed))
