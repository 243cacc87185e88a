"""Levels of a path that is known as functions of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.table import F64

_LAST_LOG_SNR, _FIRST_LOG_SNR = -12.0, 12.0
"""Levels beyond these have no noise, or no signal, that a network in float32 could tell."""


def as_times(times: Any, clean: float, noisy: float, levels: int) -> Tensor:
    """Return times of levels, from clean to noisy: the given ones, or evenly spaced ones, float64 (T,)."""
    if times is not None:
        return torch.as_tensor(times, dtype=torch.float64)
    return torch.linspace(clean, noisy, levels + 1, dtype=torch.float64)[1:]


def on_path(
    time: Tensor, scales: Callable[[Tensor], tuple[Tensor, Tensor]], given: bool = False
) -> tuple[F64, F64, F64]:
    """Return alpha, sigma and time at levels 1..T; unless given, those without noise or signal are left out."""
    with torch.no_grad():
        alpha, sigma = (scale.double().cpu().numpy().reshape(-1) for scale in scales(time))
    with np.errstate(divide="ignore"):
        log_snr = 2 * (np.log(np.maximum(alpha, 0)) - np.log(np.maximum(sigma, 0)))
    use = (log_snr > _LAST_LOG_SNR) & (log_snr < _FIRST_LOG_SNR) if not given else np.ones(len(alpha), dtype=bool)
    return alpha[use], sigma[use], time.numpy()[use]


def karras(sigma_min: float, sigma_max: float, levels: int, rho: float = 7.0) -> Tensor:
    """Return rising sigmas, evenly spaced in sigma^(1/rho); Karras et al. 2022, arXiv:2206.00364, eq. 5."""
    return torch.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), levels, dtype=torch.float64) ** rho


def along(values: Tensor, x: Tensor) -> Tensor:
    """Return values of each row, (B,), to broadcast with x, in its dtype."""
    return values.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
