"""Group norm, scale and shift, and SiLU in one pass where a kernel is installed, and layer by layer everywhere else.

The layers stay what they are, `nn.GroupNorm` and `nn.SiLU` under the names of public checkpoints; a kernel computes
what they would. They are called where something acts on one or stands in its place, and for what a kernel cannot do.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffkit.protocols import GroupNormKernel
from diffkit.registry.kernels import group_norm_kernel
from diffkit.tensors import device_of, is_ordinary, is_transformed

N = TypeVar("N", bound=nn.Module)

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes of a layer that hold its hooks."""


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return ``h (1 + scale) + shift`` of (B, C, *S), with a scale and a shift for each channel, (B, C, 1..).

    One operation on a GPU. On a CPU that operation does not vectorize over two broadcast operands and is three to six
    times slower than two operations.
    """
    if h.is_cpu:
        return (h * (1 + scale)).add_(shift)
    return torch.addcmul(shift, h, 1 + scale)


def normalize(x: Tensor, norm: nn.Module, act: nn.Module | None = None, scale_shift: Tensor | None = None) -> Tensor:
    """Return ``act(norm(x) (1 + scale) + shift)``, (B, C, *S).

    Args:
        x: (B, C, *S).
        norm: The norm, a layer that is called with x.
        act: The activation, a layer; None for none.
        scale_shift: Scales, then shifts, (B, 2 C) or (1, 2 C); None for none.
    """
    kernel = _kernel_for(x, norm, act)
    if kernel is not None:
        if scale_shift is not None:
            scale_shift = scale_shift.expand(len(x), -1)
        given = (x, norm.weight, norm.bias, scale_shift, norm.num_groups, norm.eps, act is not None)
        y: Tensor = _Fused.apply(kernel, *given) if torch.is_grad_enabled() else kernel.forward(*given)[0]  # type: ignore[arg-type, no-untyped-call]
        return y
    h: Tensor = norm(x.contiguous() if is_transformed() else x)  # what torch's forward derivative requires (2.13)
    if scale_shift is not None:
        scale, shift = scale_shift[(..., *[None] * (x.ndim - 2))].chunk(2, dim=1)
        h = modulate(h, shift, scale)
    return h if act is None else act(h)


def laid_out(network: N) -> N:
    """Return a network, in place, in the memory format that the kernel works in, if there is one for this machine.

    On a machine with a GPU it stays as it is, since the kernel there has not been measured.
    """
    kernel, device = group_norm_kernel(), device_of(network)
    if kernel is None or device is None or device.type != "cpu" or torch.accelerator.is_available():
        return network
    if kernel.available(device):
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _kernel_for(x: Tensor, norm: nn.Module, act: nn.Module | None) -> GroupNormKernel | None:
    """The kernel that computes what the layers would; None if they are to be called."""
    if not is_ordinary(x) or not _is_plain(norm, nn.GroupNorm) or not (act is None or _is_plain(act, nn.SiLU)):
        return None
    kernel = group_norm_kernel()
    if kernel is None or not norm.affine or not kernel.supports(x, norm.num_groups):  # type: ignore[arg-type]
        return None
    return kernel


def _is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of a layer computes what its class does, and nothing else acts on it."""
    own = layer.__dict__
    if type(layer) is not kind or any(own[hooks] for hooks in HOOKS):
        return False
    return "forward" not in own and own.get("_compiled_call_impl") is None


def _has_memory(tensor: Tensor) -> bool:
    """Whether a tensor's values are its own; those of a batch of gradients (is_grads_batched) are behind it."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


class _Fused(torch.autograd.Function):
    """A kernel with its gradients; their own gradients are those of torch's operations."""

    @staticmethod
    def forward(ctx: Any, kernel: GroupNormKernel, x: Tensor, *given: Any) -> Tensor:
        y, saved = kernel.forward(x, *given)
        weight, bias, scale_shift, *ctx.options = given
        ctx.kernel = kernel
        ctx.save_for_backward(x, weight, bias, scale_shift, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors  # checkpointing hands them out once
        inputs, saved = tensors[:4], tensors[4:]
        groups, eps, silu = ctx.options
        if torch.is_grad_enabled() or not is_ordinary(grads[0]) or not _has_memory(grads[0]):
            found = _differentiable(grads[0], inputs, ctx.needs_input_grad[1:5], groups, eps, silu)
        else:
            found = ctx.kernel.backward(grads[0], *inputs, groups, silu, saved)
        return None, *found, None, None, None


def _differentiable(
    grad: Tensor, inputs: tuple[Tensor, ...], needed: tuple[bool, ...], groups: int, eps: float, silu: bool
) -> tuple[Tensor | None, ...]:
    """The gradients by torch's operations, which can be differentiated again and take batches of gradients."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if not again:
            inputs = tuple(
                t if t is None else t.detach().requires_grad_(n) for t, n in zip(inputs, needed, strict=True)
            )
        x, weight, bias, scale_shift = inputs
        h = F.group_norm(x.float().contiguous(), groups, weight.float(), bias.float(), eps)
        if scale_shift is not None:
            scale, shift = scale_shift.float()[(..., *[None] * (x.ndim - 2))].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        y = (F.silu(h) if silu else h).to(x.dtype)
        wanted = [t for t, n in zip(inputs, needed, strict=True) if n]
        found = iter(torch.autograd.grad(y, wanted, grad, create_graph=again))
    return tuple(next(found) if n else None for n in needed)
