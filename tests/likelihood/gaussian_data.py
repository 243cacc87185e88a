"""Gaussian data, of which everything is known: the likelihood, the ideal network and the ideal reverse variance."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from diffkit.table import ProcessTable


class Ideal(nn.Module):
    """The best network there can be for data ``N(mean, std^2)``, elementwise, at fractional times too.

    Args:
        table: Of the system it is for.
        mean, std: Of the data; numbers or tensors of its shape.
        target: What it predicts: "eps", "x_start" or "v".
        raw: Its variance channels for learned_range: None for none, a number, or "ideal".
    """

    def __init__(self, table: ProcessTable, mean, std, target: str = "eps", raw: float | str | None = None):
        super().__init__()
        self.table, self.mean, self.std, self.target, self.raw = table, mean, std, target, raw
        self.gain = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, time, y=None):
        clock = np.interp(time.detach().double().numpy(), self.table.time[1:], self.table.log_snr[1:])
        alpha_bar = torch.as_tensor(clock).sigmoid().view(-1, *(1,) * (x.ndim - 1))
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        variance = alpha**2 * self.std**2 + sigma**2
        centred = (x.double() - alpha * self.mean) / variance
        eps, x_start = centred * sigma, self.mean + centred * alpha * self.std**2
        found = {"eps": eps, "x_start": x_start, "v": alpha * eps - sigma * x_start}[self.target] * self.gain
        if self.raw is None:
            return found.to(x.dtype)
        return torch.cat([found, self._variance_channels(time).expand_as(found)], 1).to(x.dtype)

    def _variance_channels(self, time):
        table = self.table
        if self.raw != "ideal":
            return torch.tensor(float(self.raw)).view(1, 1, 1, 1)
        posterior = table.posterior()
        of_x_start = self.std**2 * table.sigma[1:] ** 2 / (table.alpha[1:] ** 2 * self.std**2 + table.sigma[1:] ** 2)
        ideal = np.log(posterior.variance[1:] + posterior.coef_x_start[1:] ** 2 * of_x_start)
        low, high = table.posterior_log_variance[1:], table.upper_log_variance[1:]
        place = np.interp(time.detach().double().numpy(), table.time[1:], np.arange(table.num_steps))
        level = np.rint(place).astype(np.int64)
        return torch.as_tensor((2 * (ideal - low) / (high - low) - 1)[level]).view(-1, 1, 1, 1)


def true_bits(x, mean, std):
    """Negative log-density in bits per dimension, (B,) float64."""
    std = torch.as_tensor(std, dtype=torch.float64)
    z = (x.double() - mean) / std
    return ((0.5 * z**2 + 0.5 * math.log(2 * math.pi) + std.log()) / math.log(2)).flatten(1).mean(1)


def true_bin_bits(x, mean, std, bins):
    """Negative log-probability of the bin of each value, its outermost bins as wide as the others, (B,) float64."""
    half = 1 / (bins - 1)
    normal = torch.distributions.Normal(torch.tensor(float(mean)).double(), torch.tensor(float(std)).double())
    return (-(normal.cdf(x.double() + half) - normal.cdf(x.double() - half)).log2()).flatten(1).mean(1)
