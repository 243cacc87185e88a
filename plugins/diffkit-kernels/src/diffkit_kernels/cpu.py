"""The C kernel on tensors."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from diffkit_kernels.library import load


class _Sizes(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "positions", "channels", "groups")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("silu", "bf16", "weights_bf16", "shifts_bf16", "threads")),
    )


@cache
def available() -> bool:
    """Return whether this CPU is one where the kernel was found to be faster, and a compiler makes it here."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and load() is not None


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale_shift: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, and mean and reciprocal standard deviation of each example's groups, (B, groups)."""
    y = torch.empty_like(x)
    mean, rstd = torch.empty(2, len(x), groups).unbind()
    _call(
        "group_norm_forward",
        _sizes(x, weight, scale_shift, groups, eps, silu),
        x,
        y,
        weight,
        bias,
        scale_shift,
        mean,
        rstd,
    )
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
    dx, sums = torch.empty_like(x), torch.empty(len(x), 2 * x.shape[1])
    dweight, dbias = torch.empty(2, x.shape[1]).unbind()
    moved = None if scale_shift is None else torch.empty(scale_shift.shape)
    given = (grad, x, weight, bias, scale_shift, mean, rstd, sums, dx, dweight, dbias, moved)
    _call("group_norm_backward", _sizes(x, weight, scale_shift, groups, 0.0, silu), *given)
    return dx, dweight, dbias, moved


def _sizes(x: Tensor, weight: Tensor, scale_shift: Tensor | None, groups: int, eps: float, silu: bool) -> _Sizes:
    batch, channels, height, width = x.shape
    short = [t is not None and t.dtype == torch.bfloat16 for t in (x, weight, scale_shift)]
    return _Sizes(batch, height * width, channels, groups, eps, silu, *short, torch.get_num_threads())


def _call(name: str, sizes: _Sizes, *tensors: Tensor | None) -> None:
    getattr(load(), name)(ctypes.byref(sizes), *(None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors))
