"""Runge and Kutta's method, written out in x / alpha and rho."""

from __future__ import annotations

import itertools

import numpy as np
import torch

import diffkit


def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    return 0.9 * torch.tanh(1.3 * x * (0.4 + time.view(-1, 1, 1, 1) / 1000))


def test_steps_between_levels_are_those_of_the_textbook():
    system = diffkit.compose(backbone=None, data_shape=(1, 2, 2), bins=None, rescale_time=False)
    table, full = system.table_for("karras12:exact:sigma_max=10"), system.table
    known = np.log(full.sigma[1:] / full.alpha[1:])
    rho = torch.from_numpy(np.append((table.sigma / table.alpha)[:0:-1], 0.0))
    x = torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)

    def slope(y: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        time = torch.full((2,), float(np.interp(np.log(float(at)), known, full.time[1:])), dtype=torch.float64)
        return network(y / (1 + at**2).sqrt(), time)

    y = x / table.alpha[-1]
    for t, s in itertools.pairwise(rho[:-1]):
        way, middle = s - t, (s + t) / 2
        first = slope(y, t)
        second = slope(y + way / 2 * first, middle)
        third = slope(y + way / 2 * second, middle)
        fourth = slope(y + way * third, s)
        y = y + way / 6 * (first + 2 * second + 2 * third + fourth)
    y = y - rho[-2] * slope(y, rho[-2])
    found = system.sample_from(network, x, None, table, sampler="rk4")
    torch.testing.assert_close(found, y, rtol=1e-10, atol=1e-10)
