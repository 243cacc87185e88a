"""The Triton kernels on tensors. Equal to the C kernel in Triton's interpreter; not measured on a GPU yet.

So they are used only where the environment variable DIFFKIT_TRITON is 1.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

CHUNK = 256
"""Positions whose sums one program takes."""
ROWS = 16
WIDTH = 64
"""Positions and channels that a program holds at a time."""


@cache
def available(kind: str) -> bool:
    """Return whether Triton is installed, compiles for a kind of device, and is asked for by DIFFKIT_TRITON=1."""
    return kind == "cuda" and os.environ.get("DIFFKIT_TRITON") == "1" and find_spec("triton") is not None


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale_shift: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and mean and reciprocal standard deviation of each example's groups, (B, groups)."""
    from diffkit_kernels import _triton as kernels

    batch, channels, positions, chunks = _sizes(x)
    y, width, shifted = torch.empty_like(x), channels // groups, scale_shift is not None
    partial = _empty(x, batch, chunks, 2, channels)
    mean, rstd = _empty(x, 2, batch, groups).unbind()
    found = _empty(x, batch, 2, channels)
    given = (weight, bias, weight if scale_shift is None else scale_shift)
    columns = -(-channels // WIDTH)
    kernels.sums[batch, chunks, columns](x, partial, positions, channels, CHUNK, ROWS, WIDTH)
    kernels.coefficients[batch, groups](
        x, partial, *given, mean, rstd, found, positions, channels, eps, chunks, width, _power_of_two(width), shifted
    )
    kernels.apply[batch, -(-positions // ROWS), columns](x, y, found, positions, channels, ROWS, WIDTH, silu)
    return y, mean, rstd


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale_shift: Tensor | None,
    groups: int,
    silu: bool,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, weight, bias and scale_shift."""
    from diffkit_kernels import _triton as kernels

    batch, channels, positions, chunks = _sizes(x)
    dx, width, shifted = torch.empty_like(x), channels // groups, scale_shift is not None
    partial = _empty(x, batch, chunks, 2, channels)
    totals, found = _empty(x, batch, 2, channels), _empty(x, batch, 2, groups)
    given = (weight, bias, weight if scale_shift is None else scale_shift)
    columns, sizes = -(-channels // WIDTH), (positions, channels)
    kernels.gradient_sums[batch, chunks, columns](
        grad, x, *given, mean, rstd, partial, *sizes, width, CHUNK, ROWS, WIDTH, silu, shifted
    )
    kernels.gradient_coefficients[batch, groups](
        partial, *given, totals, found, *sizes, chunks, width, _power_of_two(width), shifted
    )
    kernels.gradient[batch, -(-positions // ROWS), columns](
        grad, x, *given, mean, rstd, found, dx, *sizes, width, ROWS, WIDTH, silu, shifted
    )
    du, duh = totals.unbind(1)
    if scale_shift is None:
        return dx, duh.sum(0), du.sum(0), None
    grown = 1 + scale_shift[:, :channels].float()
    moved = torch.cat([weight.float() * duh + bias.float() * du, du], dim=1)
    return dx, (grown * duh).sum(0), (grown * du).sum(0), moved


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """Examples, channels, positions, chunks of positions."""
    batch, channels, height, width = x.shape
    return batch, channels, height * width, -(-height * width // CHUNK)


def _empty(x: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
