"""Group norm, modulation and SiLU in one pass: C on a CPU, Triton on a GPU; a `diffkit.protocols.GroupNormKernel`."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit_kernels import cpu, gpu

LANES = 16
"""Channels that the kernels read at a time."""
DTYPES = (torch.float32, torch.bfloat16)


def available(device: torch.device) -> bool:
    """Return whether there is a kernel for a device, here and now; the first call on a CPU compiles it."""
    return cpu.available() if device.type == "cpu" else gpu.available(device.type)


def supports(x: Tensor, groups: int) -> bool:
    """Return whether the kernel takes x: channels-last images in float32 or bfloat16, channels in multiples of 16."""
    return (
        x.ndim == 4
        and x.dtype in DTYPES
        and x.shape[1] % LANES == 0
        and x.shape[1] % groups == 0
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and available(x.device)
    )


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale_shift: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return ``act(group_norm(x) (1 + scale) + shift)``, and what `backward` needs; arithmetic is in float32.

    Args:
        x: (B, C, H, W), one that `supports` accepts.
        weight, bias: (C,).
        scale_shift: Scales, then shifts, (B, 2 C); None for none.
        groups, eps: Of the norm.
        silu: Whether act is SiLU; otherwise it is the identity.
    """
    run = cpu.forward if x.is_cpu else gpu.forward
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        y, mean, rstd = run(x, *_readable(weight, bias, scale_shift), groups, eps, silu)
    return y, (mean, rstd)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale_shift: Tensor | None,
    groups: int,
    silu: bool,
    saved: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of x, weight, bias and scale_shift, each in its dtype, from that of the result."""
    run = cpu.backward if x.is_cpu else gpu.backward
    grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        dx, dweight, dbias, moved = run(grad, x, *_readable(weight, bias, scale_shift), groups, silu, *saved)
    if scale_shift is not None and moved is not None:
        moved = moved.to(scale_shift.dtype)
    return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), moved


def _readable(weight: Tensor, bias: Tensor, scale_shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same in dtypes that the kernels read, weight and bias in one, contiguous; most are as they should be."""
    if weight.dtype != bias.dtype or weight.dtype not in DTYPES:
        weight, bias = weight.float(), bias.float()
    if scale_shift is not None:
        scale_shift = scale_shift if scale_shift.dtype in DTYPES else scale_shift.float()
        scale_shift = scale_shift.contiguous()
    return weight.contiguous(), bias.contiguous(), scale_shift
