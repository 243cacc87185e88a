"""Images between two images: invert both, interpolate their noises on a great circle, and sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_integer, check_number
from diffkit.protocols import Model
from diffkit.registry.resolve import Slot
from diffkit.spacing import Spacing
from diffkit.system.compiling import Compile
from diffkit.system.guidance import GuidanceSlot
from diffkit.system.module import System
from diffkit.tasks._images import images_for
from diffkit.tasks.inversion import SAMPLER, steps_or_default


@torch.no_grad()
def interpolate(
    system: System,
    first: Tensor,
    second: Tensor,
    weights: int | Sequence[float] = 7,
    *,
    steps: Spacing = None,
    sampler: Slot = SAMPLER,
    guidance: GuidanceSlot = None,
    batch_size: int | None = None,
    clip: bool | None = None,
    model: Model | None = None,
    compile: Compile = False,
    progress: bool = True,
    **conditions: Any,
) -> Tensor:
    """Interpolate two images, (K, C, *S): both are inverted, and sampling starts between their noises.

    Args:
        system: The system.
        first, second: (C, *S), in [-1, 1].
        weights: Number of images, evenly from the first (0) to the second (1), both included; or positions in [0, 1].
        steps, sampler, guidance, model, compile, progress: As in `invert`.
        clip: As in `invert`.
        batch_size: As in `System.sample`.
        conditions: As in `System.sample`, one value for all images.
    Source: Song et al. 2021, arXiv:2010.02502, section 5.3.
    """
    where = _weights(weights)
    ends = torch.cat([images_for(system, "first", first), images_for(system, "second", second)])
    if len(ends) != 2:
        raise OptionError(f"first and second must be one image each, got {len(ends)} in all")
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
    start, end = system.encode(ends, **how)
    between = torch.stack([slerp(start, end, weight) for weight in where])
    return system.sample(len(between), start=between, batch_size=batch_size, **how)


def slerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """Interpolate spherically: return the point at share ``weight`` of the great circle from start to end.

    Norms are interpolated too; (nearly) parallel vectors are interpolated linearly.
    Source: Shoemake 1985, Animating rotation with quaternion curves.
    """
    cosine = (start * end).sum() / (start.norm() * end.norm()).clamp_min(torch.finfo(start.dtype).tiny)
    angle = torch.acos(cosine.clamp(-1, 1))
    sine = angle.sin()
    straight = sine < 1e-4  # the ratio of sines has lost half its digits there, and the circle is a line
    safe = sine.where(~straight, 1)
    a = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / safe)
    b = torch.where(straight, weight, (weight * angle).sin() / safe)
    return a * start + b * end


def _weights(weights: int | Sequence[float]) -> list[float]:
    if isinstance(weights, int):
        count = check_integer("weights", weights, ge=2)
        return [i / (count - 1) for i in range(count)]
    found = [check_number("each weight", weight, ge=0, le=1) for weight in weights]
    if not found:
        raise OptionError("weights must have at least one position")
    return found
