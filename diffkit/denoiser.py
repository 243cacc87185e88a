"""The one place that calls a network: scale, call, split, decode, guide, clip, and give the variance a meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from diffkit._errors import OptionError
from diffkit.gaussian import decode
from diffkit.protocols import Level, Prediction, VarianceParameterization

Model = Callable[..., Tensor]
"""``model(x, time, **conditions) -> (B, C * (1 + extra_outputs), *S)``."""


def call_network(
    model: Model,
    x: Tensor,
    level: Level,
    var: VarianceParameterization,
    scales_input: bool,
    conditions: Mapping[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Call a network and split its channels; arguments as the attributes of `Denoiser`.

    Args:
        x: Noisy data, (B, C, *S).
        level: Where it is.
    Returns:
        Mean channels (B, C, *S) and raw variance channels (B, C*extra_outputs, *S) (None if there are none), of x's
        dtype.
    Raises:
        OptionError: The network returns another number of channels than the parts ask for.
    """
    scaled = level.c_in * x if scales_input else x
    out = model(scaled, level.time.expand(len(x)), **conditions).to(x.dtype)
    channels, extra = x.shape[1], var.extra_outputs
    if out.shape[1] != channels * (1 + extra) or out.shape[2:] != x.shape[2:]:
        wanted = (len(x), channels * (1 + extra), *x.shape[2:])
        raise OptionError(
            f"the network returned shape {tuple(out.shape)}, the parts ask for {wanted}: {channels} channels of "
            f"data times {1 + extra} ({'mean and variance' if extra else 'mean'})"
        )
    if not extra:
        return out, None
    return out.narrow(1, 0, channels), out.narrow(1, channels, channels * extra)


@frozen(eq=False)
class Denoiser:
    """A network read as an estimate of clean data and of the reverse step's variance.

    Attributes:
        model: The network.
        var: The variance part.
        scales_input: False if c_in is 1 at every level, which spares a multiplication.
        conditions: Keywords for the network.
        transform: Applied to the estimate of x_start before clipping (the reference's denoised_fn).
        clip: Clip the estimate of x_start to [-1, 1].
    """

    model: Model
    var: VarianceParameterization
    scales_input: bool
    conditions: Mapping[str, Any] = field(factory=dict)
    transform: Callable[[Tensor], Tensor] | None = None
    clip: bool = False

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Return the processed estimate of x_start, and the log-variance of the reverse step."""
        out, raw = call_network(self.model, x, level, self.var, self.scales_input, self.conditions)
        x_start = decode(out, x, level)
        if self.transform is not None:
            x_start = self.transform(x_start)
        if self.clip:
            x_start = x_start.clamp(-1, 1)
        return Prediction(x_start, None if level.var is None else self.var.log_variance(raw, level.var))


def as_float(x: Tensor) -> Tensor:
    """Return data in the precision that step arithmetic uses: float64 stays, anything shorter becomes float32."""
    return x if x.dtype == torch.float64 else x.float()
