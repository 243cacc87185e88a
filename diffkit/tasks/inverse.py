"""Inverse problems: images that fit a measurement, by any system, without training for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.parts.guidance._linear import Measured, Operator
from diffkit.registry.resolve import Slot, resolve, resolve_several
from diffkit.system.call_options import SampleOptions, shows_options
from diffkit.system.conditions import as_tensor
from diffkit.system.module import System
from diffkit.tasks._operators import check_operator

_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


@shows_options(SampleOptions)
def solve(
    system: System,
    measurement: Tensor,
    method: Measured | Slot,
    *,
    n: int | None = None,
    **options: Unpack[SampleOptions],
) -> Tensor:
    """Solve an inverse problem: return draws of data given ``measurement = A x_start + noise``, (n, C, *S).

    The default sampler is "ancestral" for DPS, as it was published, and "ddim" for the others. Further guidance, such
    as classifier-free, is applied before the method.

    Methods: `MMPS` is exact for normal data of any covariance; `PiGDM` costs one backward pass a step, `DiffPIR`
    none; `DPS` takes operators that are not linear, and needs many ancestral steps.

    Args:
        system: The system.
        measurement: (n, *M), or one, (*M), for all examples; the output of ``method.operator``, with noise.
        method: `diffkit.guidance.MMPS`, `PiGDM`, `DiffPIR` or `DPS`, with the operator and the noise; or its name and
            options, ("mmps", {"operator": masked(known), "noise_std": 0.1}).
        n: How many examples; as many as there are measurements by default.
        options: Those of `diffkit.system.call_options.SampleOptions`.
        conditions: As in `System.sample`.
    Raises:
        OptionError: The measurement does not have the shape of the operator's output; or the operator, which is checked
            on random data first, is not linear although the method needs it, has no gradient, returns another number
            of rows, or has a tensor with all examples although ``batch_size`` splits them.
    """
    if isinstance(method, str | tuple | list | Mapping):
        method, _ = resolve("guidance", method)
    if not isinstance(method, Measured):
        raise OptionError("must be MMPS, PiGDM, DiffPIR or DPS of diffkit.guidance", option="method", value=method)
    batch_size = options.get("batch_size")
    measurement = _check_measurements(system, as_tensor("measurement", measurement), method, n, batch_size)
    given = {"measurement": measurement}
    before = [part for part, _ in resolve_several("guidance", options.get("guidance"))]
    sampler = method.sampler if options.get("sampler") is None else options.get("sampler")
    options |= {"sampler": sampler, "guidance": [*before, method]}
    return system.sample(len(measurement), **options, **given)


def masked(known: Tensor) -> Operator:
    """Return the operator of inpainting as an inverse problem: known values are unchanged, the others 0.

    Args:
        known: 1 or True where a value is measured; broadcasts against (B, C, *S).
    """
    with torch.inference_mode(False):  # gradients are taken through it
        known = as_tensor("known", known).clone()
    return lambda x: x * known.to(x)


def average_pool(factor: int) -> Operator:
    """Return the operator of super-resolution as an inverse problem: means over blocks of ``factor`` pixels a side.

    Args:
        factor: >= 2; divides every side.
    """
    check_integer("factor", factor, ge=2)

    def operator(x: Tensor) -> Tensor:
        sides = tuple(x.shape[2:])
        if not 1 <= len(sides) <= 3 or any(side % factor for side in sides):
            raise OptionError(f"factor={factor} does not divide the sides {sides}")
        return _POOLS[len(sides) - 1](x, factor)

    return operator


def _check_measurements(
    system: System, measurement: Tensor, method: Measured, n: int | None, batch_size: int | None
) -> Tensor:
    """Return the measurement of each example, (n, *M), after checking them and the operator."""
    if measurement.is_complex():
        raise OptionError(
            f"measurement must be real, got {measurement.dtype}; pass torch.view_as_real of it, and let the operator "
            "return the same"
        )
    if not bool(torch.isfinite(measurement).all()):
        raise OptionError("measurement must be finite; leave unknown values out of it, as masked(known) does")
    given = None if n is None else check_integer("n", n, ge=1)
    size = None if batch_size is None else check_integer("batch_size", batch_size, ge=1)
    counts = [given] if given is not None else [*measurement.shape[:1], 1]
    shape = tuple(check_operator(method, system, counts, size).shape[1:])
    if measurement.ndim == len(shape):
        measurement = measurement[None]
    count = len(measurement) if given is None else given
    if measurement.shape[1:] != shape or len(measurement) not in (1, count):
        raise OptionError(
            f"measurement must have shape {shape}, as the operator's output, or {(count, *shape)}, "
            f"got {tuple(measurement.shape)}"
        )
    return measurement.to(system.device).expand(count, *shape)
