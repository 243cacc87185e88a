"""Super-resolution with a network that was trained on low-resolution images as a condition."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.system.call_options import SampleOptions, shows_options
from diffkit.system.conditions import as_tensor
from diffkit.system.module import System


@shows_options(SampleOptions)
def super_resolve(system: System, low_res: Tensor, *, each: int = 1, **options: Unpack[SampleOptions]) -> Tensor:
    """Return large images for low-resolution ones, (B * each, C, *S); the variants of an image are consecutive.

    The network receives them as the condition ``low_res``, which the backbone `unet` with ``low_res_channels`` reads.
    Any other system can upsample by `solve`, without training, but slower.

    Args:
        system: The system.
        low_res: (B, c, *s) or (c, *s), in [-1, 1].
        each: Number of large images for each small one.
        options: Those of `diffkit.system.call_options.SampleOptions`.
        conditions: As in `System.sample`.
    Raises:
        OptionError: The network reads no low-resolution image, or one with other channels.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, section 5 (conditioning by concatenation).
    """
    each, axes = check_integer("each", each, ge=1), len(system.data_shape)
    low_res = as_tensor("low_res", low_res)
    if low_res.ndim == axes:
        low_res = low_res[None]
    _check_low_res(system, low_res, axes)
    low_res = low_res.to(system.device).repeat_interleave(each, dim=0)
    given: dict[str, Any] = {"low_res": low_res}
    return system.sample(len(low_res), **options, **given)


def _check_low_res(system: System, low_res: Tensor, axes: int) -> None:
    if low_res.ndim != axes + 1 or not low_res.is_floating_point():
        raise OptionError(
            f"low_res must be floating point of shape (B, c, {'*' * (axes > 1)}s), got {low_res.dtype} of shape "
            f"{tuple(low_res.shape)}"
        )
    if system.parts.backbone is None:  # the channels of a network of the caller's own are unknown
        return
    channels = system.parts.condition_channels
    label = system.parts.label("backbone")
    if not channels:
        raise OptionError(
            f"{label} reads no low_res; build it with low_res_channels={low_res.shape[1]} and train it so"
        )
    if low_res.shape[1] != channels:
        raise OptionError(f"{label} reads {channels} channels of low_res, got {low_res.shape[1]}")
