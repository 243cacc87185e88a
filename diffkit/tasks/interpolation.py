"""Images between two images: invert both, interpolate their noises on a great circle, and sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_integer, check_number
from diffkit.system.call_options import EncodeOptions, shows_options
from diffkit.system.module import System
from diffkit.tasks._images import images_for
from diffkit.tasks.inversion import SAMPLER, STEPS, with_defaults


@shows_options(EncodeOptions, sampler=SAMPLER, steps=STEPS)
@torch.no_grad()
def interpolate(
    system: System,
    first: Tensor,
    second: Tensor,
    weights: int | Sequence[float] = 7,
    *,
    batch_size: int | None = None,
    progress: bool = True,
    **options: Unpack[EncodeOptions],
) -> Tensor:
    """Interpolate two images, (K, C, *S): both are inverted, and sampling starts between their noises.

    Args:
        system: The system.
        first, second: (C, *S), in [-1, 1].
        weights: Number of images, evenly from the first (0) to the second (1), both included; or positions in [0, 1].
        batch_size, progress: As in `System.sample`.
        options: As in `invert`.
        conditions: As in `System.sample`, one value for all images.
    Source: Song et al. 2021, arXiv:2010.02502, section 5.3.
    """
    where = _weights(weights)
    ends = torch.cat([images_for(system, "first", first), images_for(system, "second", second)])
    if len(ends) != 2:
        raise OptionError(f"first and second must be one image each, got {len(ends)} in all")
    options = with_defaults(system, options)
    start, end = system.encode(ends, progress=progress, **options)
    between = torch.stack([slerp(start, end, weight) for weight in where])
    return system.sample(len(between), start=between, batch_size=batch_size, progress=progress, **options)


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
