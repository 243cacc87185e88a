"""The quantity whose error a loss measures, whatever the network predicts.

At a given x_t, errors of the network's output, of x_start, of eps and of a velocity are multiples of each other:
``x_start = c_skip x_t + c_out F`` and ``x_t = alpha x_start + sigma eps``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffkit.options import choice

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.protocols import Level

SPACES = ("network", "eps", "x_start", "v", "velocity")


def space_option(default: str = "network") -> Any:
    """Field for the option ``space``: the quantity whose error is measured."""
    return choice(default, SPACES)


def error_scale(space: str, level: Level) -> Tensor | None:
    """Return the factor that makes an error of the network's output one of ``space``, up to its sign, (B,1..).

    None for "network", which costs no operation. For an error e of x_start: that of eps is ``alpha / sigma e``, of v =
    ``alpha eps - sigma x_start`` ``(alpha^2 + sigma^2) / sigma e``, of the velocity ``eps - x_start``
    ``(alpha + sigma) / sigma e``.
    """
    alpha, sigma, c_out = level.alpha, level.sigma, level.c_out
    match space:
        case "eps":
            return c_out * (level.log_snr / 2).exp()
        case "x_start":
            return c_out
        case "v":
            return c_out * ((alpha.square() + sigma.square()) / sigma)
        case "velocity":
            return c_out * ((alpha + sigma) / sigma)
    return None


def in_space(space: str, level: Level, mse: Tensor) -> Tensor:
    """Return the mean squared errors of the network's output, (B,), as those of ``space``."""
    scale = error_scale(space, level)
    return mse if scale is None else scale.square().flatten() * mse
