"""Inversion: the noise from which a deterministic sampler makes an image, and the round-trip error."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from diffkit.protocols import Model
from diffkit.registry.resolve import Slot
from diffkit.spacing import Spacing
from diffkit.system.compiling import Compile
from diffkit.system.guidance import GuidanceSlot
from diffkit.system.module import System
from diffkit.tasks._images import images_for

SAMPLER = "heun"
"""The built-in sampler with the smallest round-trip error: 6e-5 to 4e-4 RMS at 50 + 50 steps on bimodal data, where
DDIM has 2e-2 to 5e-2."""


STEPS = 50
"""Default number of levels, if the system has as many."""


def steps_or_default(system: System, steps: Spacing) -> Spacing:
    """Return ``steps``; for None, 50 levels, or all if there are fewer."""
    return min(STEPS, system.num_steps) if steps is None else steps


@frozen(eq=False)
class Inversion:
    """Result of an inversion: noise, and the image that the same sampler makes from it.

    Attributes:
        latent: Data at level T, (B, C, *S).
        reconstruction: The sample from the latent, (B, C, *S).
        error: Root mean squared difference from the image, of each example, (B,).
    """

    latent: Tensor
    reconstruction: Tensor
    error: Tensor

    def __str__(self) -> str:
        worst, mean = self.error.max().item(), self.error.square().mean().sqrt().item()
        return f"inversion of {len(self.error)}: {mean:.2e} RMS round-trip error (worst {worst:.2e})"


@torch.no_grad()
def invert(
    system: System,
    image: Tensor,
    *,
    steps: Spacing = None,
    sampler: Slot = SAMPLER,
    guidance: GuidanceSlot = None,
    clip: bool | None = None,
    model: Model | None = None,
    compile: Compile = False,
    progress: bool = True,
    **conditions: Any,
) -> Inversion:
    """Invert an image: find the noise from which a deterministic sampler makes it, and measure the round-trip error.

    Args:
        system: The system.
        image: (C, *S) or (B, C, *S), in [-1, 1].
        steps: As in `System.sample`, but 50 levels by default, or all if there are fewer.
        sampler, guidance, model, compile, progress, conditions: As in `System.sample`; the sampler must be
            deterministic.
        clip: Clip estimates of x_start; as composed by default. At levels with hardly any signal, dividing by alpha
            enlarges the error of an 'eps' network a hundredfold; clipping in both directions limits it.
    Raises:
        OptionError: The sampler is stochastic, or an argument is wrong.
    Source: Song et al. 2021, arXiv:2010.02502, section 4.3, for any order.
    """
    image = images_for(system, "image", image)
    how: dict[str, Any] = dict(
        steps=steps_or_default(system, steps),
        sampler=sampler,
        guidance=guidance,
        clip=clip,
        model=model,
        compile=compile,
        progress=progress,
        **conditions,
    )
    latent = system.encode(image, **how)
    back = system.sample(len(image), start=latent, **how)
    return Inversion(latent, back, (back - image).square().flatten(1).mean(1).sqrt())


def reconstruct(
    system: System,
    image: Tensor,
    *,
    steps: Spacing = None,
    sampler: Slot = SAMPLER,
    guidance: GuidanceSlot = None,
    clip: bool | None = None,
    model: Model | None = None,
    compile: Compile = False,
    progress: bool = True,
    **conditions: Any,
) -> Tensor:
    """Return an image after inversion to noise and sampling back, (B, C, *S); arguments as in `invert`."""
    found = invert(
        system,
        image,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        clip=clip,
        model=model,
        compile=compile,
        progress=progress,
        **conditions,
    )
    return found.reconstruction
